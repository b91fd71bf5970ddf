"""A study's page from what is committed of it, without any run: ``study.yaml``, ``results.csv`` and ``README.md``."""

import re
from pathlib import Path

import pandas as pd

from medx.report.rows import with_none
from medx.report.section import Committed, Material
from medx.report.study import load_study
from medx.schema import ConfigError

RESULTS_FILE, STUDY_FILE, README_FILE, PAGE_FILE = "results.csv", "study.yaml", "README.md", "report.html"
LEFT_OUT = (
    "Made without any run, from the committed `results.csv`. It has a row a run and nothing by round, single hospital "
    "or image, so convergence, the budget by round, what the bounds mean, ROC and confusion, single hospitals, privacy "
    "statements and what canaries found are left out; the command in the study's README makes them again."
)
NEEDED = ("run", "roles", "dataset", "model", "mode", "config_hash", "seed", "epsilon", "target_epsilon", "auc")


def is_committed(folder: Path) -> bool:
    """Whether a study and its results are kept there."""
    return (folder / STUDY_FILE).is_file() and (folder / RESULTS_FILE).is_file()


def read_committed(folder: Path) -> Material:
    """What is kept in a folder; raises ConfigError with one line."""
    folder = folder.resolve()
    study = load_study(folder.name, folder.parent)
    path = folder / RESULTS_FILE
    try:
        frame = with_none(pd.read_csv(path))
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no table ({' '.join(str(error).split())})") from None
    lacking = [name for name in NEEDED if name not in frame]
    if lacking or frame.empty:
        raise ConfigError(
            f"{path}: {f'has no column {lacking[0]}' if lacking else 'has no row'}; accepted: the file as "
            "`make report ARGS=--publish` writes it"
        )
    return Material(study, [], Committed(frame, limits_of(folder / README_FILE)), where="Rows of `results.csv`")


def limits_of(readme: Path) -> list[str]:
    """The points under "Limits" of a study's README; raises ConfigError where there are none."""
    text = readme.read_text() if readme.exists() else ""
    found = re.search(r"^## Limits\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    points = [] if found is None else re.findall(r"^- (.+)$", found[1], re.MULTILINE)
    if not points:
        raise ConfigError(f"{readme}: has no points under ## Limits, and no page is made without; see --publish")
    return points
