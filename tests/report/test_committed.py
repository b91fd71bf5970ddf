"""The page of what is committed of a study: it is in the repository, and is what the command renders without a run."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medx.report.__main__ import main
from medx.report.committed import PAGE_FILE, limits_of, read_committed
from medx.report.page import report_of, write_page
from medx.report.study import STUDIES
from medx.schema import ConfigError

KEPT = ("results.csv", "study.yaml", "README.md")
DRAWING = re.compile(r"<svg.*?</svg>", re.DOTALL)
NUMBER = re.compile(r"-?\d+\.?\d*")
PAGES = sorted(path.parent for path in STUDIES.glob(f"*/{PAGE_FILE}"))


def copy_of(study: Path, folder: Path) -> Path:
    """What is committed of a study, beside the studies of attacks that it names."""
    for name in ("membership", "reconstruction"):
        (folder / name).symlink_to(STUDIES / name)
    place = folder / study.name
    place.mkdir()
    for name in KEPT:
        shutil.copy(study / name, place)
    return place


def alike(one: str, other: str) -> bool:
    """Whether two pages are the same, figures to a tenth of a point: another processor rounds in another way."""
    if DRAWING.sub("", one) != DRAWING.sub("", other):
        return False
    drawn, again = ("".join(DRAWING.findall(page)) for page in (one, other))
    if NUMBER.sub("", drawn) != NUMBER.sub("", again):
        return False
    numbers = [np.array(NUMBER.findall(text), dtype=float) for text in (drawn, again)]
    return bool(np.allclose(*numbers, rtol=0, atol=0.1))


@pytest.mark.parametrize("study", PAGES, ids=lambda study: study.name)
def test_the_committed_page_is_what_the_command_renders(study: Path, tmp_path: Path) -> None:
    page = (study / PAGE_FILE).read_text()
    assert len(page.encode()) < 1.5e6
    place = copy_of(study, tmp_path)
    assert alike(page, write_page(place).read_text()), f"medx report experiments/{study.name}"
    frame = pd.read_csv(place / "results.csv", dtype=str, keep_default_na=False)
    best = frame["auc"].replace("", "0").astype(float).idxmax()  # which the answer tells, whatever the study is of
    frame.loc[best, "auc"] = "1.0"  # so the best is better, whatever ties with it
    frame.to_csv(place / "results.csv", index=False)
    assert not alike(page, write_page(place).read_text()), "one figure changed"


def test_the_reference_is_among_them_and_says_what_it_lacks() -> None:
    assert STUDIES / "reference_report" in PAGES
    made = read_committed(STUDIES / "reference_report")
    report = report_of(made, "medx report", [], draw=False)
    keys = [section.key for section in report.sections]
    assert "utility" in keys
    assert not {"convergence", "budget", "meaning", "statement"} & set(keys)
    assert report.left_out is not None
    points = [point for section in report.sections for point in section.points]
    assert not any("canaries in runs" in point for point in points), "whether canaries were tried is not known here"
    assert any("is not in `results.csv`" in point for point in points)
    assert {row[0] for row in report.tables()[-1].rows} == {str(run) for run in made.frame["run"]}


def test_the_command_writes_one_file_beside_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = copy_of(STUDIES / "reference_report", tmp_path)
    assert main([str(place)]) == 0
    assert str(place / PAGE_FILE) in capsys.readouterr().out
    assert {path.name for path in place.iterdir()} == {*KEPT, PAGE_FILE}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("results.csv", "", "results.csv: is no table"),
        ("results.csv", "run,roles\n1,utility\n", "has no column dataset"),
        ("README.md", "# nothing\n", "no points under ## Limits"),
        ("study.yaml", "title: [", "no YAML"),
    ],
)
def test_what_cannot_be_rendered_is_one_line(
    name: str, content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = copy_of(STUDIES / "reference_report", tmp_path)
    (place / name).write_text(content)
    assert main([str(place)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert said in line


def test_limits_are_those_of_the_readme(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# T\n\n- no\n\n## Limits\n\n- one\n- two `x`\n\n## More\n\n- no\n")
    assert limits_of(readme) == ["one", "two `x`"]
    with pytest.raises(ConfigError, match="Limits"):
        limits_of(tmp_path / "nosuch.md")
