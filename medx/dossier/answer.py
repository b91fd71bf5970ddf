"""The three sentences that a reader meets first, and what must be known before them."""

import numpy as np

from medx.dossier.operating import spoken
from medx.dossier.record import Rule
from medx.dossier.subject import Subject
from medx.privacy.meaning import upwards
from medx.privacy.spending import OTHERS, SERVER, TRUSTED
from medx.report.cells import number
from medx.report.words import listed
from medx.results import Interval, Meaning, told_epsilon

TASKS = {
    "binary": "to tell {names} apart",
    "multiclass": "to tell {names} apart",
    "ordinal": "to grade images ({names})",
    "multilabel": "to say which of {names} an image shows",
}
NAMELESS = "own images"  # the title of a folder, which has none
MANY = 8  # names of classes that a sentence has room for


def quoted(names: list[str]) -> str:
    """Names of classes in a sentence; their number where there are many."""
    return f"{len(names)} classes" if len(names) > MANY else listed(f"“{name}”" for name in names)


def _what(run: Subject) -> str:
    """What was trained, on whose data, and where those lay."""
    result = run.result
    data, name = result.dataset, result.model.get("name")
    size = f" with {parameters:,} trained numbers" if (parameters := result.model.get("parameters")) else ""
    task = TASKS[data.task].format(names=quoted(data.class_names))
    images = f"{data.sizes.get('train', 0):,} {whose(run)}"
    return f"A model ({name}{size}) was trained {task} on {images}, held by {hospitals(run)}."


def whose(run: Subject) -> str:
    """Images, and whose they are."""
    data = run.result.dataset
    if data.synthetic:
        return "images that a program drew and that show nobody"
    if run.published:
        return f"images of the published data set {data.title}"
    if run.deployed:
        return "images that hospitals hold themselves"
    return "images that the run's owner brought" + ("" if data.title == NAMELESS else f" (“{data.title}”)")


def hospitals(run: Subject) -> str:
    """How many, and what they were."""
    many = "one hospital" if run.num_clients == 1 else f"{run.num_clients} hospitals"
    if run.deployed:
        return f"{many}, each on a machine of its own"
    named = run.option("partition") == "site"
    kind = "that the data name and one machine simulated" if named else "that one machine simulated"
    return f"{many} {kind}"


def _quality(run: Subject) -> str:
    """How good it is, beside always answering the most frequent class."""
    test, data = run.result.test, run.result.dataset
    accuracy = test.get("accuracy_at_threshold", Interval(value=None))
    if not run.owner:
        return "How good it is stands in the owner's view alone, because epsilon does not cover figures on test images."
    if accuracy.value is None:
        return "Nobody has measured how good it is: this run had no test images of its own."
    auc = test.get("auc", Interval(value=None))
    what = "its answers, label by label," if data.task == "multilabel" else "its answers"
    majority = run.result.majority_accuracy
    than = f", where {usual(run)} is right in {number(majority, True)}"
    beside = "" if majority is None else than
    ranks = "" if auc.value is None else f"; its AUC is {spoken(auc, False)}, where 0.5 is luck and 1 is perfect"
    return (
        f"On {data.sizes.get('test', 0):,} test images {what} are right in {spoken(accuracy)}{beside}"
        f"{verdict(accuracy, majority)}{ranks}."
    )


def usual(run: Subject) -> str:
    """What to do better than."""
    several = run.result.dataset.task == "multilabel"
    return "always giving each label's more frequent answer" if several else "always answering the most frequent class"


def verdict(accuracy: Interval, majority: float | None) -> str:
    """Whether that is more than the most frequent class gives, beyond the interval."""
    if majority is None or accuracy.low is None or accuracy.high is None:
        return ""
    if accuracy.low > majority:
        return ", so it has learnt something"
    return (
        ", which is right more often"
        if accuracy.high < majority
        else ", so within the interval it is not shown to be better"
    )


def _privacy(run: Subject) -> str:
    """What holds, and towards whom."""
    if not run.private:
        nobody = ", and needs none, as its images show nobody"
        some = ": whoever has the model may learn what single training images show"
        return f"It has no privacy guarantee{nobody if run.result.dataset.synthetic else some}."
    privacy, meaning = run.result.privacy, run.of_unit()
    assert privacy.epsilon is not None
    assert privacy.delta is not None
    what = {
        "image": "each training image shows",
        "patient": "all training images of a patient at a hospital show",
        "hospital": "all training images of a hospital show",
    }[run.unit]
    seed = " as long as the seed of its noise stays secret," if privacy.noise_source == "seed" else ""
    return (
        f"What {what} is protected towards {towards(run)},{seed} by epsilon {told_epsilon(privacy.epsilon)} at "
        f"delta {in_full(privacy.delta)}: {found(meaning, run.unit)}{_patients(run)}."
    )


