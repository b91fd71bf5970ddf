"""How good the model is, where it answers, and for whom it is worse: the chapter ``quality``."""

from collections.abc import Iterator
from typing import Any

from medx.dossier.answer import usual
from medx.dossier.operating import Operating, operating_points, operating_table, shown, spoken
from medx.dossier.people import hospital, measured_rows
from medx.dossier.record import Rule
from medx.dossier.subject import Subject
from medx.report.cells import Row, Table, number
from medx.report.words import LABELS, listed
from medx.results import Interval

FEW = 30  # images of a class, or of a group: fewer say little
UNSURE = 0.03  # calibration error from which a probability is not what it says
RARE = 0.05  # a share of patients at which a positive answer is often wrong
METRICS = {
    "auc": ("AUC", False), "accuracy_at_threshold": ("accuracy", True),
    "balanced_accuracy_at_threshold": ("balanced accuracy", True), "ece": ("calibration error (ECE)", False),
}  # fmt: skip

MEANS = {  # over labels, of which no single one's counts are told
    "sensitivity_at_threshold": ("sensitivity", True), "specificity_at_threshold": ("specificity", True),
}  # fmt: skip


def _of(run: Subject) -> Operating | None:
    """Of two classes, the point at which the model answers; None where it is not known."""
    points = operating_points(run.result)
    return points[0] if run.positive is not None and points else None


def _cut(run: Subject) -> str | None:
    if run.positive is None or run.result.threshold is None:
        return None
    chosen = (
        f"{run.result.dataset.sizes.get('validation', 0):,} validation images" if run.owner else "validation images"
    )
    how = (
        f"The cut is the share of “{run.positive}” among {chosen}, which serves the mean of sensitivity and specificity"
        if run.result.config.get("threshold") == "prior"
        else f"The cut was chosen on {chosen} for the best mean of sensitivity and specificity"
    )
    return (
        f"The model answers “{run.positive}” where it takes that for at least {100 * run.result.threshold:.1f} % "
        f"probable. {how}, not by what a missed finding costs."
    )


def _no_cut(run: Subject) -> str | None:
    if run.positive is None or run.result.threshold is not None or not run.result.test:
        return None
    return f"No cut was chosen on validation images, so the model answers “{run.positive}” from 50 % upwards."


def _most_probable(run: Subject) -> str | None:
    if run.result.dataset.task not in ("multiclass", "ordinal") or not operating_points(run.result):
        return None
    return "The model answers the most probable class. Each class is told in the table from all others together."


def _labels(run: Subject) -> str | None:
    if run.result.dataset.task != "multilabel" or not run.result.test:
        return None
    return (
        "Figures are means over labels. A result of several labels does not tell the counts behind predictive values."
    )


def _found(run: Subject) -> str | None:
    point = _of(run)
    if point is None:
        return None
    return (
        f"Of {point.positives:,} test images with “{point.name}” it finds {point.true_positive:,}, which is "
        f"{spoken(point.sensitivity)}, and misses {point.false_negative:,}. Of the "
        f"{point.false_positive + point.true_negative:,} others it wrongly answers so in {point.false_positive:,}, and "
        f"clears {spoken(point.specificity)}."
    )


def _prevalence(run: Subject) -> str | None:
    point = _of(run)
    if point is None or point.ppv.value is None:
        return None
    return (
        f"An answer of “{point.name}” is right in {spoken(point.ppv)} (PPV), and the other answer in "
        f"{spoken(point.npv)} "
        f"(NPV). That holds where {number(point.prevalence, True)} of images are “{point.name}”, as in this test."
    )


def _rarer(run: Subject) -> str | None:
    point = _of(run)
    if point is None or point.prevalence <= RARE or (there := point.ppv_at(RARE)) is None:
        return None
    return (
        f"Where only 5 of 100 images are “{point.name}”, the same model would be right in {number(there, True)} of "
        "such "
        "answers, by the same sensitivity and specificity."
    )


def _intervals(run: Subject) -> str | None:
    if not operating_points(run.result):
        return None
    others = ["PPV and NPV", *([] if run.positive is not None else ["specificity"]), "rates of none or of all"]
    return (
        "Intervals are at 95 %: by the bootstrap over test images where the run has made it; those of "
        f"{listed(others)} by Wilson (1927) from the counts. They say how figures would move with other images of the "
        "same kind, and nothing of other hospitals, devices or patients."
    )


def _majority(run: Subject) -> str | None:
    accuracy, majority = run.result.test.get("accuracy_at_threshold"), run.result.majority_accuracy
    if accuracy is None or majority is None or accuracy.low is None or accuracy.high is None:
        return None
    always = f"{usual(run).capitalize()} is right in {number(majority, True)}"
    if accuracy.low > majority:
        return f"{always}, below the interval of the model: it does better than that."
    if accuracy.high < majority:
        return f"{always}, above the interval of the model: by accuracy alone it does worse than knowing nothing."
    return f"{always}, within the interval of the model: by accuracy it is not shown to do better than knowing nothing."


