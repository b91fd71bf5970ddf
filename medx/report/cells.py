"""What tables are made of: statistics over seeds, numbers as text, and rows that hold both."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from medx.report.rows import Setting
from medx.results import told_epsilon

DASH = "–"
TITLES = {
    "dataset": "data",
    "mode": "privacy",
    "target_epsilon": "target ε",
    "auc": "AUC",
    "accuracy": "accuracy, most probable class",
    "accuracy_at_threshold": "accuracy",
    "balanced_accuracy_at_threshold": "balanced accuracy",
    "sensitivity_at_threshold": "sensitivity",
    "specificity_at_threshold": "specificity",
    "ece": "ECE",
    "brier": "Brier",
    "quadratic_kappa": "kappa (quadratic)",
    "hospital_worst": "worst hospital",
    "hospital_best": "best hospital",
}
PERCENT = ("accuracy", "accuracy_at_threshold", "balanced_accuracy_at_threshold", "sensitivity_at_threshold",
           "specificity_at_threshold", "hospital_worst", "hospital_best", "recall")  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """Mean over ``n`` seeds, sample standard deviation and 95 % t interval; the last three NaN for one seed."""

    n: int
    mean: float
    sd: float
    low: float
    high: float


def summarise(values: Sequence[float] | np.ndarray | pd.Series) -> Summary:
    """Mean and spread of one metric over seeds; undefined (NaN) values are left out (Student 1908)."""
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    mean = float(known.mean()) if len(known) else np.nan
    if len(known) < 2:
        return Summary(len(known), mean, np.nan, np.nan, np.nan)
    sd = float(known.std(ddof=1))
    half = float(stats.t.ppf(0.975, len(known) - 1)) * sd / len(known) ** 0.5
    return Summary(len(known), mean, sd, mean - half, mean + half)


def paired(first: Sequence[float], second: Sequence[float]) -> tuple[Summary, float]:
    """Second minus first, pair by pair (the same seed), and the two-sided p of the paired t test.

    p is NaN below two pairs and where all differ alike.
    """
    summary = summarise(np.subtract(second, first))
    if summary.n < 2 or summary.sd <= 1e-12 * max(1.0, abs(summary.mean)):
        return summary, np.nan
    return summary, float(2 * stats.t.sf(abs(summary.mean) / (summary.sd / summary.n**0.5), summary.n - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Family-wise adjusted p values (Holm 1979); NaN stays NaN and does not count as a test."""
    every = pd.Series(p_values, dtype=float)
    rising = every.dropna().sort_values(kind="stable")
    adjusted = (rising * np.arange(len(rising), 0, -1)).clip(upper=1.0).cummax()
    return adjusted.reindex(every.index).tolist()


def number(value: float | None, percent: bool = False, digits: int | None = None) -> str:
    """A measured value as text: three digits, or a percentage with one; an en dash where undefined."""
    if value is None or np.isnan(value):
        return DASH
    return f"{100 * value:.{digits or 1}f} %" if percent else f"{value:.{digits or 3}f}"


def spread(summary: Summary, percent: bool = False, digits: int | None = None, interval: bool = True) -> str:
    """``mean ± sd [95 % interval]``, cut to what shares and areas can be; the mean alone for one seed."""
    if summary.n < 2:
        return number(summary.mean, percent, digits)
    low, high = max(summary.low, 0.0), min(summary.high, max(summary.mean, 1.0))
    scale, places = (100, digits or 1) if percent else (1, digits or 3)
    mean, sd, low_text, high_text = (f"{scale * value:.{places}f}" for value in (summary.mean, summary.sd, low, high))
    return f"{mean} ± {sd}" + (f" [{low_text}, {high_text}]" if interval else "") + (" %" if percent else "")


def signed(value: float) -> str:
    """A difference as text."""
    return DASH if np.isnan(value) else f"{value:+.3f}"


