"""Tables of what stands around utility: how sure and how equal it is, what privacy costs, and every run behind it."""

import itertools
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from medx.report.cells import (
    DASH,
    TITLES,
    Row,
    Table,
    cited,
    holm,
    number,
    paired,
    settled,
    signed,
    spent,
    spread,
    spreads,
    summarise,
)  # fmt: skip
from medx.report.rows import BASELINES, SKEW_SETTING, SKEW_SHOWN, WHO, Results, Run, settings_of, skew_rows, with_role
from medx.report.words import LABELS, listed
from medx.results import Interval

DESCRIBED = ("dataset", "model", "mode", "target_epsilon", "partition", "strategy", "rounds", "batch")


def images_table(frame: pd.DataFrame) -> Table:
    """Noise of the test images beside the spread over seeds, for AUC."""
    rows = []
    for setting, part in settings_of(with_role(frame, "utility")):
        low, high = (part[f"auc_images_{end}"].astype(float).mean() for end in ("low", "high"))
        summary = summarise(part["auc"])
        data = {"auc_mean": summary.mean, "auc_sd": summary.sd, "images_low": low, "images_high": high}
        shown = {"AUC": number(summary.mean), "sd over seeds": number(summary.sd, digits=4),
                 "over images": f"[{number(low)}, {number(high)}]"}  # fmt: skip
        rows.append(settled(setting, "dataset", *WHO) | spent(part) | Row(data, shown))
    note = "Over images: 95 % percentile bootstrap with the model fixed, the bounds averaged over the runs. "
    several = any(part["seed"].nunique() > 1 for _, part in settings_of(with_role(frame, "utility")))
    note += (
        "Over seeds: what another seed changes, on the same images. The two are different questions and are not added "
        "up."
        if several
        else "What another seed would change is not known."
    )
    return Table.of("image_noise", "Two kinds of uncertainty" if several else "Noise of the test images", note, rows)


def paired_table(frame: pd.DataFrame) -> Table:
    """Two privacy modes at the same epsilon and seed; differences inside noise are said to be."""
    guarded = with_role(frame, "utility")
    guarded = guarded[guarded["target_epsilon"].notna()]
    found = [
        (setting, part, first, second, metric)
        for setting, part in settings_of(guarded, ["dataset", "model", "partition", "target_epsilon"])
        for first, second in itertools.combinations(dict.fromkeys(part["mode"]), 2)
        for metric in ("auc", "balanced_accuracy_at_threshold")
    ]
    tests = []
    for _, part, first, second, metric in found:
        wide = part.astype({metric: float}).pivot_table(index="seed", columns="mode", values=metric, dropna=False)
        tests.append(paired(wide[first].tolist(), wide[second].tolist()))
    if all(test.n < 2 for test, _ in tests):  # of one seed nothing can be said
        return Table.of("paired_modes", "", "", [])
    adjusted = holm([p for _, p in tests])
    rows = []
    for (setting, part, first, second, metric), (test, p), p_holm in zip(found, tests, adjusted, strict=True):
        verdict = "not tested" if np.isnan(p_holm) else "beyond noise" if p_holm < 0.05 else "inside noise"
        data = {"first": first, "second": second, "metric": metric, "pairs": test.n, "low": test.low,
                "difference": test.mean, "high": test.high, "p": p, "p_holm": p_holm, "verdict": verdict}  # fmt: skip
        shown = {"difference": f"{second} - {first}", "metric": TITLES[metric], "mean": signed(test.mean),
                 "95 %": f"[{signed(test.low)}, {signed(test.high)}]", "pairs": str(test.n),
                 "p (Holm)": number(p_holm), "verdict": verdict} | cited(part).shown  # fmt: skip
        rows.append(settled(setting, "dataset", "model", "target_epsilon") | Row(data, shown))
    pairs = max((test.n for test, _ in tests), default=0)
    note = (
        "Paired t test over seeds (the same partition in a pair), adjusted for the number of rows (Holm 1979). It "
        "speaks of these test images and of retraining, not of other patients"
        + (f"; with at most {pairs} pairs only large differences can show." if pairs < 10 else ".")
    )
    return Table.of("paired_modes", "Two modes at the same ε", note, rows)


def hospital_table(frame: pd.DataFrame) -> Table:
    """Utility under unequal hospitals, with the worst and the best of them."""
    metrics = ("auc", "balanced_accuracy_at_threshold", "hospital_worst", "hospital_best")
    rows = [
        settled(setting, *SKEW_SHOWN) | spreads(part, metrics)
        | Row({"seeds": part["seed"].nunique()}, {}) | cited(part)
        for setting, part in settings_of(skew_rows(frame), SKEW_SETTING)
    ]  # fmt: skip
    note = (
        "Test AUC and balanced accuracy; then accuracy of the final model on the worst and best hospital's own "
        "training images. The study holds all data and can compute it; in a deployment it would not leave"
        + (", and ε does not cover it." if private(frame) else ".")
    )
    return Table.of("hospitals", "Unequal hospitals", note, rows)


