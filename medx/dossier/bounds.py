"""What epsilon and delta mean of this run, in words that need no theory: the chapter ``meaning``."""

from collections.abc import Iterator

from medx.dossier.record import Rule
from medx.dossier.subject import Subject
from medx.privacy.meaning import UNKNOWN, in_words, upwards
from medx.report.cells import Row, Table
from medx.results import NONE_FROM, Meaning, told_epsilon


def _epsilon(run: Subject) -> str | None:
    privacy = run.result.privacy
    if privacy.epsilon is None:
        return None
    what = {"image": "what one image shows", "patient": "all images of one patient", "hospital": "all of one hospital"}
    return (
        f"Epsilon says how far {what[run.unit]} can change what anybody sees of the run: 0 would be not at all, and "
        "the "
        f"larger, the more. Here it is {told_epsilon(privacy.epsilon)}. How many images a hospital has is no secret."
    )


def _delta(run: Subject) -> str | None:
    delta = run.result.privacy.delta
    if not run.private or delta is None:
        return None
    many = f"{1 / delta:,.0f}"
    return f"Delta is what epsilon may miss: a chance of 1 in {many} that is allowed on top of each of its promises."


def _large_delta(run: Subject) -> str | None:
    privacy = run.result.privacy
    patients = sum(each.num_patients or 0 for each in privacy.clients)
    images = run.result.dataset.sizes.get("train", 0)
    count = {"hospital": run.num_clients, "patient": patients}.get(run.unit, images)
    if privacy.epsilon is None or privacy.delta is None or privacy.delta * count < 1:
        return None
    return f"Delta is large here: with {count:,} {run.unit}s it leaves room for one of them to be shown outright."


def _image(run: Subject) -> str | None:
    return _worded(run, "image") if run.private else None


def _patient(run: Subject) -> str | None:
    told = run.private and "patient" in run.meanings and not run.result.dataset.synthetic
    return _worded(run, "patient") if told else None


def _image_of_patient(run: Subject) -> str | None:
    if run.unit != "patient" or run.result.dataset.synthetic:
        return None
    if run.result.privacy.patient_images == 1:
        return (
            "Nobody has more than one image at a hospital, so a patient's bound, which is tighter, is the image's too."
        )
    return (
        "The bound of one image is looser than its patient's: an image may turn what its patient adds into the "
        "opposite, so it counts as if all images of that patient were exchanged for others."
    )


def _unbounded(run: Subject) -> str | None:
    if not run.private or run.result.dataset.synthetic or "patient" in run.meanings:
        return None
    return (
        "For one patient nothing is bounded, as the data do not tell which images are of one: that is no protection of "
        "whoever has several."
    )


def _worded(run: Subject, unit: str) -> str | None:
    """The statement's plain sentences."""
    for text in in_words(run.meanings):
        if text.startswith(f"In other words, for one {unit}:"):
            return text.replace("In other words, f", "F", 1)
    return None


def _no_limit(run: Subject) -> str | None:
    meaning = run.of_unit() if run.private else None
    if meaning is None or meaning.detected["0.01"] < 1:
        return None
    return f"At this epsilon the bound allows everything: for one {run.unit} it is no protection."


def _several(run: Subject) -> str | None:
    groups = run.result.privacy.epsilon_by_group
    pair = groups.get("2")
    if run.unit != "image" or "patient" in run.meanings or pair is None:
        return None
    ten = f", of ten {told_epsilon(groups['10'])}" if "10" in groups else ""
    return (
        f"Somebody with several images is protected less: for the images of one hospital, of two together epsilon is "
        f"{told_epsilon(pair)}{ten}."
    )


def _nothing(run: Subject) -> str | None:
    if run.private or run.result.dataset.synthetic:
        return None
    return "There is no epsilon: nothing limits what the model, and whoever saw the updates, can say of one image."


def _nobody(run: Subject) -> str | None:
    shows = "The images show nobody, so nobody's privacy is at stake."
    return shows if run.result.dataset.synthetic else None


def _accountants(run: Subject) -> str | None:
    found = run.result.privacy.epsilon_by_accountant
    if not run.private or len(found) < 2:
        return None
    told = ", ".join(f"{name.upper()} {told_epsilon(value)}" for name, value in found.items())
    return (
        f"Epsilon is composed over every step that was executed, of all rounds, and computed in {len(found)} ways: "
        f"{told}. All are upper bounds."
    )


def _heard(run: Subject) -> str | None:
    noise = run.result.privacy.noise
    if noise is None or noise.doubts:
        return None
    return f"The noise was looked at as it was added ({noise.values:,} numbers): chance explains all of it."


def _seeded(run: Subject) -> str | None:
    seeded = run.result.privacy.noise_source == "seed"
    return (
        "The noise can be made again from the run's seed: to whoever knows it, there is no protection."
        if seeded
        else None
    )


MEANING: tuple[Rule, ...] = (
    _epsilon, _delta, _large_delta, _image, _image_of_patient, _patient, _unbounded, _no_limit, _several,
    _nothing, _nobody, _accountants, _heard, _seeded,
)  # fmt: skip


def meaning_tables(run: Subject) -> Iterator[Table]:
    """By whom it is for, and by who looks."""
    if not run.private:
        return
    note = (
        "Upper bounds for every attack. Found: of 100 that were used, how many are told at most by whoever wrongly "
        "takes 1 in 100 that were not; luck finds 1. Guessed: how often somebody is right at most who would be 10 "
        "times "
        "in 100 without the run. 100 is no limit."
    )
    by_unit = run.result.privacy.epsilon_by_unit
    units = {unit: run.meanings.get(unit) for unit in dict.fromkeys([*run.meanings, *by_unit])}
    if run.unit == "hospital":  # whose bound an image has
        units["hospital"] = run.of_unit()
    rows = [_bound("for one", unit, meaning, by_unit.get(unit)) for unit, meaning in units.items()]
    if "patient" not in units and not run.result.dataset.synthetic:  # between image and hospital
        rows.insert(1, Row({"for one": "patient"}, {"for one": "patient", "epsilon": UNKNOWN.partition(":")[0]}))
    yield Table.of("bounds", "For one image, one patient, one hospital", note, rows)
    looking = [_bound("towards", who, meaning, meaning.epsilon) for who, meaning in run.observers.items()]
    yield Table.of(
        "bounds_by_observer", "Where it differs by who looks", f"Of one {run.unit}, with columns as above.", looking
    )


def _bound(column: str, who: str, meaning: Meaning | None, epsilon: float | None) -> Row:
    known = epsilon if meaning is None or meaning.epsilon is None else meaning.epsilon
    told = "none" if known is None else "above 1000" if known >= NONE_FROM else told_epsilon(known)
    data: dict[str, str | float | None] = {column: who, "epsilon": known}
    cells = {column: who, "epsilon": told}
    if meaning is not None:
        shares = {
            "found_at_1_percent": meaning.detected["0.01"],
            "guessed_from_10_percent": meaning.reconstructed["0.1"],
        }
        data |= shares | {"advantage": meaning.advantage}
        cells |= dict(zip(("found of 100", "guessed of 100"), map(_of_100, shares.values()), strict=True))
    elif known is not None and known >= NONE_FROM:
        cells |= {"found of 100": "100", "guessed of 100": "100"}
    return Row(data, cells)


def _of_100(share: float) -> str:
    return f"≤ {100 * upwards(share, 3):.1f}"
