"""The table of ``results.csv`` that Markdown files have."""

import numpy as np
import pandas as pd

from medx.report.cells import DASH, PERCENT, TITLES, Row, Table, number, patients_known, spread, summarise
from medx.report.rows import HEADLINE, WHO, class_count, settings_of, with_role
from medx.report.tables import PUBLISHED_BY, majority_scores
from medx.results import told_epsilon

FRONT = (1.0, 10.0)  # target epsilons of the project's front page


def published_table(frame: pd.DataFrame, *, short: bool = False) -> Table:
    """What Markdown files have of ``results.csv``: means and standard deviations over seeds, and the majority rows.

    ``short``: of each data set the first model in its plain modes, at two epsilons and without privacy.
    """
    chosen = with_role(frame, "utility")
    chosen = _front(chosen) if short else chosen
    rows = []
    for dataset in dict.fromkeys(chosen["dataset"]):
        part = chosen[chosen["dataset"] == dataset]
        scores = zip(HEADLINE, majority_scores(part, class_count(part)), strict=True)
        majority = [number(score, metric in PERCENT) for metric, score in scores]
        rows.append(_published([dataset, "always the majority class", "-", "0", "0", *majority, "-"]))
        for setting, runs in settings_of(part, PUBLISHED_BY):
            epsilon = "none" if np.isnan(setting["target_epsilon"]) else number(runs["epsilon"].astype(float).max())
            setup = [dataset, setting["model"], setting["mode"], epsilon, _of_a_patient(runs)]
            rows.append(_published([*setup, *_means(runs), str(len(runs))]))
        selected = frame[(frame["dataset"] == dataset) & frame["candidates"].notna()]
        for setting, runs in settings_of(selected, WHO):
            # Settings that were chosen inside the guarantee; epsilon is that of all candidates together.
            mode = f"{setting['mode']}, chosen privately among {int(runs['candidates'].max())}"
            epsilon = number(runs["selection_epsilon"].astype(float).max())
            setup = [dataset, setting["model"], mode, epsilon, DASH]
            rows.append(_published([*setup, *_means(runs), str(len(runs))]))
    return Table.of("published", "Privacy and utility", "", rows)


def _front(rows: pd.DataFrame) -> pd.DataFrame:
    first = rows.groupby("dataset")["model"].transform("first")
    known = rows["target_epsilon"].isna() | rows["target_epsilon"].isin(FRONT)
    return rows[(rows["model"] == first) & known & ~rows["mode"].str.contains("(", regex=False)]


def _of_a_patient(rows: pd.DataFrame) -> str:
    """The largest epsilon that any run comes to for a patient; a dash where patients are not known."""
    known = rows["epsilon_patient"].astype(float).max() if patients_known(rows) else np.nan
    if rows["target_epsilon"].isna().all():
        return "none"
    return DASH if np.isnan(known) else told_epsilon(known)


def _means(rows: pd.DataFrame) -> list[str]:
    return [spread(summarise(rows[metric]), metric in PERCENT, interval=False) for metric in HEADLINE]


def _published(cells: list[str]) -> Row:
    titles = ["data", "model", "privacy", "true ε", "ε of a patient", *(TITLES[metric] for metric in HEADLINE), "seeds"]
    return Row({}, dict(zip(titles, cells, strict=True)))
