"""A dossier as one HTML page that loads nothing from elsewhere, as Markdown, and as JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import medx
from medx.dossier.chapters import KINDS, make_run, together
from medx.dossier.record import Dossier
from medx.dossier.subject import Subject
from medx.figures import Picture
from medx.report.page import environment

TEMPLATES = Path(__file__).parent / "templates"
Drawn = dict[int, dict[str, list[Picture]]]
BANNERS = {
    "owner": (
        "OWNER'S VIEW.",
        "It shows figures that epsilon does not cover, and is for whoever may see the images: a board, an officer, the "
        "hospitals. `medx dossier --released` makes the page without them.",
    ),
    "released": (
        "RELEASED VIEW.",
        "It is without the figures that epsilon does not cover; what is public, and what follows from who answered, is "
        "in it.",
    ),
}
SOURCES = (
    "Small print under each title: where its matter belongs in the model card (Mitchell et al. 2019), in TRIPOD+AI "
    "(Collins et al. 2024, by item) and in NIST SP 800-226 (Near et al. 2025). What these ask for and no run can know, "
    "such as consent, funding, eligibility and treatment, is not here: people must add it."
)


def make_dossier(runs: Sequence[Subject], made: str) -> Dossier:
    """All that the page says of these runs, at the time ``made``. One of the owner's makes it the owner's."""
    view = "owner" if any(run.owner for run in runs) else "released"
    return Dossier(
        made=made, medx=medx.__version__, view=view, together=together(runs), runs=[make_run(run) for run in runs]
    )


def as_html(dossier: Dossier, runs: Sequence[Subject]) -> str:
    """The page, with the figures of the runs."""
    drawn: Drawn = {run.number: {kind.key: _named(run, kind.pictures(run)) for kind in KINDS} for run in runs}
    return _filled(dossier, "dossier.html.j2", drawn)


def as_markdown(dossier: Dossier) -> str:
    """The same words and tables."""
    return _filled(dossier, "dossier.md.j2", {})


def as_json(dossier: Dossier) -> str:
    """For programs, as ``schema.json`` describes it."""
    return dossier.model_dump_json(indent=1) + "\n"


def _filled(dossier: Dossier, template: str, drawn: Drawn) -> str:
    made = environment(template, TEMPLATES)
    made.filters["unbroken"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")  # no line ends before it
    title = f"Dossier of {dossier.runs[0].name}" if len(dossier.runs) == 1 else f"Dossier of {len(dossier.runs)} runs"
    return made.get_template(template).render(
        dossier=dossier, title=title, banner=BANNERS[dossier.view], drawn=drawn, sources=SOURCES
    )


def _named(run: Subject, pictures: Iterable[Picture]) -> list[Picture]:
    """Pictures under names of this run's own, as ids on a page must differ."""
    return [replace(each, name=f"r{run.number}-{each.name}") for each in pictures]
