"""The report's tables. Each has its numbers (``data``, written as CSV) and its text cells (``shown``)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from medx.report.rows import BASELINES, EVERYBODY, Run, with_role
from medx.report.statistics import Summary, holm, paired, summarise
from medx.report.words import over_seeds

HEADLINE = ("auc", "accuracy_at_threshold", "balanced_accuracy_at_threshold")
TITLES = {
    "auc": "AUC",
    "accuracy": "accuracy, most probable class",
    "accuracy_at_threshold": "accuracy",
    "balanced_accuracy_at_threshold": "balanced accuracy",
    "ece": "ECE",
    "brier": "Brier",
    "quadratic_kappa": "kappa (quadratic)",
}
PERCENT = ("accuracy", "accuracy_at_threshold", "balanced_accuracy_at_threshold")
SETTING = ["dataset", "model", "mode", "partition", "rounds", "target_epsilon"]
DASH = "–"


@dataclass(frozen=True)
class Table:
    """``name`` is the CSV's; ``note`` stands below the table."""

    name: str
    title: str
    note: str
    data: pd.DataFrame
    shown: pd.DataFrame

    @property
    def header(self) -> list[str]:
        """Column titles."""
        return [str(name) for name in self.shown.columns]

    @property
    def rows(self) -> list[list[str]]:
        """Text cells."""
        return [[str(cell) for cell in row] for row in self.shown.itertuples(index=False, name=None)]


def settings_of(frame: pd.DataFrame, keys: Sequence[str] = SETTING) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Runs that differ in nothing but the seed, in the study's order; without privacy last."""
    for values, rows in frame.groupby(list(keys), dropna=False, sort=False):
        yield dict(zip(keys, values if isinstance(values, tuple) else (values,), strict=True)), rows


def number(value: float | None, percent: bool = False, digits: int | None = None) -> str:
    """A measured value as text: three digits, or a percentage with one; an en dash where undefined."""
    if value is None or np.isnan(value):
        return DASH
    return f"{100 * value:.{1 if digits is None else digits}f} %" if percent else f"{value:.{digits or 3}f}"


def spread(summary: Summary, percent: bool = False, digits: int | None = None) -> str:
    """``mean ± sd [95 % interval]``, cut to what shares and areas can be; the mean alone for one seed."""
    if summary.n < 2:
        return number(summary.mean, percent, digits)
    low, high = max(summary.low, 0.0), min(summary.high, max(summary.mean, 1.0))
    scale, places = (100, 1 if digits is None else digits) if percent else (1, digits or 3)
    inner = [f"{scale * value:.{places}f}" for value in (summary.mean, summary.sd, low, high)]
    return f"{inner[0]} ± {inner[1]} [{inner[2]}, {inner[3]}]" + (" %" if percent else "")


def runs_text(rows: pd.DataFrame) -> str:
    """Numbers of runs, as the appendix lists them: ``3-5, 9``."""
    parts: list[list[int]] = []
    for value in sorted({int(run) for run in rows["run"]}):
        if parts and value == parts[-1][-1] + 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def who(setting: dict[str, Any]) -> str:
    """A setting's legend: ``cnn, local_dp, ε 5`` or ``cnn, no privacy``."""
    if np.isnan(setting["target_epsilon"]):
        return f"{setting['model']}, no privacy"
    return f"{setting['model']}, {setting['mode']}, ε {target(setting['target_epsilon'])}"


def target(value: float) -> str:
    """A target epsilon as text."""
    return "none" if np.isnan(value) else f"{value:g}"


