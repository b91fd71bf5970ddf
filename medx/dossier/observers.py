"""Who learns what of this run, and what epsilon leaves out: the chapters ``observers`` and ``uncovered``."""

from collections.abc import Iterator

from medx.dossier.record import Rule
from medx.dossier.subject import Subject
from medx.privacy.spending import TRUSTED
from medx.report.cells import Row, Table
from medx.report.words import listed

SEES, LEFT_OUT, WEIGHTS = "Who sees what: ", "Not covered: ", "Public weights: "  # how lines of the statement begin
# What the server learns, and what other hospitals and whoever gets the models: docs/threat_model.md, by mechanism and
# whether single updates are hidden.
ROWS: dict[tuple[str, bool], tuple[str, str]] = {
    ("none", False): (
        "every hospital's exact model of every round",
        "exact global models; no epsilon",
    ),
    ("none", True): (
        "the exact sum of the survivors' updates; no epsilon",
        "exact global models; all but one hospital can subtract their own part, and have the last one's",
    ),
    ("local_dp", False): (
        "every hospital's noised model; epsilon",
        "the same; epsilon, whoever colludes",
    ),
    ("local_dp", True): (
        "the sum of the noised updates; epsilon",
        "the same; epsilon, whoever colludes",
    ),
    ("distributed_dp", False): (
        "every hospital's sum under its own share of the noise: it is trusted. Its epsilon is in the statement",
        "the noised sum: epsilon, or less, for the outside; all other hospitals together: a larger epsilon, in the "
        "statement",
    ),
    ("distributed_dp", True): (
        "the noised sum and nobody's part: epsilon, also with assumed_colluders of the hospitals",
        "the noised sum: epsilon, or less, for the outside; all other hospitals together: a larger epsilon, in the "
        "statement",
    ),
    ("central_dp", False): (
        "every drawn hospital's clipped update, without noise, and who was drawn: it is trusted, and there is no "
        "epsilon "
        "towards it",
        "noised means: epsilon; they must not learn who was drawn",
    ),
    ("central_dp", True): (
        "the noised sum: epsilon, also with assumed_colluders; it sees who takes part, so all hospitals do "
        "(fraction_clients=1)",
        "epsilon towards the outside; all other hospitals together: a larger epsilon, in the statement",
    ),
}


def _in_simulation(run: Subject) -> str | None:
    if run.deployed:
        return None
    return (
        "This was a simulation: whoever ran it had all images, keys and noise, and nothing was hidden from them. The "
        "table says what a deployment with these parameters hides."
    )


def _server(run: Subject) -> str | None:
    lines = [line for line in run.result.privacy.statement.splitlines() if line.startswith(SEES)]
    if not lines:
        return None
    said = lines[0].removeprefix(SEES)
    return f"{said[0].upper()}{said[1:].rstrip('.')}."


def _colluders(run: Subject) -> str | None:
    aggregation = run.result.privacy.aggregation
    if aggregation is None or not aggregation.secure or aggregation.tolerated_colluders is None:
        return None
    curious, lying = (aggregation.tolerated_colluders.get(kind) for kind in ("curious", "lying"))
    many = "hospital" if curious == 1 else "hospitals"
    return (
        f"The sum hides single hospitals from a server that follows the protocol with up to {curious} colluding "
        f"{many}, and from one that lies with up to {lying}; beyond that, "
        + ("noise is all that is left." if run.private else "nothing is left.")
    )


def _trusted(run: Subject) -> str | None:
    trusted = TRUSTED in run.observers and "trusted" not in (_server(run) or "")  # the statement says so itself
    return (
        "The server is trusted: what it sees of a hospital has less noise than is claimed, or none."
        if trusted
        else None
    )


def _public(run: Subject) -> str | None:
    sizes = bool(run.result.privacy.clients)
    words = "Everybody may know the configuration, how many hospitals there are, and how many training images each has."
    return words if sizes else None


OBSERVERS: tuple[Rule, ...] = (_in_simulation, _server, _colluders, _trusted, _public)


def observer_tables(run: Subject) -> Iterator[Table]:
    """The run's row of the threat model."""
    row = ROWS.get((run.result.privacy.mechanism, run.secure))
    if row is None:
        return
    who = ("the server", "the other hospitals together, and whoever receives the models")
    rows = [
        Row({"who": each, "learns": learns}, {"who": each, "learns": learns})
        for each, learns in zip(who, (_plain(run, learns) for learns in row), strict=True)
    ]
    if not run.deployed:
        told = {"who": "whoever ran this simulation", "learns": "everything"}
        rows.append(Row(dict(told), told))
    note = "From the threat model (docs/threat_model.md), by this run's mechanism and aggregation."
    yield Table.of("observers", "By who looks", note, rows)


def _plain(run: Subject, learns: str) -> str:
    """A row without keys of the configuration, and with how many colluders this run assumes."""
    assumed = run.result.config.get("privacy", {}).get("assumed_colluders") or 0
    told = f", also where {assumed} of the hospitals tell it their own part" if assumed else ""
    for key in (", also with assumed_colluders of the hospitals", ", also with assumed_colluders"):
        learns = learns.replace(key, told)
    return learns.replace(" (fraction_clients=1)", "")


def _statement(run: Subject) -> str | None:
    lines = [line for line in run.result.privacy.statement.splitlines() if line.startswith(LEFT_OUT)]
    return f"Epsilon does not cover {lines[0].removeprefix(LEFT_OUT).rstrip('.')}." if run.private and lines else None


def _all_uncovered(run: Subject) -> str | None:
    return None if run.private else "There is no epsilon, so nothing of this run is covered by one."


def _figures(run: Subject) -> str | None:
    if not run.owner:
        return None
    data = run.result.dataset
    shown = [
        *(["all that was measured on test images"] if run.result.test else []),
        *(["counts by class"] if data.class_counts else []),
        *(["counts by group of people"] if run.result.subgroups else []),
        *(["a digest of the data"] if data.content_hash else []),
    ]
    if not shown:
        return None
    return (
        f"This page shows what depends on single images without any noise: {listed(shown)}. `--released` makes a page "
        "without that."
    )


def _traffic(run: Subject) -> str | None:
    if not run.secure:
        return None
    return (
        "Who records the hospitals' messages and breaks their keys one day, by a quantum computer, has what the masks "
        "hid; noise stays."
    )


def _abstained(run: Subject) -> str | None:
    rounds = run.result.rounds
    away = sum(each.abstained + each.failed for each in rounds)
    if not away:
        return None
    return (
        f"In {away} cases a hospital abstained or did not answer. Whether one abstains can depend on its images, and "
        "is seen."
    )


def _weights(run: Subject) -> str | None:
    lines = [line for line in run.result.privacy.statement.splitlines() if line.startswith(WEIGHTS)]
    return lines[0] if lines else None


UNCOVERED: tuple[Rule, ...] = (_statement, _all_uncovered, _figures, _traffic, _abstained, _weights)
