"""A study's runs to its report: sections of words, tables and figures, written as HTML, Markdown, CSV and pictures."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from medx.figures import Shown
from medx.report import words
from medx.report.answer import answer, facts
from medx.report.attacks import speaking_against
from medx.report.cells import Table, runs_text
from medx.report.committed import LEFT_OUT, PAGE_FILE, STUDY_FILE, read_committed
from medx.report.published import published_table
from medx.report.rows import Run, with_none
from medx.report.section import Material, Section
from medx.report.sections import sections
from medx.report.study import Study
from medx.schema import MedxError

TEMPLATES = Path(__file__).parent / "templates"
NUMBERS = re.compile(r"[≤≥]? ?-?[\d.]+( (±|of|to) [\d.]+)?( %)?")
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


@dataclass(frozen=True)
class Report:
    """Everything that is rendered. ``frame`` has a row a run; ``gaps`` says what is missing and why.

    ``answer`` and ``facts`` are sentences; ``left_out`` is one where no run is at hand.
    """

    study: Study
    command: str
    answer: list[str]
    facts: list[str]
    left_out: str | None
    frame: pd.DataFrame
    sections: list[Section]
    gaps: list[str]
    synthetic: str | None
    warning: str | None

    def tables(self) -> list[Table]:
        """All tables, in order."""
        return [table for section in self.sections for table in section.tables]

    def pictures(self) -> list[Shown]:
        """All figures, in order."""
        return [picture for section in self.sections for picture in section.pictures]


def build_report(study: Study, command: str, runs: Sequence[Run], gaps: Sequence[str], *, draw: bool = True) -> Report:
    """Make every table, and where ``draw`` every figure, from finished runs; at least one run is needed."""
    return report_of(Material(study, runs), command, gaps, draw=draw)


def report_of(made: Material, command: str, gaps: Sequence[str], *, draw: bool = True) -> Report:
    """The same of runs, or of what is committed in their place."""
    kept = []
    for section in sections(made):
        found = [table for table in section.tables if table.rows]
        pictures = list(section.pictures) if draw else []
        if found or pictures or section.statements or section.points or section.always:
            kept.append(replace(section, words=list(section.words), tables=found, pictures=pictures))
    frame = made.frame
    mixed = sorted({str(git) for git in frame["git"].dropna() if git})
    gaps = list(gaps) + ([f"runs of {len(mixed)} revisions of the code: {', '.join(mixed)}"] if len(mixed) > 1 else [])
    degenerate = frame["run"][frame["degenerate"].fillna(False).astype(bool) & ~frame["roles"].str.contains("overhead")]
    if len(degenerate):
        which = f"run {runs_text(degenerate)} is" if len(degenerate) == 1 else f"runs {runs_text(degenerate)} are"
        gaps += [f"{which} DEGENERATE: every test image gets the same answer"]
    warning = next((run.result.privacy.warning for run in made.runs if run.result.privacy.warning), None)
    gaps += list(speaking_against(made))
    left_out = None if made.committed is None else LEFT_OUT
    return Report(
        *(made.study, command, list(answer(made)), list(facts(made)), left_out, frame, kept, gaps),
        *(words.synthetic_warning(frame), warning),
    )


def write_report(report: Report, folder: Path) -> Path:
    """Write ``index.html``, ``report.md``, ``results.csv``, ``tables/`` and ``figures/``; gives the page's path."""
    for name in ("tables", "figures"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for old in (folder / name).iterdir():
            old.unlink()
    for table in report.tables():
        table.data.to_csv(folder / "tables" / f"{table.name}.csv", index=False)
    for picture in report.pictures():
        picture.save(folder / "figures")
    write_csv(report.frame, folder / "results.csv")
    (folder / "report.md").write_text(render(report, "report.md.j2"))
    page = folder / "index.html"
    page.write_text(render(report, "index.html.j2"))
    return page


def publish(report: Report, folder: Path, readme: Path) -> None:
    """Write what is committed: the study's ``results.csv``, ``README.md`` and page, and the table of the README."""
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.csv"
    write_csv(report.frame, results)
    text = render(report, "experiment.md.j2")
    (folder / "README.md").write_text(with_results(text, results, "experiment.md.j2") if BEGIN in text else text)
    if report.study.name == "reference_report" and readme.exists() and BEGIN in readme.read_text():
        readme.write_text(with_results(readme.read_text(), results, str(readme), short=True))
    if (folder / STUDY_FILE).exists():
        write_page(folder)


def write_page(folder: Path) -> Path:
    """Write the page of what is committed in a study's folder beside it, as one file; gives its path."""
    made = read_committed(folder)
    page = folder / PAGE_FILE
    page.write_text(render(report_of(made, f"medx report experiments/{made.study.name}", []), "index.html.j2"))
    return page


def with_results(text: str, results: Path, name: str, *, short: bool = False) -> str:
    """Markdown with the table of a ``results.csv``, and of nothing else, between the two comments.

    Raises MedxError where the text, which is called ``name``, lacks them.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise MedxError(f"{name}: needs the lines {BEGIN} and {END} once each, around the results table")
    frame = with_none(pd.read_csv(results))
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{published_table(frame, short=short).markdown}\n{END}{rest.split(END)[1]}"


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """A row a run, six significant digits, so that the file is readable and its changes are."""
    frame.to_csv(path, index=False, float_format="%.6g")


def render(report: Report, template: str) -> str:
    """One of the templates, filled."""
    return environment(template).get_template(template).render(report=report)


def environment(template: str, *more: Path) -> Environment:
    """Where templates are filled, those in ``more`` folders too; text in HTML is escaped."""
    made = Environment(
        loader=FileSystemLoader([*more, TEMPLATES]),
        undefined=StrictUndefined,
        autoescape=template.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"cells": html_cell, "safe_svg": Markup, "code": html_code, "zip": zip}
    return made


def html_code(text: str) -> Markup:
    """Markdown's backticks as HTML."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def html_cell(text: str) -> Markup:
    """A cell whose interval goes on a line of its own, in small print; no number breaks inside."""
    head, bracket, rest = text.partition(" [")
    if not bracket or not head:
        return Markup(escape(_unbroken(text)))
    unit = " %" if rest.endswith("%") else ""
    return Markup("{}<small>[{}</small>").format(_unbroken(head + unit), rest.removesuffix(" %"))


def _unbroken(text: str) -> str:
    """``0.9 ± 0.1 %`` and ``2.1 of 3.7`` with spaces at which no line ends."""
    return text.replace(" ", "\N{NO-BREAK SPACE}") if NUMBERS.fullmatch(text) else text
