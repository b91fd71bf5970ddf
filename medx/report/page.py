"""A study's runs to its report: sections of words, tables and figures, written as HTML, Markdown, CSV and pictures."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from medx.figures import Picture
from medx.report import claim_tables, curves, effect_tables, figures, tables
from medx.report.rows import Run, make_frame
from medx.report.study import Study, dataset_name
from medx.report.tables import Table
from medx.report.words import FIRST, TITLES, limits, synthetic_warning, words_of
from medx.results import ExperimentResult

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Section:
    """One part of the report. ``key`` is its anchor."""

    key: str
    title: str
    words: str
    tables: list[Table] = field(default_factory=list)
    pictures: Iterable[Picture] = ()
    statements: dict[str, str] = field(default_factory=dict)
    points: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """Everything that is rendered. ``frame`` has a row a run; ``gaps`` says what is missing and why."""

    name: str
    study: Study
    command: str
    frame: pd.DataFrame
    sections: list[Section]
    gaps: list[str]
    synthetic: str | None
    warning: str | None

    def tables(self) -> list[Table]:
        """All tables, in order."""
        return [table for section in self.sections for table in section.tables]

    def pictures(self) -> list[Picture]:
        """All figures, in order."""
        return [picture for section in self.sections for picture in section.pictures]


def build_report(
    name: str, study: Study, command: str, runs: Sequence[Run], gaps: Sequence[str], *, draw: bool = True
) -> Report:
    """Make every table, and where ``draw`` every figure, from finished runs; at least one run is needed."""
    frame = make_frame(runs)
    results = {run.number: run.result for run in runs}
    contents = {key: make(frame, results, study) for key, make in CONTENTS.items()}
    sections = []
    for key, title in TITLES.items():
        section = contents.get(key, Section(key, "", ""))
        if key == "appendix":
            section = Section(key, "", "", tables=[tables.appendix_table(runs, frame)], statements=environments(runs))
        kept = [table for table in section.tables if not table.shown.empty]
        pictures = list(section.pictures) if draw else []
        if kept or pictures or section.statements or section.points:
            words = words_of(key, frame, study, {table.name for table in kept})
            sections.append(Section(key, title, words, kept, pictures, section.statements, section.points))
    mixed = sorted({git for git in frame["git"] if git})
    gaps = list(gaps) + ([f"runs of {len(mixed)} revisions of the code: {', '.join(mixed)}"] if len(mixed) > 1 else [])
    gaps += [f"run {row.run} is DEGENERATE: every test image gets the same answer"
             for row in frame.itertuples() if row.degenerate and "overhead" not in str(row.roles)]  # fmt: skip
    warning = next((run.result.privacy.warning for run in runs if run.result.privacy.warning), None)
    return Report(name, study, command, frame, sections, gaps, synthetic_warning(results), warning)


Results = dict[int, ExperimentResult]
Maker = Callable[[pd.DataFrame, Results, Study], Section]


def _datasets(frame: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(frame["dataset"]))


def _class_names(results: Results) -> dict[str, list[str]]:
    return {dataset_name(result.config): result.dataset.class_names for result in results.values()}


def _claim(frame: pd.DataFrame, results: Results, study: Study) -> Section:
    found = [] if study.claim is None else [claim_tables.claim_table(frame, study.claim, results)]
    return Section("claim", "", "", tables=found)


def _convergence(frame: pd.DataFrame, results: Results, study: Study) -> Section:
    drawn = (picture for name in _datasets(frame) for picture in figures.convergence_figures(frame, results, name))
    return Section("convergence", "", "", [claim_tables.convergence_table(frame, results)], drawn)


def _utility(frame: pd.DataFrame, results: Results, study: Study) -> Section:
    names = _class_names(results)
    found = [tables.utility_table(frame, name, len(names[name])) for name in _datasets(frame)]
    drawn = (
        picture
        for name in _datasets(frame)
        for picture in figures.frontier_figures(frame, name, len(names[name]), study.claim)
    )
    found += [effect_tables.ordinal_table(frame, names), effect_tables.selection_table(frame)]
    return Section("utility", "", "", [*found, tables.images_table(frame), tables.paired_table(frame)], drawn)


def _overhead(frame: pd.DataFrame, results: Results, study: Study) -> Section:
    found = [effect_tables.step_overhead_table(frame), effect_tables.sum_overhead_table(frame)]
    drawn = figures.overhead_figures({table.name: table.data for table in found})
    return Section("overhead", "", "", found, drawn)


def _budget(frame: pd.DataFrame, results: Results, study: Study) -> Section:
    return Section("budget", "", "", [claim_tables.budget_table(frame, results)])


def _hospitals(frame: pd.DataFrame, results: Results, study: Study) -> Section:
    found = [effect_tables.hospital_table(frame), effect_tables.class_table(frame, _class_names(results))]
    drawn = (picture for name in _datasets(frame) for picture in figures.hospital_figures(frame, results, name))
    return Section("hospitals", "", "", found, drawn)


def _calibration(frame: pd.DataFrame, results: Results, study: Study) -> Section:
    drawn = (picture for name in _datasets(frame) for picture in curves.curve_figures(frame, results, name))
    return Section("calibration", "", "", [claim_tables.calibration_table(frame)], drawn)


def _statement(frame: pd.DataFrame, results: Results, study: Study) -> Section:
    found: dict[str, str] = {}
    for mode, rows in frame.groupby("mode", sort=False):
        run = int(rows.sort_values(["epsilon", "run"], ascending=[False, True], na_position="first")["run"].iloc[0])
        found[f"{mode} (run {run})"] = results[run].privacy.statement
    return Section("statement", "", "", statements=found)


def _limits(frame: pd.DataFrame, results: Results, study: Study) -> Section:
    return Section("limits", "", "", points=limits(frame, results, study))


CONTENTS: dict[str, Maker] = {
    "claim": _claim,
    "convergence": _convergence,
    "utility": _utility,
    "overhead": _overhead,
    "budget": _budget,
    "hospitals": _hospitals,
    "calibration": _calibration,
    "statement": _statement,
    "limits": _limits,
}


def environments(runs: Sequence[Run]) -> dict[str, str]:
    """The machines and versions that runs were made with, each once, with the numbers of its runs."""
    found: dict[str, list[int]] = {}
    for run in runs:
        facts = {name: value for name, value in run.result.environment.items() if name != "git"}
        found.setdefault("\n".join(f"{name} {value}" for name, value in facts.items()), []).append(run.number)
    numbers = {text: tables.runs_text(pd.DataFrame({"run": members})) for text, members in found.items()}
    return {f"Environment of runs {numbers[text]}": text for text in found if text}


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


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """A row a run, six significant digits, so that the file is readable and its changes are."""
    frame.to_csv(path, index=False, float_format="%.6g")


def render(report: Report, template: str) -> str:
    """One of the templates, filled."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=template.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "cells": html_cell,
        "pipes": lambda text: str(text).replace("|", "\\|"),
        "safe_svg": Markup,
        "code": html_code,
        "zip": zip,
    }
    return environment.get_template(template).render(report=report, first=FIRST)


def html_code(text: str) -> Markup:
    """Markdown's backticks as HTML."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def html_cell(text: str) -> Markup:
    """A cell whose interval goes on a line of its own, in small print, and does not break inside."""
    head, bracket, rest = str(text).partition(" [")
    if not bracket or not head:
        return Markup(escape(text))
    unit = " %" if rest.endswith("%") else ""
    return Markup("{}{}<small>[{}</small>").format(head, unit, rest.removesuffix(" %"))
