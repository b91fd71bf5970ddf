"""Tables of side effects: unequal hospitals, classes, and what privacy and secure sums cost in time and bytes."""

import re
from typing import Any

import numpy as np
import pandas as pd

from medx.report.rows import with_role
from medx.report.statistics import summarise
from medx.report.tables import DASH, HEADLINE, Table, number, runs_text, settings_of, spread, spread_columns, target
from medx.report.words import listed

SKEW_KEYS = ["dataset", "model", "mode", "target_epsilon", "partition", "strategy", "rounds"]


def partition_order(name: str) -> float:
    """By the number that a partition is known by, the most unequal first; IID, which has none, last."""
    found = re.search(r"\((.+)\)", name)
    return float(found[1]) if found else float("inf")


def skew_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Runs of the skew part, the most unequal partition first."""
    rows = with_role(frame, "skew")
    order = rows["partition"].map(partition_order)
    return rows.assign(order=order).sort_values(["dataset", "mode", "order", "partition", "run"], kind="stable")


def hospital_table(frame: pd.DataFrame) -> Table:
    """Utility under unequal hospitals, with the worst and the best of them."""
    metrics = {"auc": ("AUC", False), "balanced_accuracy_at_threshold": ("balanced accuracy", True),
               "hospital_worst": ("worst hospital", True), "hospital_best": ("best hospital", True)}  # fmt: skip
    data, shown = [], []
    for setting, rows in settings_of(skew_rows(frame), SKEW_KEYS):
        summaries = {name: summarise(rows[name].astype(float).tolist()) for name in metrics}
        means = {f"{name}_{part}": getattr(summary, part) for name, summary in summaries.items()
                 for part in ("mean", "sd", "low", "high")}  # fmt: skip
        data.append(setting | means | {"seeds": rows["seed"].nunique(), "runs": runs_text(rows)})
        cells = {title: spread(summaries[name], percent) for name, (title, percent) in metrics.items()}
        shown.append(_skew_text(setting) | cells | {"runs": runs_text(rows)})
    note = (
        "Test AUC and balanced accuracy; then accuracy of the final model on the worst and best hospital's own "
        "training images. The study holds all data and can compute it; in a deployment it would not leave, and ε does "
        "not cover it."
    )
    return Table("hospitals", "Unequal hospitals", note, pd.DataFrame(data), pd.DataFrame(shown))


def class_table(frame: pd.DataFrame, class_names: dict[str, list[str]]) -> Table:
    """Recall of every class, one row a class."""
    data, shown = [], []
    chosen = skew_rows(frame)
    for setting, rows in settings_of(chosen[chosen["strategy"] == "fedavg"], SKEW_KEYS):
        for index, name in enumerate(class_names[setting["dataset"]]):
            summary = summarise(rows[f"recall_{index}"].astype(float).tolist())
            recall = {"recall_mean": summary.mean, "recall_sd": summary.sd}
            data.append(setting | {"class": name} | recall | {"runs": runs_text(rows)})
            shown.append(
                _skew_text(setting) | {"class": name, "recall": spread(summary, True), "runs": runs_text(rows)}
            )
    note = "Share of a class's test images that get that class as the most probable one."
    return Table("classes", "Recall by class", note, pd.DataFrame(data), pd.DataFrame(shown))


def ordinal_table(frame: pd.DataFrame, class_names: dict[str, list[str]]) -> Table:
    """Recall of every class, of data sets with more than two, and kappa where they are grades."""
    data, shown = [], []
    for setting, rows in settings_of(with_role(frame, "utility")):
        names = class_names[setting["dataset"]]
        if len(names) == 2:
            continue
        titles = {"quadratic_kappa": "kappa (quadratic)", "accuracy": "accuracy, most probable class"}
        titles |= {f"recall_{index}": f"recall: {name}" for index, name in enumerate(names)}
        means = {name: float(rows[name].astype(float).mean()) for name in titles}
        if np.isnan(means["quadratic_kappa"]):
            del titles["quadratic_kappa"]
        data.append(setting | means | {"seeds": rows["seed"].nunique(), "runs": runs_text(rows)})
        cells = {title: number(means[name], name != "quadratic_kappa") for name, title in titles.items()}
        shown.append(
            {"data": setting["dataset"], "model": setting["model"], "privacy": setting["mode"],
             "target ε": target(setting["target_epsilon"])} | cells | {"runs": runs_text(rows)}
        )  # fmt: skip
    note, table = "Means over seeds on the test split.", pd.DataFrame(shown).fillna(DASH)
    if "kappa (quadratic)" in table:
        note += " Kappa is Cohen's with quadratic weights: it counts how far off a grade is."
    return Table("many_classes", "More than two classes", note, pd.DataFrame(data), table)


def selection_table(frame: pd.DataFrame) -> Table:
    """Settings chosen inside the guarantee: what the winners reach, and what all candidates spent."""
    data, shown = [], []
    chosen = with_role(frame, "selection")
    for setting, rows in settings_of(
        chosen[chosen["candidates"].notna()], ["dataset", "model", "mode", "target_epsilon"]
    ):
        values, cells = spread_columns(rows, HEADLINE)
        spent, count = rows["selection_epsilon"].astype(float).max(), rows["candidates"].astype(int).max()
        data.append(setting | {"candidates": count, "epsilon": spent, "seeds": len(rows)} | values)
        shown.append(
            {"data": setting["dataset"], "model": setting["model"], "privacy": setting["mode"],
             "candidates": str(count), "true ε of all": number(spent), "seeds": str(len(rows))}
            | cells | {"runs": runs_text(rows)}
        )  # fmt: skip
    note = (
        "In each seed the candidates share one budget and the lowest validation loss is chosen. ε composes every step "
        "of every candidate, so for training records the choice is inside it, towards the server too; validation "
        "records, which decide, have no guarantee. The figure is one seed's: several add up. `runs` "
        "names the winners."
    )
    return Table("selection", "Chosen inside the guarantee", note, pd.DataFrame(data), pd.DataFrame(shown))


def _skew_text(setting: dict[str, Any]) -> dict[str, str]:
    return {"data": setting["dataset"], "model": setting["model"], "privacy": setting["mode"],
            "target ε": target(setting["target_epsilon"]), "partition": setting["partition"],
            "strategy": setting["strategy"]}  # fmt: skip


def step_overhead_table(frame: pd.DataFrame) -> Table:
    """Seconds of a training step with and without DP-SGD, by batch size."""
    rows = with_role(frame, "step_overhead")
    rows = rows.assign(step=rows["round_seconds"].astype(float) / (rows["num_clients"] * rows["local_steps"]))
    data, shown = [], []
    for setting, group in settings_of(rows.sort_values("batch"), ["model", "batch"]):
        plain, private = (group[group["target_epsilon"].isna() == wanted] for wanted in (True, False))
        if plain.empty or private.empty:
            continue
        seconds = [float(part["step"].median()) for part in (plain, private)]
        ratio = seconds[1] / seconds[0]
        data.append(setting | {"plain_seconds": seconds[0], "private_seconds": seconds[1], "ratio": ratio,
                               "runs": runs_text(group)})  # fmt: skip
        shown.append({"model": setting["model"], "expected batch": f"{setting['batch']:g}",
                      "plain, ms a step": f"{1000 * seconds[0]:.1f}", "DP-SGD, ms a step": f"{1000 * seconds[1]:.1f}",
                      "ratio": f"{ratio:.2f}", "runs": runs_text(group)})  # fmt: skip
    note = (
        "Wall time of a round's training over hospitals and steps, the median over rounds, the first left out where "
        "there are more. It includes what a round costs around the steps, in both columns."
    )
    return Table("step_overhead", "Cost of DP-SGD by batch size", note, pd.DataFrame(data), pd.DataFrame(shown))


def sum_overhead_table(frame: pd.DataFrame) -> Table:
    """Seconds and bytes of a round with plain and with secure aggregation, by model size."""
    rows = with_role(frame, "sum_overhead").sort_values("parameters")
    data, shown = [], []
    for setting, group in settings_of(rows, ["model", "parameters"]):
        plain, secure = (group[group["aggregation"] == name] for name in ("plain", "secure"))
        if plain.empty or secure.empty:
            continue
        seconds = [float(part["round_seconds"].median()) for part in (plain, secure)]
        megabytes = [float((part["round_bytes_up"] / part["num_clients"]).median()) / 1e6 for part in (plain, secure)]
        data.append(setting | {"plain_seconds": seconds[0], "secure_seconds": seconds[1],
                               "plain_megabytes_up": megabytes[0], "secure_megabytes_up": megabytes[1],
                               "runs": runs_text(group)})  # fmt: skip
        shown.append({"model": setting["model"], "parameters": f"{setting['parameters']:,.0f}",
                      "plain, s a round": f"{seconds[0]:.3f}", "secure, s a round": f"{seconds[1]:.3f}",
                      "extra, s": f"{seconds[1] - seconds[0]:.3f}", "plain, MB up": f"{megabytes[0]:.3f}",
                      "secure, MB up": f"{megabytes[1]:.3f}", "runs": runs_text(group)})  # fmt: skip
    steps = listed(sorted({int(count) for count in rows["local_steps"]})) if len(rows) else ""
    note = (
        f"A round's time without evaluation, with {steps} local step{'' if steps == '1' else 's'}; MB up are per "
        "hospital and round. Median over rounds, the first left out where there are more."
    )
    return Table(
        "sum_overhead", "Cost of secure aggregation by model size", note, pd.DataFrame(data), pd.DataFrame(shown)
    )
