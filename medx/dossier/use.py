"""What the run is good for, and what it is not: the chapter ``use``. No sentence holds of every run."""

from medx.dossier.operating import operating_points
from medx.dossier.record import Rule
from medx.dossier.subject import Subject
from medx.report.words import RADIOLOGY, listed
from medx.results import Interval

SOME = 0.02  # of accuracy


def _for_trying(run: Subject) -> str | None:
    drawn = "It is for trying out the software. The images are drawn, so nothing in it is evidence about patients."
    return drawn if run.result.dataset.synthetic else None


def _for_method(run: Subject) -> str | None:
    if not run.published:
        return None
    return (
        "It is for judging a method: a published data set is not the patients of the hospital that would use the model."
    )


def _for_judging(run: Subject) -> str | None:
    if run.published or run.result.dataset.synthetic:
        return None
    return (
        "It is for judging whether a model of such images is worth a study in care. It is not such a study: it "
        "compares "
        "answers with labels that were there before."
    )


def _not_for_release(run: Subject) -> str | None:
    if run.private or run.result.dataset.synthetic or run.result.dataset.public:
        return None
    return "The model is not for release: without a privacy guarantee it may show single training images."


def _seeded(run: Subject) -> str | None:
    if run.result.privacy.noise_source != "seed" or run.result.dataset.synthetic:
        return None
    return "The model is not for release: its noise follows from the seed (`noise=system` makes one that is)."


def _no_gain(run: Subject) -> str | None:
    accuracy, majority = run.result.test.get("accuracy_at_threshold"), run.result.majority_accuracy
    if accuracy is None or accuracy.low is None or majority is None or accuracy.low > majority:
        return None
    return "By accuracy it is not shown to be better than always giving the most frequent answer; see also its AUC."


def _misses(run: Subject) -> str | None:
    points = operating_points(run.result) if run.positive is not None else []
    if not points or not points[0].false_negative:
        return None
    return (
        f"It misses {points[0].false_negative:,} of {points[0].positives:,} test images with “{points[0].name}”: no "
        "answer "
        "of it rules the finding out."
    )


def _never(run: Subject) -> str | None:
    if run.positive is not None:
        return None
    lost = [f"“{each.name}”" for each in operating_points(run.result) if each.positives and not each.true_positive]
    which = "that" if len(lost) == 1 else "these"
    return f"It never finds {listed(lost)} among the test images: it must not be asked for {which}." if lost else None


def _small(run: Subject) -> str | None:
    data = run.result.dataset
    if data.synthetic or data.image_size >= RADIOLOGY:
        return None
    return (
        f"It sees {data.image_size} pixels along an edge, where people who diagnose by images mostly see many times "
        "as many."
    )


def _not_real(run: Subject) -> str | None:
    if run.deployed or run.option("partition") in (None, "site") or run.result.dataset.synthetic:
        return None
    return (
        "The hospitals are one data set dealt out, so it does not show how hospitals differ by patients, devices and "
        "habits."
    )


def _internal(run: Subject) -> str | None:
    if not run.result.test or run.deployed or run.result.dataset.synthetic:
        return None
    return "Training and test images are of one data set: the run has no validation on images from elsewhere."


def _one_seed(run: Subject) -> str | None:
    if run.seeds > 1 or not run.result.test:
        return None
    return "It is one training run: how far figures would move if it were trained again is not shown here."


def _unequal_groups(run: Subject) -> str | None:
    rates = [each.metrics.get("balanced_accuracy_at_threshold", Interval(value=None)) for each in run.result.subgroups]
    known = [rate for rate in rates if rate.value is not None and rate.low is not None and rate.high is not None]
    apart = any(
        one.high < other.low for one in known for other in known if one.high is not None and other.low is not None
    )
    return "It serves some groups worse than others, beyond the intervals: see the groups." if apart else None


def _unfinished(run: Subject) -> str | None:
    ended = run.result.status != "finished"
    return "The run did not come to its end, so the model is not the one that was planned." if ended else None


def _price(run: Subject) -> str | None:
    alone = run.result.baselines.get("centralized", {}).get("accuracy_at_threshold")
    ours = run.result.test.get("accuracy_at_threshold")
    if alone is None or ours is None or alone.value is None or ours.value is None or alone.value - ours.value < SOME:
        return None
    return (
        "A model of all records in one place, trained beside it, was right in "
        f"{100 * (alone.value - ours.value):.1f} of 100 "
        "more test images."
    )


USE: tuple[Rule, ...] = (
    _for_trying, _for_method, _for_judging, _not_for_release, _seeded, _unfinished, _no_gain, _misses, _never,
    _unequal_groups, _small, _not_real, _internal, _one_seed, _price,
)  # fmt: skip