def site_table(frame: pd.DataFrame, results: Results) -> Table:
    """Hospitals of the data, each on its own test images, beside its own model and one that has all records."""
    rows = []
    beside = False
    for setting, part in settings_of(frame):
        runs = [results[int(run)] for run in part["run"]]
        if runs[0].personal:  # which have tables of their own
            continue
        for client in [client.client for client in runs[0].clients if client.test]:
            found = [run.clients[client] for run in runs]
            images = sum(found[0].test_counts or [])
            row = Row({"hospital": client, "images": images}, {"hospital": found[0].title, "test images": str(images)})
            for who, title in (("run", "this run"), *((name, LABELS[name]) for name in BASELINES)):
                tested = [each.test if who == "run" else each.baselines.get(who, {}) for each in found]
                row |= _tested(tested, who, title)
                beside |= who != "run" and any(tested)
            rows.append(settled(setting, "dataset", *WHO) | spent(part) | row | cited(part))
    told = [
        "On a hospital's own test images, with the 95 % bootstrap interval over them, both averaged over seeds.",
        "Of those that train alone, its own model." if beside else "",
        "A private run beside which they are trained shares its ε with them." if beside and private(frame) else "",
        "ε does not cover these figures." if private(frame) else "",
    ]
    note = " ".join(filter(None, told))
    return Table.of("sites", "Each hospital's own test images", note, rows)


def subgroup_table(frame: pd.DataFrame, results: Results) -> Table:
    """Groups of people that the data's own columns tell, each on its test images."""
    rows = []
    for setting, part in settings_of(frame):
        runs = [results[int(run)] for run in part["run"]]
        for group in runs[0].subgroups:
            images = sum(group.class_counts)
            known = {"column": group.column, "group": group.value}
            row = Row(known | {"images": images}, known | {"test images": str(images)})
            same = [
                each
                for run in runs
                for each in run.subgroups
                if (each.column, each.value) == (group.column, group.value)
            ]
            row |= _tested([each.metrics for each in same], "run", "this run")
            rows.append(settled(setting, "dataset", *WHO) | spent(part) | row | cited(part))
    note = (
        "Test images of each group, with the 95 % bootstrap interval over them, both averaged over seeds. Small groups "
        "have wide intervals, which show little." + (" ε does not cover these figures." if private(frame) else "")
    )
    return Table.of("subgroups", "Groups of people", note, rows)


def _tested(tested: Sequence[dict[str, Interval]], who: str, title: str) -> Row:
    """AUC and balanced accuracy of one model, over seeds; nothing where it was not trained."""
    row = Row({}, {})
    for metric, short in (("auc", "AUC"), ("balanced_accuracy_at_threshold", "bal. acc.")):
        known = [found[metric] for found in tested if metric in found]
        if not known:
            continue
        value, low, high = (
            np.mean([each for one in known if (each := getattr(one, end)) is not None] or [np.nan])
            for end in ("value", "low", "high")
        )
        data = {f"{who}_{metric}": value, f"{who}_{metric}_low": low, f"{who}_{metric}_high": high}
        row |= Row(data, {f"{short}, {title}": f"{number(value)} [{number(low)}, {number(high)}]"})
    return row


def class_table(frame: pd.DataFrame, class_names: dict[str, list[str]]) -> Table:
    """Recall of every class, one row a class."""
    chosen = skew_rows(frame[frame["task"] != "multilabel"])
    rows = []
    for setting, part in settings_of(chosen[chosen["strategy"] == "fedavg"], SKEW_SETTING):
        for index, name in enumerate(class_names[setting["dataset"]]):
            if f"recall_{index}" not in part:  # no test image of it was at hand, as where hospitals keep theirs
                continue
            recall = summarise(part[f"recall_{index}"])
            measured = Row({"class": name, "recall_mean": recall.mean, "recall_sd": recall.sd},
                           {"class": name, "recall": spread(recall, True)})  # fmt: skip
            rows.append(settled(setting, *SKEW_SHOWN) | measured | cited(part))
    note = "Share of a class's test images that get that class as the most probable one."
    return Table.of("classes", "Recall by class", note, rows)


def private(frame: pd.DataFrame) -> bool:
    """Whether any run has a guarantee."""
    return bool(frame["epsilon"].notna().any())


def calibration_table(frame: pd.DataFrame) -> Table:
    """Expected calibration error and Brier score of the most probable class and of the probabilities."""
    rows = [
        settled(setting, "dataset", *WHO) | spent(part) | spreads(part, ("ece", "brier"))
        for setting, part in settings_of(with_role(frame, "utility"))
    ]
    note = (
        "ECE: 15 bins of equal width over the most probable class's probability. Brier: squared error; lower is better."
    )
    return Table.of("calibration", "Calibration on test", note, rows)