def _few(run: Subject) -> str | None:
    counts = run.result.dataset.class_counts.get("test", [])
    names = run.result.dataset.class_names
    rare = [f"“{name}” ({count})" for name, count in zip(names, counts, strict=False) if count < FEW]
    return f"Few test images, so wide intervals: {', '.join(rare)}." if rare else None


def _worst_group(run: Subject) -> str | None:
    metric = "balanced_accuracy_at_threshold"
    found = [(each.metrics[metric], f"{each.column} “{each.value}”") for each in run.result.subgroups
             if metric in each.metrics]  # fmt: skip
    return _worst(found, "Of the groups told apart it serves {} worst: balanced accuracy {}.", percent=True)


def _worst_hospital(run: Subject) -> str | None:
    found = [(each.test["auc"], hospital(run, each.client)) for each in run.result.clients if "auc" in each.test]
    return _worst(found, "Hospital {} is served worst, on its own test images: AUC {}.", percent=False)


def _worst(rates: list[tuple[Interval, str]], words: str, *, percent: bool) -> str | None:
    """Who has the lowest value, and whether its interval meets that of the highest."""
    known = sorted(
        ((rate, name) for rate, name in rates if rate.value is not None), key=lambda pair: pair[0].value or 0.0
    )
    if len(known) < 2 or known[0][0].value == known[-1][0].value:
        return None
    worst, best = known[0][0], known[-1][0]
    met = worst.high is not None and best.low is not None and worst.high >= best.low
    return words.format(known[0][1], spoken(worst, percent)) + (
        " Its interval meets that of the one served best, so it may be chance." if met else ""
    )


def _calibrated(run: Subject) -> str | None:
    ece = run.result.test.get("ece", Interval(value=None)).value
    if ece is None:
        return None
    off = f"Its probabilities are off by {100 * ece:.1f} percentage points on average (calibration error, ECE)"
    return f"{off}, so do not take 90 % for 90 of 100." if ece >= UNSURE else f"{off}."


def _unmeasured(run: Subject) -> str | None:
    return "This run has measured nothing on test images." if run.owner and not run.result.test else None


def _held_back(run: Subject) -> str | None:
    held = "Figures on test images are in the owner's view alone, because epsilon does not cover them."
    return None if run.owner else held


QUALITY: tuple[Rule, ...] = (
    _cut, _no_cut, _most_probable, _labels, _found, _prevalence, _rarer, _majority, _worst_hospital, _worst_group, _few,
    _calibrated, _intervals, _unmeasured, _held_back,
)  # fmt: skip


def quality_tables(run: Subject) -> Iterator[Table]:
    """The operating point, all in all beside what else could be had, by hospital and by group."""
    yield operating_table(operating_points(run.result))
    note = "AUC: how often an image of a class is ranked above another, 0.5 by luck. In brackets 95 % intervals."
    if "local_only" in run.result.baselines:
        note += f" Of {LABELS['local_only']} the mean, and in brackets the worst and the best."
    yield Table.of("overall", "All in all, beside what else could be had", note, _overall(run))
    clients = [({"hospital": hospital(run, each.client)}, each.test_counts or [], each.test)
               for each in run.result.clients if each.test]  # fmt: skip
    own = "On each hospital's own test images."
    yield Table.of("by_hospital", "Hospital by hospital", own, measured_rows(clients))
    groups = [({"column": each.column, "group": each.value}, each.class_counts, each.metrics)
              for each in run.result.subgroups]  # fmt: skip
    told = "On the test images of each group. A difference within the intervals may be chance."
    yield Table.of("by_group", "Group by group", told, measured_rows(groups))


def _overall(run: Subject) -> Iterator[Row]:
    told = METRICS | (MEANS if run.result.dataset.task == "multilabel" else {})
    models: dict[str, dict[str, Interval]] = {"this model": run.result.test} if run.result.test else {}
    models |= {LABELS.get(name, name): found for name, found in run.result.baselines.items()}
    for name, metrics in models.items():
        data: dict[str, Any] = {"who": name} | {key: metrics[key].value for key in told if key in metrics}
        cells = {"who": name}
        cells |= {title: shown(metrics[key], percent) for key, (title, percent) in told.items() if key in metrics}
        yield Row(data, cells)
    majority = run.result.majority_accuracy
    if majority is not None:
        yield Row({"who": "majority", "accuracy_at_threshold": majority},
                  {"who": usual(run), "accuracy": number(majority, True)})  # fmt: skip
