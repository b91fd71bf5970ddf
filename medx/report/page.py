"""A study's runs to its report: sections of words, tables and figures, written as HTML, Markdown, CSV and pictures."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from medx.figures import Picture
from medx.report import effects, figures, meaning, tables, words
from medx.report.cells import Table, runs_text
from medx.report.rows import Results, Run, make_frame
from medx.report.study import Study, dataset_name
from medx.schema import MedxError

TEMPLATES = Path(__file__).parent / "templates"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


@dataclass(frozen=True)
class Section:
    """One part of the report. ``key`` is its anchor, ``words`` are sentences."""

    key: str
    title: str
    words: Iterable[str]
    tables: list[Table] = field(default_factory=list)
    pictures: Iterable[Picture] = ()
    statements: dict[str, str] = field(default_factory=dict)
    points: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """Everything that is rendered. ``frame`` has a row a run; ``gaps`` says what is missing and why."""

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


def build_report(study: Study, command: str, runs: Sequence[Run], gaps: Sequence[str], *, draw: bool = True) -> Report:
    """Make every table, and where ``draw`` every figure, from finished runs; at least one run is needed."""
    frame = make_frame(runs)
    results = {run.number: run.result for run in runs}
    sections = []
    for section in _sections(study, runs, frame, results):
        kept = [table for table in section.tables if table.rows]
        pictures = list(section.pictures) if draw else []
        if kept or pictures or section.statements or section.points:
            sections.append(replace(section, words=list(section.words), tables=kept, pictures=pictures))
    mixed = sorted({git for git in frame["git"] if git})
    gaps = list(gaps) + ([f"runs of {len(mixed)} revisions of the code: {', '.join(mixed)}"] if len(mixed) > 1 else [])
    gaps += [f"run {row.run} is DEGENERATE: every test image gets the same answer"
             for row in frame.itertuples() if row.degenerate and "overhead" not in str(row.roles)]  # fmt: skip
    warning = next((run.result.privacy.warning for run in runs if run.result.privacy.warning), None)
    return Report(study, command, frame, sections, gaps, words.synthetic_warning(results), warning)


def _sections(study: Study, runs: Sequence[Run], frame: pd.DataFrame, results: Results) -> Iterator[Section]:
    """All that a report can have; words and pictures are made when they are asked for."""
    names = {dataset_name(result.config): result.dataset.class_names for result in results.values()}

    def drawn(make: Callable[[str], Iterable[Picture]]) -> Iterator[Picture]:
        return (picture for name in names for picture in make(name))

    found = [] if study.claim is None else [tables.claim_table(frame, study.claim, results)]
    yield Section("claim", "The claim", words.claim_words(frame, study), found)
    yield Section(
        "convergence", "Efficacy and convergence", words.convergence_words(frame, study),
        [tables.by_round("convergence", frame, results)],
        drawn(lambda name: figures.convergence_figures(frame, results, name)),
    )  # fmt: skip
    found = [tables.utility_table("utility", frame, name, len(names[name])) for name in names]
    found += [tables.ordinal_table(frame, names), tables.selection_table(frame)]
    found += [tables.utility_table("baselines", frame, name, len(names[name])) for name in names]
    found += [effects.images_table(frame), effects.paired_table(frame)]
    yield Section(
        "utility", "Privacy and utility", words.utility_words(frame, {table.name for table in found if table.rows}),
        found, drawn(lambda name: figures.frontier_figures(frame, name, len(names[name]), study.claim)),
    )  # fmt: skip
    steps, sums = effects.step_overhead_table(frame), effects.sum_overhead_table(frame)
    yield Section(
        "overhead", "What privacy costs", words.overhead_words(study, bool(sums.rows)), [steps, sums],
        figures.overhead_figures(steps.data, sums.data),
    )  # fmt: skip
    spent = (
        "What has been spent after each of these rounds. One accountant composes all of a run's steps; it never "
        "starts afresh."
    )
    yield Section("budget", "Privacy budget by round", [spent], [tables.by_round("budget", frame, results)])
    found_by_run = meaning.meanings_by_run(frame, results)
    yield Section(
        "meaning", "What the bounds mean", [meaning.WORDS], [meaning.meaning_table(frame, found_by_run)],
        meaning.meaning_figure(frame, found_by_run),
    )  # fmt: skip
    yield Section(
        "hospitals", "Hospitals and classes", words.hospital_words(frame),
        [
            effects.hospital_table(frame),
            effects.site_table(frame, results),
            effects.subgroup_table(frame, results),
            effects.class_table(frame, names),
        ],
        drawn(lambda name: figures.hospital_figures(frame, results, name)),
    )  # fmt: skip
    yield Section(
        "calibration", "Calibration and errors",
        ["Whether the model's probabilities can be believed, and what it confuses."],
        [effects.calibration_table(frame)], drawn(lambda name: figures.curve_figures(frame, results, name)),
    )  # fmt: skip
    stated = "For each mode what its run with the largest ε states, from the steps that were executed."
    yield Section("statement", "Privacy statement", [stated], statements=_statements(frame, results))
    points = words.limits(frame, results, study)
    yield Section("limits", "Limits", ["What this report does not show."], points=points)
    appendix = ["Every number above names its runs; this is what they are."]
    environments = _environments(runs)
    yield Section("appendix", "Appendix: runs", appendix, [effects.appendix_table(runs, frame)], (), environments)


def _statements(frame: pd.DataFrame, results: Results) -> dict[str, str]:
    largest = frame.sort_values(["epsilon", "run"], ascending=[False, True], na_position="first").groupby("mode")["run"]
    numbers = {mode: int(largest.first()[mode]) for mode in dict.fromkeys(frame["mode"])}
    return {f"{mode} (run {run})": results[run].privacy.statement for mode, run in numbers.items()}


def _environments(runs: Sequence[Run]) -> dict[str, str]:
    """The machines and versions that runs were made with, each once, with the numbers of its runs."""
    found: dict[str, list[int]] = {}
    for run in runs:
        facts = [f"{name} {value}" for name, value in run.result.environment.items() if name != "git"]
        found.setdefault("\n".join(facts), []).append(run.number)
    return {f"Environment of runs {runs_text(numbers)}": text for text, numbers in found.items() if text}


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
    """Write what is committed: the study's ``results.csv`` and ``README.md``, and the table of the project's README."""
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.csv"
    write_csv(report.frame, results)
    (folder / "README.md").write_text(with_results(render(report, "experiment.md.j2"), results, "experiment.md.j2"))
    if report.study.name == "reference_report" and readme.exists() and BEGIN in readme.read_text():
        readme.write_text(with_results(readme.read_text(), results, str(readme), short=True))


def with_results(text: str, results: Path, name: str, *, short: bool = False) -> str:
    """Markdown with the table of a ``results.csv``, and of nothing else, between the two comments.

    Raises MedxError where the text, which is called ``name``, lacks them.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise MedxError(f"{name}: needs the lines {BEGIN} and {END} once each, around the results table")
    frame = pd.read_csv(results)
    frame["mode"] = frame["mode"].fillna("none")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{tables.published_table(frame, short=short).markdown}\n{END}{rest.split(END)[1]}"


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
    environment.filters |= {"cells": html_cell, "safe_svg": Markup, "code": html_code, "zip": zip}
    return environment.get_template(template).render(report=report)


def html_code(text: str) -> Markup:
    """Markdown's backticks as HTML."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def html_cell(text: str) -> Markup:
    """A cell whose interval goes on a line of its own, in small print, and does not break inside."""
    head, bracket, rest = text.partition(" [")
    if not bracket or not head:
        return Markup(escape(text))
    unit = " %" if rest.endswith("%") else ""
    return Markup("{}{}<small>[{}</small>").format(head, unit, rest.removesuffix(" %"))