def in_full(delta: float) -> str:
    """0.00001, and not 1e-05."""
    return np.format_float_positional(delta, trim="-")


def found(meaning: Meaning, unit: str) -> str:
    """A bound as a reader can hold it."""
    share = round(100 * upwards(meaning.detected["0.01"], 2))
    most = "may find all that were (no limit)" if share == 100 else f"finds at most {share} of 100 that were"
    return f"an attacker who wrongly names 1 in 100 {unit}s that were not used {most}, where luck finds 1"


def towards(run: Subject) -> str:
    """For whom the epsilon of the run holds."""
    epsilon = run.result.privacy.epsilon
    if TRUSTED in run.observers:
        return "whoever gets the model, but not towards the server, which is trusted"
    with_server = (
        "whoever gets the model and"
        + ("" if run.deployed else ", were the hospitals on machines of their own,")
        + " the server"
    )
    if SERVER in run.observers:
        more = run.observers[OTHERS].epsilon if OTHERS in run.observers else None
        less = " (all other hospitals together can learn more)" if more and epsilon and more > epsilon else ""
        return f"{with_server}{less}"
    return f"{with_server} and all other hospitals"


def _patients(run: Subject) -> str:
    """A patient with several images, where an image is the unit."""
    patient = run.meanings.get("patient")
    if run.unit == "image" and patient is None and not run.result.dataset.synthetic:
        return "; for a patient with several images nothing is bounded"
    if run.unit != "image" or patient is None or patient.epsilon == run.result.privacy.epsilon:
        return ""
    share = round(100 * upwards(patient.detected["0.01"], 2))
    most = "it may find all, which is no protection" if share == 100 else f"it finds at most {share}"
    return f"; of 100 patients with all their images {most}"


ANSWER: tuple[Rule, ...] = (_what, _quality, _privacy)


def _unfinished(run: Subject) -> str | None:
    status = run.result.status
    if status == "finished":
        return None
    why = f" ({run.result.error})" if run.result.error else ""
    return f"The run did not finish: {status.replace('_', ' ')}{why}. All figures are of what it had reached."


def _synthetic(run: Subject) -> str | None:
    drawn = "SYNTHETIC: all images were drawn by a program and show no patient; figures say nothing of medicine."
    return drawn if run.result.dataset.synthetic else None


def _seeded(run: Subject) -> str | None:
    seeded = run.result.privacy.noise_source == "seed"
    words = "NOISE FROM THE SEED: whoever knows the run's seed can take the noise off. For studies, not for release."
    return words if seeded else None


def _noise(run: Subject) -> str | None:
    noise = run.result.privacy.noise
    return f"NOISE NOT AS PLANNED: {'; '.join(noise.doubts)}." if noise is not None and noise.doubts else None


def _against(run: Subject) -> str | None:
    said = [f"{each.observer}: {'; '.join(each.against)}" for each in run.result.attacks if each.against]
    return f"AN ATTACK SPEAKS AGAINST THE CLAIM: {' | '.join(said)}." if said else None


def _degenerate(run: Subject) -> str | None:
    same = "Every test image gets the same answer: the model tells nothing apart."
    return same if run.result.degenerate else None


def _overspent(run: Subject) -> str | None:
    privacy = run.result.privacy
    if privacy.epsilon is None or privacy.target_epsilon is None or privacy.epsilon <= privacy.target_epsilon:
        return None
    return (
        f"More was spent than planned: epsilon {privacy.epsilon:.3f} where {privacy.target_epsilon:g} was the target."
    )


def _ledgers(run: Subject) -> str | None:
    off = [each.whose for each in run.differing()]
    return f"LEDGER AND RESULT DIFFER: {listed(off)}. See the hospitals' annex." if off else None


def _receipts(run: Subject) -> str | None:
    bad = [each.hospital for each in run.receipts if each.signed is False]
    return f"A RECEIPT'S SIGNATURE DOES NOT HOLD: {listed(bad)}." if bad else None


FIRST: tuple[Rule, ...] = (
    _unfinished, _synthetic, _seeded, _noise, _against, _degenerate, _overspent, _ledgers, _receipts,
)  # fmt: skip