def target(value: float) -> str:
    """A target epsilon as text."""
    return "none" if np.isnan(value) else f"{value:g}"


def who(setting: Setting) -> str:
    """A setting's legend: ``cnn, local_dp, ε 5`` or ``cnn, no privacy``."""
    if np.isnan(setting["target_epsilon"]):
        return f"{setting['model']}, no privacy"
    return f"{setting['model']}, {setting['mode']}, ε {target(setting['target_epsilon'])}"


def runs_text(runs: Sequence[int] | pd.Series) -> str:
    """Numbers of runs, as the appendix lists them: ``3-5, 9``."""
    numbers = pd.Series(sorted({int(run) for run in runs}))
    spans = numbers.groupby(numbers - numbers.index).agg(["min", "max"])
    return ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high in spans.itertuples(index=False))


@dataclass(frozen=True)
class Row:
    """A row's numbers (``data``), and its text by column title (``shown``). Parts are joined as dictionaries are."""

    data: dict[str, Any]
    shown: dict[str, str]

    def __or__(self, other: "Row") -> "Row":
        return Row(self.data | other.data, self.shown | other.shown)


@dataclass(frozen=True)
class Table:
    """``name`` is that of the CSV, which has ``data``; ``note`` stands below the table."""

    name: str
    title: str
    note: str
    data: pd.DataFrame
    header: list[str]
    rows: list[list[str]]

    @classmethod
    def of(cls, name: str, title: str, note: str, rows: Iterable[Row]) -> "Table":
        """Columns as the first row has them, what the runs are last; a dash where a row has nothing."""
        rows = list(rows)
        titles = list(dict.fromkeys(title for row in rows for title in row.shown))
        header = sorted(titles, key=lambda title: title == "runs")
        cells = [[row.shown.get(title, DASH) for title in header] for row in rows]
        return cls(name, title, note, pd.DataFrame([row.data for row in rows]), header, cells)

    @property
    def markdown(self) -> str:
        """As lines of Markdown."""
        return markdown(self.header, self.rows)


def markdown(header: list[str], rows: Iterable[list[str]]) -> str:
    """A table as lines of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def settled(setting: Setting, *shown: str) -> Row:
    """What was set: all of it as numbers, these keys as text."""
    texts = {key: target(setting[key]) if key == "target_epsilon" else str(setting[key]) for key in shown}
    return Row(setting, {TITLES.get(key, key): text for key, text in texts.items()})


def cited(rows: pd.DataFrame) -> Row:
    """The runs behind a row."""
    return Row({"runs": runs_text(rows["run"])}, {"runs": runs_text(rows["run"])})


def spent(rows: pd.DataFrame) -> Row:
    """The largest true epsilon of any run, and where patients are known a patient's; over how many seeds; the runs."""
    epsilon, seeds = rows["epsilon"].astype(float).max(), rows["seed"].nunique()
    row = Row({"epsilon": epsilon}, {"true ε": number(epsilon)})
    if patients_known(rows):
        patient = rows["epsilon_patient"].astype(float).max()
        row |= Row({"epsilon_patient": patient}, {"ε of a patient": told_epsilon(patient)})
    return row | Row({"seeds": seeds}, {"seeds": str(seeds)}) | cited(rows)


def patients_known(rows: pd.DataFrame) -> bool:
    """Whether any run tells a patient's epsilon."""
    return "epsilon_patient" in rows and bool(rows["epsilon_patient"].notna().any())


def spreads(rows: pd.DataFrame, metrics: Sequence[str], digits: int | None = None) -> Row:
    """Metrics over seeds; ``digits`` are those of percentages."""
    row = Row({}, {})
    for metric in metrics:
        summary, percent = summarise(rows[metric]), metric in PERCENT
        data = {f"{metric}_{part}": getattr(summary, part) for part in ("mean", "sd", "low", "high")}
        row |= Row(data, {TITLES.get(metric, metric): spread(summary, percent, digits if percent else None)})
    return row
