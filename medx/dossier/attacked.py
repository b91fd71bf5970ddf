"""What was tried against the run, and what that found: the chapter ``attacks``."""

from collections.abc import Iterator
from dataclasses import replace

from medx.dossier.record import Rule
from medx.dossier.subject import Subject
from medx.report.attacks import NOT_TRIED, canary_table
from medx.report.cells import Table
from medx.report.rows import Run
from medx.report.section import Material
from medx.report.study import Grid, Study

OF_A_STUDY = ("data", "model", "runs")  # columns that tell several runs apart


def _untried(run: Subject) -> str | None:
    if not run.owner or run.result.attacks:
        return None
    return (
        "No attack was tried on this run, so nobody has looked here at what it gives away in fact. `attack=standard` "
        "tries canaries on a copy of a run after it; `medx audit` does so for a configuration; `medx membership` asks "
        "who was among the training images."
    )


def _tried(run: Subject) -> str | None:
    attacks = run.result.attacks
    if not attacks:
        return None
    what = "hospitals" if run.unit == "hospital" else "images"
    return (
        f"Canaries were tried: {max(each.trials for each in attacks)} {what} of which chance decided "
        "whether they were trained on, in a copy of the run, and each observer had to tell which."
    )


def _below(run: Subject) -> str | None:
    found = [each for each in run.result.attacks if each.claimed is not None]
    if not found or any(each.against for each in run.result.attacks):
        return None
    told = "; ".join(
        f"{each.observer}: epsilon of at least {each.found or 0:.2f} shown, {each.claimed:.2f} claimed"
        for each in found
    )
    return f"Nothing that was found speaks against the claim. {told[0].upper()}{told[1:]}."


def _beyond(run: Subject) -> str | None:
    said = [f"{each.observer}: {'; '.join(each.against)}" for each in run.result.attacks if each.against]
    return f"What was found speaks AGAINST the claim: {' | '.join(said)}." if said else None


def _unclaimed(run: Subject) -> str | None:
    free = [each.observer for each in run.result.attacks if each.claimed is None]
    return f"Towards {', '.join(free)} nothing is claimed, so nothing could be refuted." if free else None


def _lower(run: Subject) -> str | None:
    proves = "What an attack shows is a lower bound: below the claim it proves nothing, as another may show more."
    return proves if run.result.attacks else None


def _left(run: Subject) -> str | None:
    return NOT_TRIED if run.result.attacks else None


def _attacks_held(run: Subject) -> str | None:
    return None if run.owner else "Whether attacks were tried, and what they found, is in the owner's view alone."


ATTACKS: tuple[Rule, ...] = (_untried, _tried, _below, _beyond, _unclaimed, _lower, _left, _attacks_held)


def material(run: Subject) -> Material:
    """The run as the report's tables and figures take it."""
    study = Study(title=run.name, question="", seeds=[0], grids=[Grid(role="utility", overrides={})])
    return Material(study, [Run(run.number, run.name, ("utility",), run.result)])


def attack_tables(run: Subject) -> Iterator[Table]:
    """Claim, meaning and what canaries found, as a report has it."""
    if run.result.attacks:
        found = canary_table(material(run))
        kept = [index for index, name in enumerate(found.header) if name not in OF_A_STUDY]
        header, *rows = ([line[index] for index in kept] for line in (found.header, *found.rows))
        yield replace(found, header=header, rows=rows)
