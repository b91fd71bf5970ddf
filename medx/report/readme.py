"""Result tables inside Markdown files, made from a study's ``results.csv`` and from nothing else."""

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from medx.report.rows import with_role
from medx.report.statistics import summarise
from medx.report.tables import PERCENT, TITLES, number, settings_of, spread, target
from medx.schema import MedxError

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
KEYS = ["dataset", "model", "mode", "target_epsilon"]
COLUMNS = ("auc", "accuracy_at_threshold", "balanced_accuracy_at_threshold")
FRONT = (1.0, 10.0)  # target epsilons of the project's front page


def results_block(path: Path, *, short: bool = False) -> str:
    """The table of a ``results.csv`` as Markdown: mean ± standard deviation over seeds, and the majority rows.

    ``short``: of each data set the first model in its plain modes, at two epsilons and without privacy.
    """
    frame = pd.read_csv(path, keep_default_na=True)
    frame["mode"] = frame["mode"].fillna("none")
    rows = with_role(frame, "utility")
    rows = _front(rows) if short else rows
    names = ["data", "model", "privacy", "true ε", *(TITLES[name] for name in COLUMNS), "seeds"]
    lines = [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
    for dataset in dict.fromkeys(rows["dataset"]):
        part = rows[rows["dataset"] == dataset]
        classes = part.filter(regex=r"^recall_\d+$").notna().any().sum()
        majority = [number(0.5), number(float(part["majority_accuracy"].iloc[0]), True), number(1 / classes, True)]
        lines.append(_line([dataset, "always the majority class", "-", "0", *majority, "-"]))
        for setting, group in settings_of(part, KEYS):
            cells = [_mean(group, name) for name in COLUMNS]
            epsilon = number(group["epsilon"].astype(float).max())
            shown = "none" if target(setting["target_epsilon"]) == "none" else epsilon
            lines.append(_line([dataset, setting["model"], setting["mode"], shown, *cells, str(len(group))]))
        lines += _selected(frame[(frame["dataset"] == dataset) & frame["candidates"].notna()])
    return "\n".join(lines)


def _front(rows: pd.DataFrame) -> pd.DataFrame:
    first = rows.groupby("dataset")["model"].transform("first")
    known = rows["target_epsilon"].isna() | rows["target_epsilon"].isin(FRONT)
    return rows[(rows["model"] == first) & known & ~rows["mode"].str.contains("(", regex=False)]


def _selected(rows: pd.DataFrame) -> Iterator[str]:
    """Settings that were chosen inside the guarantee; epsilon is that of all candidates together."""
    for setting, group in settings_of(rows, KEYS[1:]):
        mode = f"{setting['mode']}, chosen privately among {int(group['candidates'].max())}"
        cells = [_mean(group, name) for name in COLUMNS]
        epsilon = number(group["selection_epsilon"].astype(float).max())
        yield _line([str(group["dataset"].iloc[0]), setting["model"], mode, epsilon, *cells, str(len(group))])


def _mean(group: pd.DataFrame, name: str) -> str:
    text = spread(summarise(group[name].astype(float).tolist()), name in PERCENT)
    return re.sub(r" \[.*?\]", "", text)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def with_block(text: str, block: str, name: str) -> str:
    """The Markdown with the part between the two comments replaced; raises MedxError where they are missing."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise MedxError(f"{name}: needs the lines {BEGIN} and {END} once each, around the results table")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}"


def update(markdown: Path, results: Path) -> bool:
    """Rewrite the short table of a Markdown file; whether anything changed."""
    old = markdown.read_text()
    new = with_block(old, results_block(results, short=True), str(markdown))
    markdown.write_text(new)
    return old != new