def step_overhead_table(frame: pd.DataFrame) -> Table:
    """Seconds of a training step with and without DP-SGD, by batch size."""
    every = with_role(frame, "step_overhead")
    every = every.assign(step=every["round_seconds"].astype(float) / (every["num_clients"] * every["local_steps"]))
    rows = []
    for setting, part in settings_of(every.sort_values("batch"), ["model", "batch"]):
        plain, private = (float(part["step"][part["target_epsilon"].isna() == is_plain].median())
                          for is_plain in (True, False))  # fmt: skip
        if np.isnan([plain, private]).any():
            continue
        data = {"plain_seconds": plain, "private_seconds": private, "ratio": private / plain}
        shown = {"expected batch": f"{setting['batch']:g}", "plain, ms a step": f"{1000 * plain:.1f}",
                 "DP-SGD, ms a step": f"{1000 * private:.1f}", "ratio": f"{private / plain:.2f}"}  # fmt: skip
        rows.append(settled(setting, "model") | Row(data, shown) | cited(part))
    note = (
        "Wall time of a round's training over hospitals and steps, the median over rounds, the first left out where "
        "there are more. It includes what a round costs around the steps, in both columns."
    )
    return Table.of("step_overhead", "Cost of DP-SGD by batch size", note, rows)


def sum_overhead_table(frame: pd.DataFrame) -> Table:
    """Seconds and bytes of a round with plain and with secure aggregation, by model size."""
    every = with_role(frame, "sum_overhead").sort_values("parameters")
    every = every.assign(megabytes=every["round_bytes_up"] / every["num_clients"])
    rows = []
    for setting, part in settings_of(every, ["model", "parameters"]):
        medians = part.groupby("aggregation")[["round_seconds", "megabytes"]].median()
        if not {"plain", "secure"} <= set(medians.index):
            continue
        plain, secure = (float(medians["round_seconds"][name]) for name in ("plain", "secure"))
        plain_up, secure_up = (float(medians["megabytes"][name]) / 1e6 for name in ("plain", "secure"))
        data = {"plain_seconds": plain, "secure_seconds": secure, "plain_megabytes_up": plain_up,
                "secure_megabytes_up": secure_up}  # fmt: skip
        shown = {"parameters": f"{setting['parameters']:,.0f}", "plain, s a round": f"{plain:.3f}",
                 "secure, s a round": f"{secure:.3f}", "extra, s": f"{secure - plain:.3f}",
                 "plain, MB up": f"{plain_up:.3f}", "secure, MB up": f"{secure_up:.3f}"}  # fmt: skip
        rows.append(settled(setting, "model") | Row(data, shown) | cited(part))
    steps = listed(sorted({int(count) for count in every["local_steps"]})) if len(every) else ""
    note = (
        f"A round's time without evaluation, with {steps} local step{'' if steps == '1' else 's'}; MB up are per "
        "hospital and round. Median over rounds, the first left out where there are more."
    )
    return Table.of("sum_overhead", "Cost of secure aggregation by model size", note, rows)


def appendix_table(runs: Sequence[Run], frame: pd.DataFrame, where: str) -> Table:
    """Every run behind the report; ``where`` says in which folder one lies."""
    kept = ["run", "roles", "config_hash", "seed", "started", "mlflow_run", "git", "seconds"]
    named = {run.number: run.name for run in runs}
    rows = []
    for _, record in frame.reindex(columns=[*kept, *DESCRIBED]).iterrows():
        told: dict[str, Any] = {name: None if pd.isna(record[name]) else record[name] for name in kept}
        name = named.get(told["run"]) or _described(record)
        shown = {"run": str(told["run"]), "job": name, "used for": told["roles"].replace(" ", ", ").replace("_", " "),
                 "hash": told["config_hash"], "began (UTC)": _moment(told["started"]),
                 "MLflow run": told["mlflow_run"] or "not tracked", "code": told["git"] or DASH,
                 "seconds": number(told["seconds"], digits=1)}  # fmt: skip
        rows.append(Row({"run": told["run"], "name": name} | told, shown))
    note = f"{where}; the hash covers all that its numbers depend on."
    return Table.of("runs", "Runs", note, rows)


def _described(record: pd.Series) -> str:
    """A run whose name is not known, as its row knows it."""
    epsilon = [] if pd.isna(record["target_epsilon"]) else [f"ε={record['target_epsilon']:g}"]
    words = [str(record[name]) for name in ("dataset", "model", "mode")] + epsilon
    batch = [] if pd.isna(record["batch"]) else [f"batch {record['batch']:g}"]
    return " ".join([*words, str(record["partition"]), str(record["strategy"]), f"{record['rounds']} rounds", *batch,
                     f"seed={record['seed']}"])  # fmt: skip


def _moment(started: str | None) -> str:
    return DASH if started is None else f"{datetime.fromisoformat(started):%Y-%m-%d %H:%M}"
