"""The golden report of a stored tiny set of results, what a changed result changes, and the page's own promises."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from medx.figures import GROUND, INK
from medx.report.figures import convergence_figures
from medx.report.page import Report, render, write_csv, write_report
from medx.report.rows import Run
from medx.results import STUDY_ONLY
from tests.report.examples import GOLDEN, changed, load_runs, tiny_report

RUNS = load_runs()


@pytest.fixture(scope="module")
def report() -> Report:
    return tiny_report(RUNS, draw=True)


@pytest.fixture(scope="module")
def page(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(report, folder)
    return folder


def test_golden(page: Path) -> None:
    stored = (GOLDEN / "report.md").read_text()
    assert (page / "report.md").read_text() == stored, "python -m tests.report.examples writes it anew, on purpose"
    assert (page / "results.csv").read_text() == (GOLDEN / "results.csv").read_text()


def rows_of(runs: list[Run]) -> dict[tuple[str, str], dict[str, str]]:
    """Cells by (table, row) of a report; a row is known by its cells that are no measurement."""
    found = {}
    for table in tiny_report(runs).tables():
        for index, row in enumerate(table.rows):
            found[table.name, str(index)] = dict(zip(table.header, row, strict=True))
    return found


def differences(one: list[Run], other: list[Run]) -> set[tuple[str, str, str, str]]:
    """(table, column, before, after) of every cell that differs."""
    before, after = rows_of(one), rows_of(other)
    assert before.keys() == after.keys()
    return {
        (key[0], column, before[key][column], after[key][column])
        for key in before
        for column in before[key]
        if before[key][column] != after[key][column]
    }


def test_a_changed_result_changes_the_right_cells() -> None:
    assert differences(RUNS, changed(RUNS, 8, "auc", 0.725)) == {
        ("utility_retinamnist", "AUC", "0.720", "0.725"),
        ("image_noise", "AUC", "0.720", "0.725"),
        ("image_noise", "over images", "[0.700, 0.730]", "[–, –]"),
    }, "of the one retina run, and nothing of the others"
    shared = {(table, column) for table, column, _, _ in differences(RUNS, changed(RUNS, 3, "recall_0", 0.5))}
    assert shared == {("classes", "recall")}
    moved = differences(RUNS, changed(RUNS, 5, "balanced_accuracy_at_threshold", 0.6))
    assert {table for table, *_ in moved} == {"claim", "utility_pneumoniamnist", "paired_modes"}


def test_the_claim_stands_first_with_the_majority_and_this_work() -> None:
    report = tiny_report(RUNS)
    table = report.sections[0].tables[0]
    assert (report.sections[0].key, table.name) == ("claim", "claim")
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    assert (rows[0]["stated ε"], rows[0]["accuracy, most probable class"]) == ("9.99", "62.50 %")
    assert rows[1]["row"].endswith("(390 of 624)")
    assert rows[1]["accuracy, most probable class"] == "62.50 %"
    assert [row["stated ε"] for row in rows[2:]] == ["10", "10", "10", "1"]
    assert all(float(row["true ε"]) <= float(row["stated ε"]) for row in rows[2:])


def test_every_measured_row_cites_runs_that_the_appendix_lists(report: Report) -> None:
    listed = {row[0] for row in report.tables()[-1].rows}
    assert listed == {str(run.number) for run in RUNS}
    for table in report.tables()[:-1]:
        for row in table.data.to_dict("records"):
            for part in str(row.get("runs", "")).split(", "):
                low, _, high = part.partition("-")
                if low.isdigit():
                    assert {str(number) for number in range(int(low), int(high or low) + 1)} <= listed
        measured = table.data[table.data.get("row", pd.Series("", table.data.index)) == "federated"]
        assert measured.empty or measured["runs"].str.len().min() > 0
    for picture in report.pictures():
        assert re.search(r"Runs? \d", picture.caption), picture.name


def test_the_page_needs_nothing_else(page: Path) -> None:
    text = (page / "index.html").read_text()
    outside = set(re.findall(r"""(?:src|href)=["'](?!#)([^"']+)""", text)) | set(re.findall(r"url\((?!#)", text))
    assert outside == set(), "no script, style, font or picture from elsewhere"
    assert "<script" not in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids)), "figures inlined in one page must not share ids"
    missing = {name for name in re.findall(r'href="#([^"]+)"', text)} - set(ids)
    assert missing == set()
    assert INK not in text.split("</style>")[1], "ink follows light and dark"
    assert GROUND not in text.split("</style>")[1]
    for row in tiny_report(RUNS).tables()[0].rows:
        assert row[0] in text


def test_figures_and_tables_are_files(report: Report, page: Path) -> None:
    assert {path.name for path in (page / "tables").iterdir()} == {f"{table.name}.csv" for table in report.tables()}
    for picture in report.pictures():
        assert (page / "figures" / f"{picture.name}.png").read_bytes().startswith(b"\x89PNG")
        assert (page / "figures" / f"{picture.name}.svg").read_text() == picture.svg
    first = report.pictures()[0]
    again = next(iter(convergence_figures(report.frame, {run.number: run.result for run in RUNS}, "pneumoniamnist")))
    assert (again.name, again.svg, again.png) == (first.name, first.svg, first.png), "the same bytes a second time"


def test_results_csv_is_enough_to_read_back(tmp_path: Path) -> None:
    write_csv(tiny_report(RUNS).frame, tmp_path / "results.csv")
    frame = pd.read_csv(tmp_path / "results.csv")
    assert len(frame) == len(RUNS)
    assert frame["auc"].tolist() == [run.result.test["auc"].value for run in RUNS]


def test_text_is_escaped() -> None:
    runs = [run if run.number != 1 else Run(1, "<b>bad</b>|x", run.roles, run.result) for run in RUNS]
    report = tiny_report(runs)
    assert "<b>bad" not in render(report, "index.html.j2")
    assert "<b>bad</b>\\|x" in render(report, "report.md.j2")


def test_noise_of_the_seed_is_said_on_top_of_the_page() -> None:
    assert "NOISE FROM THE SEED" not in render(tiny_report(RUNS), "index.html.j2")
    privacy = RUNS[0].result.privacy.model_copy(update={"warning": STUDY_ONLY})
    seeded = replace(RUNS[0], result=RUNS[0].result.model_copy(update={"privacy": privacy}))
    for template in ("index.html.j2", "report.md.j2"):
        assert f"NOISE FROM THE SEED: {STUDY_ONLY}" in render(tiny_report([seeded, *RUNS[1:]]), template)
