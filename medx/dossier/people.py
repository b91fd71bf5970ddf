"""What was trained, on whose data, and who is in it: chapters ``training`` and ``people``."""

from collections.abc import Iterator
from typing import Any

from medx.dossier.answer import quoted
from medx.dossier.operating import shown
from medx.dossier.record import Rule
from medx.dossier.subject import Subject
from medx.report.cells import DASH, Row, Table
from medx.report.study import partition_name
from medx.report.words import MIXES
from medx.results import Interval

ADDS = {
    "local_dp": "Each hospital {cut} what any {unit} can change and added noise before anything left it.",
    "distributed_dp": "Each hospital {cut} what any {unit} can change and added its share of noise; only the sum of "
    "all hospitals' answers carries the whole noise.",
    "central_dp": "What any hospital can change was cut, and noise was added to the sum of the hospitals' answers.",
    "none": "No noise was added to anything.",
}


def _task(run: Subject) -> str | None:
    data = run.result.dataset
    words = {
        "binary": "Of an image the model says how probable {second} is; the rest is {first}.",
        "multiclass": "Of an image the model says how probable each of {names} is; they exclude one another.",
        "ordinal": "Of an image the model says how probable each grade is, from {first} up to {last}.",
        "multilabel": "Of an image the model says for each of {names} how probable it is; several may hold at once.",
    }[data.task]
    names = [f"“{name}”" for name in data.class_names]
    return words.format(names=quoted(data.class_names), first=names[0], second=names[min(1, len(names) - 1)],
                        last=names[-1])  # fmt: skip


def _drawn(run: Subject) -> str | None:
    return "Every image was drawn by a program. None shows a person." if run.result.dataset.synthetic else None


def _published(run: Subject) -> str | None:
    data = run.result.dataset
    if not run.published:
        return None
    official = "in its official file" if data.public else "in a file other than the official one that MedX knows"
    return (
        f"The images are of a published data set, {data.title}, {official}. Whether the people in it were asked, "
        "those who "
        "published it must say; the run does not know."
    )


def _own(run: Subject) -> str | None:
    data = run.result.dataset
    if data.synthetic or run.published:
        return None
    return (
        "The images are not of a data set that MedX knows as published, so they count as their owners' own. By which "
        "right they were used, and whether anybody consented, this run does not know: whoever holds them must say."
    )


def _simulated(run: Subject) -> str | None:
    if run.deployed:
        return None
    return f"The {'hospital was' if run.num_clients == 1 else 'hospitals were'} simulated: one machine held all images."


def _deployed(run: Subject) -> str | None:
    return "Each hospital trained on a machine of its own, and no image left it." if run.deployed else None


def _dealt(run: Subject) -> str | None:
    name = run.option("partition")
    if run.deployed or name is None or name == "site":
        return None
    how = MIXES.get(name, "")
    dealt = partition_name(run.result.config)
    told = f"{dealt}; {how}" if how and dealt != name else how or dealt
    return f"The hospitals are not real ones: a program dealt the images out ({told})."


def _sites(run: Subject) -> str | None:
    named = not run.deployed and run.option("partition") == "site"
    return "The data tell which hospital an image is of." if named else None


def _rounds(run: Subject) -> str | None:
    count = len(run.result.rounds)
    federation = run.option("federation")
    how = f" ({federation})" if federation else ""
    rounds = "one round" if count == 1 else f"{count} rounds"
    return f"It took {rounds}{how}, in which hospitals sent what they had computed and no image." if count else None


def _noise(run: Subject) -> str | None:
    words = ADDS.get(run.result.privacy.mechanism)
    cut = "bounded" if run.option("trainer") == "output_perturbation" else "cut"  # by a ridge: nothing is clipped
    return None if words is None else words.format(unit=run.unit, cut=cut)


def _pixels(run: Subject) -> str | None:
    data = run.result.dataset
    colour = "grey" if data.num_channels == 1 else "coloured"
    return f"The model sees images of {data.image_size} by {data.image_size} pixels, {colour}."


TRAINING: tuple[Rule, ...] = (
    _task, _drawn, _published, _own, _simulated, _deployed, _sites, _dealt, _rounds, _noise, _pixels,
)  # fmt: skip


def _patients(run: Subject) -> str | None:
    most = run.result.privacy.patient_images
    if most is None or run.result.dataset.synthetic:
        return None
    return f"The data tell which images are of one patient: at one hospital a patient has at most {most} in training."


def _no_patients(run: Subject) -> str | None:
    unknown = run.private and run.result.privacy.patient_images is None and not run.result.dataset.synthetic
    known = any(each.num_patients is not None for each in run.result.privacy.clients)
    if not unknown or known:
        return None
    return "The run does not know which images are of one patient, so nobody can say here how many people are in it."


def _shared(run: Subject) -> str | None:
    data = run.result.dataset
    found = [
        f"{count} of {data.sizes[split]} {split} images"
        for split, count in data.shared_patients.items()
        if count and data.sizes.get(split)
    ]
    if not found:
        return None
    cut = run.result.threshold is not None and data.shared_patients.get("validation")
    chosen = ", and the cut that was chosen on validation may suit new patients less" if cut else ""
    return f"{' and '.join(found)} are of patients who are in training too, so figures on them are too good{chosen}."


