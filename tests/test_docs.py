"""The documentation site: strict, from this machine alone, with every option and every public name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import medx
from medx.hints import options_of
from medx.schema import GROUPS

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``make docs``, into a folder of its own: a link that leads nowhere would end it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def test_every_option_has_a_section_and_its_class(site: Path) -> None:
    for group in GROUPS:
        text = (site / "components" / f"{group}.html").read_text()
        assert set(re.findall(r'<h2 id="([\w-]+)"', text)) >= set(options_of(group)), group
        assert "doc-class" in text, group


def test_every_public_name_is_documented(site: Path) -> None:
    text = (site / "python.html").read_text()
    found = {name.rpartition(".")[2] for name in re.findall(r'<h[23] id="(medx\.[\w.]+)"', text)}
    assert found >= set(medx.__all__)


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = re.compile(r'<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)="(?:https?:)?//')
    assert not [page for page in site.rglob("*.html") if loaded.search(page.read_text())]
    assert not [sheet for sheet in site.rglob("*.css") if re.search(r"url\((?:https?:)?//", sheet.read_text())]


def test_every_test_that_is_named_in_the_table_of_faults_is_there() -> None:
    """By its function in its file, and every one of the thirty rows names one."""
    text = (REPOSITORY / "docs" / "faults.md").read_text()
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    assert text.count(".py::") == len(named), "each in a form that this test reads"
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not re.search(rf"^def {name}\(", (REPOSITORY / "tests" / file).read_text(), re.MULTILINE)
    ]
    assert not missing
    rows = re.findall(r"^\| (\d+) \|.*", text, re.MULTILINE)
    assert rows == [str(number) for number in range(1, 31)]
    assert all(".py::" in line for line in text.splitlines() if re.match(r"\| \d+ \|", line))
