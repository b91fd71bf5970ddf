"""Committed tables are the ones that their results.csv gives."""

from pathlib import Path

import pytest

from medx.report.readme import BEGIN, END, results_block, update, with_block
from medx.report.study import STUDIES
from medx.schema import MedxError
from tests.report.examples import GOLDEN

RESULTS = STUDIES / "reference_report" / "results.csv"
COMMITTED = (STUDIES.parent / "README.md", STUDIES / "reference_report" / "README.md")


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: str(path.relative_to(STUDIES.parent)))
def test_the_committed_table_is_the_results(path: Path) -> None:
    text = path.read_text()
    assert with_block(text, results_block(RESULTS), path.name) == text, "python -m medx.report --publish"


def test_a_table_that_differs_is_seen_and_mended(tmp_path: Path) -> None:
    markdown = tmp_path / "README.md"
    markdown.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert update(markdown, GOLDEN / "results.csv")
    text = markdown.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert (
        "| pneumoniamnist | scatternet | local_dp | 9.900 | 0.955 ± 0.007 | 89.5 ± 0.7 % | 87.5 ± 0.7 % | 2 |" in text
    )
    assert "| retinamnist | always the majority class | - | 0 | 0.500 | 45.0 % | 33.3 % | - |" in text
    assert "| pneumoniamnist | scatternet | none | none | 0.985 |" in text
    assert not update(markdown, GOLDEN / "results.csv")
    csv = tmp_path / "results.csv"
    csv.write_text((GOLDEN / "results.csv").read_text().replace("0.96,", "0.94,"))
    assert update(markdown, csv), "one figure changed"


def test_comments_must_be_there_once() -> None:
    for text in ("nothing", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}{BEGIN}{END}"):
        with pytest.raises(MedxError, match="results:begin"):
            with_block(text, "x", "README.md")