def _mix(run: Subject) -> str | None:
    data = run.result.dataset
    counts = data.class_counts.get("train", [])
    if data.task == "multilabel" or not sum(counts) or max(counts) == min(counts):
        return None
    most, least = (data.class_names[counts.index(pick(counts))] for pick in (max, min))
    share = 100 * max(counts) / sum(counts)
    return f"Of 100 training images {share:.0f} are “{most}”; fewest are “{least}”, with {min(counts):,} images."


def _unequal(run: Subject) -> str | None:
    sizes = [each.num_records for each in run.result.privacy.clients]
    if len(sizes) < 2 or max(sizes) < 2 * max(1, min(sizes)):
        return None
    return f"Hospitals are unequal: the largest has {max(sizes):,} training images, the smallest {min(sizes):,}."


def _no_groups(run: Subject) -> str | None:
    if not run.owner or run.result.subgroups or run.result.dataset.synthetic:
        return None
    return (
        "No groups of people were told apart, by sex or age or anything else, so this page cannot say whether the "
        "model serves one worse than another (`dataset.subgroups` names the columns, where the data have any)."
    )


def _no_counts(run: Subject) -> str | None:
    counted = bool(run.result.dataset.class_counts) or not run.owner
    return None if counted else "How many images of each class there are stays at the hospitals."


def _held_back(run: Subject) -> str | None:
    held = "Counts by class, and what is known of groups of people, are in the owner's view alone."
    return None if run.owner else held


PEOPLE: tuple[Rule, ...] = (
    _patients, _no_patients, _mix, _unequal, _shared, _no_groups, _no_counts, _held_back,
)  # fmt: skip


def people_tables(run: Subject) -> Iterator[Table]:
    """Images by split and class, by hospital, and by group of people."""
    data = run.result.dataset
    rows = []
    for split, size in data.sizes.items():
        counts = data.class_counts.get(split, [])
        known = dict(zip(data.class_names, counts, strict=False))
        rows.append(Row({"split": split, "images": size} | {f"class {name}": count for name, count in known.items()},
                        {"part": split, "images": f"{size:,}"} | texts(known)))  # fmt: skip
    yield Table.of("images", "Images by part and class", _parts(run), rows)
    yield Table.of("hospitals", "Training images by hospital", "", _hospitals(run))
    note = "Test images by what the data's own column says of the person; `unknown`: it says nothing."
    yield Table.of("groups", "Groups of people in the test images", note, _groups(run))


def _parts(run: Subject) -> str:
    """What each part was for in this run."""
    chosen = run.result.threshold is not None or run.result.thresholds is not None
    said = ["The model learnt from train."]
    said += ["Where it answers was chosen on validation."] if chosen else []
    said += ["It is measured on test."] if run.result.test else []
    said += ["An image may have several labels, or none."] if run.result.dataset.task == "multilabel" else []
    return " ".join(said)


def _hospitals(run: Subject) -> Iterator[Row]:
    counts: dict[int, list[int]] = {each.client: each.class_counts for each in run.result.clients}
    for each in run.result.privacy.clients:
        known = dict(zip(run.result.dataset.class_names, counts.get(each.client, []), strict=False))
        patients = {} if each.num_patients is None else {"patients": each.num_patients}
        data: dict[str, Any] = {"hospital": each.client, "images": each.num_records} | patients
        cells = {"hospital": hospital(run, each.client), "images": f"{each.num_records:,}"} | texts(patients | known)
        yield Row(data | {f"class {name}": count for name, count in known.items()}, cells)


def hospital(run: Subject, client: int) -> str:
    """Its number, and its name where receipts or the data tell one."""
    if len(run.receipts) == run.num_clients:
        return f"{client} {run.receipts[client].hospital}"
    return next((each.title for each in run.result.clients if each.client == client), str(client))


def texts(counts: dict[str, int]) -> dict[str, str]:
    """Counts for a reader."""
    return {name: f"{count:,}" for name, count in counts.items()}


def _groups(run: Subject) -> Iterator[Row]:
    for group in run.result.subgroups:
        known = dict(zip(run.result.dataset.class_names, group.class_counts, strict=True))
        data = {"column": group.column, "group": group.value}
        yield Row(data | {f"class {name}": count for name, count in known.items()},
                  data | {"images": f"{sum(group.class_counts):,}"} | texts(known))  # fmt: skip


def measured_rows(named: list[tuple[dict[str, Any], list[int], dict[str, Interval]]]) -> Iterator[Row]:
    """AUC and balanced accuracy of parts of the test images: what each is, its counts by class, its metrics."""
    for data, counts, metrics in named:
        unknown = Interval(value=None)
        auc, balanced = (metrics.get(name, unknown) for name in ("auc", "balanced_accuracy_at_threshold"))
        numbers = {"auc": auc.value, "balanced_accuracy_at_threshold": balanced.value, "images": sum(counts)}
        yield Row(data | numbers,
                  {name: str(value) for name, value in data.items()}
                  | {"test images": f"{sum(counts):,}" if counts else DASH, "AUC": shown(auc, False),
                     "balanced accuracy": shown(balanced)})  # fmt: skip
