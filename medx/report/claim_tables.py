"""Tables that answer the published report: its headline claim, convergence, and the budget by round."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from medx.report.rows import with_role, with_roles
from medx.report.statistics import summarise
from medx.report.study import Claim
from medx.report.tables import (
    DASH,
    PERCENT,
    SETTING,
    TITLES,
    Table,
    number,
    runs_text,
    setting_columns,
    settings_of,
    spread,
    spread_columns,
    target,
)
from medx.report.words import deltas
from medx.results import ExperimentResult

CLAIM_METRICS = ("accuracy", "accuracy_at_threshold", "balanced_accuracy_at_threshold", "auc")
SHOWN_ROUNDS = (1, 2, 5, 10, 25, 50, 100, 300)
Results = Mapping[int, ExperimentResult]


def claim_table(frame: pd.DataFrame, claim: Claim, results: Results) -> Table:
    """The claim, the majority class, and this work at each target epsilon, the largest first."""
    frame = frame[frame["dataset"] == claim.dataset]
    data, shown = [_claimed(claim)], [_claimed_text(claim)]
    if not frame.empty:
        data.append({"row": "majority", "epsilon": 0.0, "accuracy_mean": float(frame["majority_accuracy"].iloc[0])})
        shown.append(_majority_text(frame, results))
    ours = with_roles(frame, ("utility", "convergence"))
    for wanted in sorted(ours["target_epsilon"].dropna().unique(), reverse=True):
        for setting, rows in settings_of(ours[ours["target_epsilon"] == wanted]):
            numbers, text = setting_columns(setting, rows)
            values: dict[str, float] = {}
            cells: dict[str, str] = {}
            for metric in CLAIM_METRICS:
                summary = summarise(rows[metric].astype(float).tolist())
                values |= {f"{metric}_{part}": getattr(summary, part) for part in ("mean", "sd", "low", "high")}
                cells[TITLES[metric]] = spread(summary, metric in PERCENT, 2 if metric in PERCENT else None)
            data.append({"row": "this work"} | numbers | values)
            who = f"this work: {setting['model']}, {setting['mode']}, {setting['rounds']} rounds"
            shown.append({"row": who, "stated ε": text["target ε"], "true ε": text["true ε"]} | cells
                         | {"seeds": text["seeds"], "runs": runs_text(rows)})  # fmt: skip
    measured = f"Of this work, true ε composes every noisy step of every round (the largest of any run){deltas(ours)}. "
    note = (
        (measured if len(shown) > 2 else "")
        + ("Accuracy and balanced accuracy use the threshold chosen on validation. " if not frame.empty else "")
        + claim.note
    )
    return Table("claim", "The claim, and what was measured", note, pd.DataFrame(data), pd.DataFrame(shown))


def _claimed(claim: Claim) -> dict[str, Any]:
    return {"row": "published report", "target_epsilon": claim.epsilon, "epsilon": claim.composed_epsilon,
            "rounds": claim.rounds, "accuracy_mean": claim.accuracy}  # fmt: skip


def _claimed_text(claim: Claim) -> dict[str, str]:
    empty = {TITLES[metric]: "not reported" for metric in CLAIM_METRICS}
    start = {"row": f"published report, {claim.rounds} rounds", "stated ε": f"{claim.epsilon:g}",
             "true ε": f"about {claim.composed_epsilon:g}"}  # fmt: skip
    return start | empty | {TITLES["accuracy"]: number(claim.accuracy, True, 2), "seeds": "1", "runs": DASH}


def _majority_text(frame: pd.DataFrame, results: Results) -> dict[str, str]:
    first = results[int(frame["run"].iloc[0])].dataset.class_counts.get("test", [])
    share = float(frame["majority_accuracy"].iloc[0])
    counts = f" ({round(share * sum(first))} of {sum(first)})" if first else ""
    cells = {TITLES["accuracy"]: number(share, True, 2), TITLES["accuracy_at_threshold"]: number(share, True, 2),
             TITLES["balanced_accuracy_at_threshold"]: number(1 / len(first), True, 2) if first else DASH,
             TITLES["auc"]: number(0.5)}  # fmt: skip
    return {"row": f"always the majority class{counts}", "stated ε": "0", "true ε": "0", **cells,
            "seeds": DASH, "runs": runs_text(frame.head(1))}  # fmt: skip


def round_values(rows: pd.DataFrame, results: Results, metric: str | None) -> dict[int, list[float]]:
    """By round, the values over seeds of a test metric, or of epsilon spent where ``metric`` is None."""
    values: dict[int, list[float]] = {}
    for run in rows["run"]:
        for record in results[int(run)].rounds:
            value = record.epsilon if metric is None else record.metrics.get(f"test/{metric}")
            if value is not None:
                values.setdefault(record.round, []).append(value)
    return values


def _by_round(frame: pd.DataFrame, results: Results, metric: str | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    chosen = with_roles(frame, ("utility", "convergence"))
    if metric is None:
        chosen = chosen[chosen["target_epsilon"].notna()]
    last = {int(count) for count in chosen["rounds"]}
    columns = sorted(last | {wanted for wanted in SHOWN_ROUNDS if wanted <= max(last, default=0)})
    data, shown = [], []
    for setting, rows in settings_of(chosen):
        values = round_values(rows, results, metric)
        row: dict[str, Any] = setting | {"runs": runs_text(rows)}
        text = {"data": setting["dataset"], "model": setting["model"], "privacy": setting["mode"],
                "target ε": target(setting["target_epsilon"]), "rounds": str(setting["rounds"])}  # fmt: skip
        for wanted in columns:
            # Epsilon is a bound, so the largest counts; a metric is averaged.
            summary = summarise(values.get(wanted, []))
            worst = max(values.get(wanted, []), default=float("nan"))
            row[f"round_{wanted}"] = worst if metric is None else summary.mean
            text[f"after {wanted}"] = number(worst) if metric is None else number(summary.mean)
        data.append(row)
        shown.append(text | {"runs": runs_text(rows)})
    return pd.DataFrame(data), pd.DataFrame(shown)


def convergence_table(frame: pd.DataFrame, results: Results) -> Table:
    """Test AUC after chosen rounds."""
    note = "Mean test AUC over seeds. The number of rounds is fixed before a run starts; no round is chosen by it."
    return Table("convergence", "Test AUC by round", note, *_by_round(frame, results, "auc"))


def budget_table(frame: pd.DataFrame, results: Results) -> Table:
    """Epsilon spent after chosen rounds."""
    note = "Largest ε of any hospital and seed, composed over all steps so far."
    return Table("budget", "ε spent by round", note, *_by_round(frame, results, None))


def calibration_table(frame: pd.DataFrame) -> Table:
    """Expected calibration error and Brier score of the most probable class and of the probabilities."""
    data, shown = [], []
    for setting, rows in settings_of(with_role(frame, "utility"), SETTING):
        numbers, text = setting_columns(setting, rows)
        values, cells = spread_columns(rows, ("ece", "brier"))
        data.append(numbers | values)
        shown.append({"data": setting["dataset"]} | text | cells | {"runs": runs_text(rows)})
    note = (
        "ECE: 15 bins of equal width over the most probable class's probability. Brier: squared error; lower is better."
    )
    return Table("calibration", "Calibration on test", note, pd.DataFrame(data), pd.DataFrame(shown))