def spread_columns(rows: pd.DataFrame, metrics: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Summaries of metrics over seeds: numbers for the CSV, text to show."""
    data: dict[str, Any] = {}
    shown: dict[str, str] = {}
    for metric in metrics:
        summary = summarise(rows[metric].astype(float).tolist())
        data |= {f"{metric}_{part}": getattr(summary, part) for part in ("mean", "sd", "low", "high")}
        shown[TITLES.get(metric, metric)] = spread(summary, metric in PERCENT)
    return data, shown


def setting_columns(setting: dict[str, Any], rows: pd.DataFrame) -> tuple[dict[str, Any], dict[str, str]]:
    """What was run: numbers and text."""
    spent = rows["epsilon"].astype(float).max()
    data = setting | {"epsilon": spent, "seeds": rows["seed"].nunique(), "runs": runs_text(rows)}
    shown = {"model": setting["model"], "privacy": setting["mode"], "target ε": target(setting["target_epsilon"])}
    return data, shown | {"true ε": number(spent), "seeds": str(rows["seed"].nunique())}


def utility_table(frame: pd.DataFrame, dataset: str, class_count: int) -> Table:
    """The privacy-utility table of one data set, with its reference rows."""
    chosen = with_role(frame[frame["dataset"] == dataset], "utility")
    data, shown = [], []
    for setting, rows in settings_of(chosen):
        numbers, text = setting_columns(setting, rows)
        values, cells = spread_columns(rows, HEADLINE)
        data.append({"row": "federated"} | numbers | values)
        shown.append({"row": "federated"} | text | cells | {"runs": runs_text(rows)})
        for row_data, row_text in _baseline_rows(setting, rows):
            data.append(row_data)
            shown.append(row_text)
    if shown:
        data.append(_majority(chosen, class_count))
        shown.append(_majority_text(data[-1], shown[0]))
    numbers_of_rows = pd.DataFrame(data)
    note = utility_note(chosen, class_count, set() if numbers_of_rows.empty else set(numbers_of_rows["row"]))
    return Table(f"utility_{dataset}", f"Privacy and utility: {dataset}", note, numbers_of_rows, pd.DataFrame(shown))


def utility_note(rows: pd.DataFrame, class_count: int, kinds: set[str]) -> str:
    """How to read the table of these runs, which has rows of these kinds."""
    baselines = {
        "local_only": "local_only is the mean over hospitals that train alone",
        "centralized": "centralized pools all records",
    }
    private = rows["target_epsilon"].notna().any()
    answer = "use the threshold chosen on validation" if class_count == 2 else "count the most probable class"
    found = [words for name, words in baselines.items() if name in kinds]
    sentences = [over_seeds(rows), f"Test split; accuracy and balanced accuracy {answer}."]
    if rows["mode"].str.contains(EVERYBODY, regex=False).any():
        sentences.append(
            "All must answer: shares of the noise are made for all hospitals, and no drop-out is tolerated."
        )
    sentences += ["True ε is the largest of any run."] if private else []
    sentences += [", ".join(found) + (". A run's ε covers its baselines too." if private else ".")] if found else []
    return " ".join(sentences)


def _baseline_rows(setting: dict[str, Any], rows: pd.DataFrame) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    for baseline in BASELINES:
        renamed = {metric: f"{baseline}_{metric}" for metric in HEADLINE}
        known = rows[rows[renamed["auc"]].notna()]
        if known.empty:
            continue
        numbers, text = setting_columns(setting, known)
        stripped = known.assign(**{metric: known[name] for metric, name in renamed.items()})
        values, cells = spread_columns(stripped, HEADLINE)
        yield {"row": baseline} | numbers | values, {"row": baseline} | text | cells | {"runs": runs_text(known)}


def _majority(rows: pd.DataFrame, class_count: int) -> dict[str, Any]:
    share = float(rows["majority_accuracy"].iloc[0])
    values = {"auc": 0.5, "accuracy_at_threshold": share, "balanced_accuracy_at_threshold": 1 / class_count}
    return {"row": "always the majority", "epsilon": 0.0} | {f"{name}_mean": value for name, value in values.items()}


def _majority_text(data: dict[str, Any], like: dict[str, str]) -> dict[str, str]:
    cells = {TITLES[metric]: number(data[f"{metric}_mean"], metric in PERCENT) for metric in HEADLINE}
    return dict.fromkeys(like, DASH) | {"row": data["row"], "true ε": "0"} | cells


def images_table(frame: pd.DataFrame) -> Table:
    """Noise of the test images beside the spread over seeds, for AUC."""
    data, shown = [], []
    for setting, rows in settings_of(with_role(frame, "utility")):
        low, high = rows["auc_images_low"].astype(float).mean(), rows["auc_images_high"].astype(float).mean()
        summary = summarise(rows["auc"].astype(float).tolist())
        numbers, text = setting_columns(setting, rows)
        data.append(numbers | {"auc_mean": summary.mean, "auc_sd": summary.sd, "images_low": low, "images_high": high})
        shown.append(
            {"data": setting["dataset"]} | text
            | {"AUC": number(summary.mean), "sd over seeds": number(summary.sd, digits=4),
               "over images": f"[{number(low)}, {number(high)}]", "runs": runs_text(rows)}
        )  # fmt: skip
    note = (
        "Over images: 95 % percentile bootstrap with the model fixed, the bounds averaged over the runs. Over seeds: "
        "what another seed changes, on the same images. The two are different questions and are not added up."
    )
    return Table("image_noise", "Two kinds of uncertainty", note, pd.DataFrame(data), pd.DataFrame(shown))


def paired_table(frame: pd.DataFrame) -> Table:
    """Two privacy modes at the same epsilon and seed; differences inside noise are said to be."""
    keys = ["dataset", "model", "partition", "target_epsilon"]
    private = with_role(frame, "utility")
    private = private[private["target_epsilon"].notna()]
    found: list[tuple[dict[str, Any], str, str, str, pd.DataFrame]] = []
    for setting, rows in settings_of(private, keys):
        modes = list(dict.fromkeys(rows["mode"]))
        for index, first in enumerate(modes):
            for second in modes[index + 1 :]:
                found += [(setting, first, second, metric, rows) for metric in HEADLINE[::2]]
    tests = []
    for _, first, second, metric, rows in found:
        wide = rows.pivot_table(index="seed", columns="mode", values=metric)
        tests.append(paired(wide[first].tolist(), wide[second].tolist()))
    adjusted = holm([test.p for test in tests])
    data, shown = [], []
    for (setting, first, second, metric, rows), test, p in zip(found, tests, adjusted, strict=True):
        verdict = "not tested" if np.isnan(p) else "beyond noise" if p < 0.05 else "inside noise"
        data.append(
            setting | {"first": first, "second": second, "metric": metric, "pairs": test.n, "low": test.low,
                       "difference": test.difference, "high": test.high, "p": test.p, "p_holm": p, "verdict": verdict}
        )  # fmt: skip
        shown.append(
            {"data": setting["dataset"], "model": setting["model"], "target ε": target(setting["target_epsilon"]),
             "difference": f"{second} - {first}", "metric": TITLES[metric], "mean": _signed(test.difference),
             "95 %": f"[{_signed(test.low)}, {_signed(test.high)}]", "pairs": str(test.n),
             "p (Holm)": number(p), "verdict": verdict, "runs": runs_text(rows)}
        )  # fmt: skip
    pairs = max((test.n for test in tests), default=0)
    note = (
        "Paired t test over seeds (the same partition in a pair), adjusted for the number of rows (Holm 1979). It "
        "speaks of these test images and of retraining, not of other patients"
        + (f"; with at most {pairs} pairs only large differences can show." if pairs < 10 else ".")
    )
    return Table("paired_modes", "Two modes at the same ε", note, pd.DataFrame(data), pd.DataFrame(shown))


def _signed(value: float) -> str:
    return DASH if np.isnan(value) else f"{value:+.3f}"


def appendix_table(runs: Sequence[Run], frame: pd.DataFrame) -> Table:
    """Every run behind the report."""
    data = frame[["run", "roles", "config_hash", "seed", "mlflow_run", "git", "seconds"]].copy()
    data.insert(1, "name", [run.name for run in runs])
    shown = pd.DataFrame(
        {
            "run": data["run"].astype(str),
            "job": data["name"],
            "used for": [", ".join(role.replace("_", " ") for role in roles.split()) for roles in data["roles"]],
            "hash": data["config_hash"],
            "MLflow run": [text or "not tracked" for text in data["mlflow_run"]],
            "code": [text or DASH for text in data["git"]],
            "seconds": [number(value, digits=1) for value in data["seconds"].astype(float)],
        }
    )
    note = "`HASH-SEED` is the run's folder in the study's store; the hash covers all that its numbers depend on."
    return Table("runs", "Runs", note, data, shown)
