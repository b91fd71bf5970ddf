"""The report's figures: convergence with the budget, hospitals, overhead; and those of single runs.

ROC, calibration and confusion matrices are of the run whose AUC is its group's median.
"""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from medx.figures import (
    COLOURS,
    DASHES,
    INK,
    Picture,
    calibration_figure,
    confusion_figure,
    drawing,
    finish,
    legend,
    roc_figure,
    shortened,
)  # fmt: skip
from medx.report.cells import runs_text, target, who
from medx.report.rows import (
    Results,
    seeds_by_setting,
    settings_of,
    skew_rows,
    with_role,
)
from medx.report.tables import round_values
from medx.results import ClientResult, CurveData, ExperimentResult


def at_the_ends(frame: pd.DataFrame) -> pd.DataFrame:
    """Runs at the smallest and at the largest target epsilon, and without privacy: a figure has room for these."""
    known = frame["target_epsilon"]
    return frame[known.isna() | (known == known.min()) | (known == known.max())]


def convergence_figures(frame: pd.DataFrame, results: Results, dataset: str) -> Iterator[Picture]:
    """Test AUC by round above the epsilon spent by then: runs of few rounds, and of as many as are useful."""
    # A variant of a mode lies on its line, and a legend has room for the modes alone.
    frame = frame[(frame["dataset"] == dataset) & ~frame["mode"].str.contains("(", regex=False)]
    frame = at_the_ends(frame)
    parts = {
        "few": (with_role(frame, "convergence"), "a few rounds"),
        "full": (with_role(frame, "utility"), "all rounds"),
    }
    for name, (rows, words) in parts.items():
        if rows.empty:
            continue
        with drawing(2, (4.7, 5.2)) as (figure, (above, below)):
            for index, (setting, part) in enumerate(settings_of(rows)):
                style = {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index // len(COLOURS) % 4]}
                _rounds_line(above, round_values(part, results, "auc"), style, who(setting))
                _rounds_line(below, round_values(part, results, None), style, None)
            above.set(ylabel="test AUC")
            below.set(ylabel="ε spent so far", xlabel="round" if name == "few" else "round (log scale)")
            below.xaxis.set_major_locator(MaxNLocator(integer=True))
            if name == "full":
                below.set_xscale("log")
                ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500) if tick <= rows["rounds"].max()]
                below.set_xticks(ticks, [str(tick) for tick in ticks])
                below.minorticks_off()
            legend(above)
            what = "One seed" if seeds_by_setting(rows) == [1] else "Mean over seeds, band from smallest to largest"
            caption = f"{what}; {dataset}. Runs {runs_text(rows['run'])}."
            key = re.sub(r"[^\w.]+", "_", f"convergence_{name}_{dataset}")
            yield finish(figure, key, f"{dataset}: convergence over {words}", caption)


def _rounds_line(axes: Axes, values: dict[int, list[float]], style: dict[str, Any], label: str | None) -> None:
    if not values:
        return
    x = sorted(values)
    axes.plot(x, [float(np.mean(values[r])) for r in x], label=label, linewidth=1.4,
              marker="o" if len(x) < 12 else None, **style)  # fmt: skip
    axes.fill_between(x, [min(values[r]) for r in x], [max(values[r]) for r in x], color=style["color"], alpha=0.15,
                      linewidth=0)  # fmt: skip


def hospital_figures(frame: pd.DataFrame, results: Results, dataset: str) -> Iterator[Picture]:
    """One dot a hospital and seed, by how unequal the hospitals are; a bar at the mean."""
    rows = skew_rows(frame[(frame["dataset"] == dataset) & (frame["strategy"] == "fedavg")])
    for setting, part in settings_of(rows, ["model", "mode", "target_epsilon"]):
        names = list(dict.fromkeys(part["partition"]))
        with drawing() as (figure, (axes,)):
            for place, name in enumerate(names):
                clients = [
                    client for run in part[part["partition"] == name]["run"] for client in results[int(run)].clients
                ]
                _hospital_dots(axes, place, clients)
            axes.set_xticks(range(len(names)), [name.replace("(", "\n(") for name in names])
            axes.set_xlim(-0.6, len(names) - 0.4)
            axes.set(ylabel="accuracy on a hospital's own images", xlabel="how the images are dealt out")
            caption = (
                f"{who(setting)}: the final model on every hospital's own training images, one dot a hospital and "
                "seed, a colour a hospital, its area by the number of images; bar: mean. "
                f"Runs {runs_text(part['run'])}."
            )
            privacy = f"{setting['mode']}_{target(setting['target_epsilon'])}"
            name = re.sub(r"[^\w.]+", "_", f"hospitals_{dataset}_{setting['model']}_{privacy}")
            yield finish(figure, name, f"{dataset}: hospitals, {who(setting).split(', ')[-1]}", caption)


def _hospital_dots(axes: Axes, place: int, clients: list[ClientResult]) -> None:
    known = [(client, value) for client in clients if (value := client.metrics.get("accuracy")) is not None]
    if not known:
        return
    most = max(client.num_records for client, _ in known)
    count = 1 + max(client.client for client, _ in known)
    for client, value in known:
        offset = 0.5 * ((client.client + 0.5) / count - 0.5)
        axes.scatter(place + offset, value, s=12 + 40 * client.num_records / most, alpha=0.8, linewidths=0,
                     color=COLOURS[client.client % len(COLOURS)])  # fmt: skip
    axes.hlines(float(np.mean([value for _, value in known])), place - 0.3, place + 0.3, color=INK, linewidth=1.2)


def overhead_figures(steps: pd.DataFrame, sums: pd.DataFrame) -> Iterator[Picture]:
    """Bars of plain against private steps, and of plain against secure sums."""
    if not steps.empty:
        names = [f"{row.model}\nbatch {row.batch:g}" for row in steps.itertuples()]
        pairs = {"plain": 1000 * steps["plain_seconds"], "DP-SGD": 1000 * steps["private_seconds"]}
        runs = ", ".join(steps["runs"])
        words = ("step_overhead", "DP-SGD against plain steps", "milliseconds a step")
        yield _bars(words, names, pairs, runs)
    if not sums.empty:
        names = [f"{row.model}\n{row.parameters:,.0f}" for row in sums.itertuples()]
        pairs = {"plain sum": sums["plain_seconds"], "secure sum": sums["secure_seconds"]}
        runs = ", ".join(sums["runs"])
        yield _bars(
            ("sum_overhead", "Secure against plain sums", "seconds a round (log scale)"), names, pairs, runs, True
        )


def _bars(
    words: tuple[str, str, str], names: list[str], pairs: dict[str, pd.Series], runs: str, log: bool = False
) -> Picture:
    name, title, unit = words
    first, second = (pair.to_numpy(dtype=float) for pair in pairs.values())
    with drawing() as (figure, (axes,)):
        for index, (label, values) in enumerate(zip(pairs, (first, second), strict=True)):
            places = np.arange(len(values)) + 0.4 * index - 0.2
            axes.bar(places, values, 0.38, color=COLOURS[index], label=label, hatch="//" if index else None,
                     edgecolor=INK, linewidth=0.5)  # fmt: skip
        for place, (low, high) in enumerate(zip(first, second, strict=True)):
            axes.annotate(f"x {high / low:.2f}", (place + 0.2, high), ha="center", va="bottom", fontsize=8)
        axes.set_xticks(range(len(names)), names)
        axes.set(ylabel=unit, **({"yscale": "log"} if log else {}))
        axes.margins(y=0.15)
        axes.grid(False, axis="x")
        legend(axes)
        return finish(figure, name, title, f"The figure above a bar is the ratio of the two. Runs {runs}.")


def curve_figures(frame: pd.DataFrame, results: Results, dataset: str) -> Iterator[Picture]:
    """Of the first model ROC, calibration, and a confusion matrix a run; see ``at_the_ends``."""
    rows = with_role(frame[frame["dataset"] == dataset], "utility")
    chosen = list(_median_runs(at_the_ends(rows[rows["model"] == rows["model"].iloc[0]]), results)) if len(rows) else []
    if not chosen:
        return
    model, runs = str(rows["model"].iloc[0]), ", ".join(str(run) for _, run, _ in chosen)
    classes = {run: results[run].dataset.class_names for _, run, _ in chosen}
    data = re.sub(r"[^\w.]+", "_", dataset)
    if results[chosen[0][1]].dataset.task == "binary":
        lines = [(label, points.roc.get("1", [])) for label, _, points in chosen]
        caption = f"{model}, test split; of each setting the run with the median validation AUC. Runs {runs}."
        yield roc_figure(f"roc_{data}", f"{dataset}: ROC", lines, caption)
    else:
        for index, (label, run, points) in enumerate(chosen):
            lines = [(shortened(classes[run][int(key)]), line) for key, line in points.roc.items()]
            caption = f"{model}, {label}: every class against the rest, test split. Run {run}."
            yield roc_figure(f"roc_{data}_{index}", f"{dataset}: ROC, {label}", lines, caption)
    if not chosen[0][2].confusion_matrix:  # of several labels a record
        return
    caption = f"{model}, test split, 15 bins; below the line is overconfident. Runs {runs}."
    bins = [(label, points.calibration) for label, _, points in chosen]
    yield calibration_figure(f"calibration_{data}", f"{dataset}: calibration", bins, caption)
    for index, (label, run, points) in enumerate(chosen):
        what = "counts on test, the most probable class; the lighter, the more of its row"
        name, title = f"confusion_{data}_{index}", f"{dataset}: answers, {label}"
        caption = f"{model}, {label}: {what}. Run {run}."
        yield confusion_figure(name, title, points.confusion_matrix, classes[run], caption)


def _median_runs(rows: pd.DataFrame, results: Results) -> Iterator[tuple[str, int, CurveData]]:
    """(label, number, points) of each setting's median run by validation AUC."""
    for setting, part in settings_of(rows, ["mode", "target_epsilon"]):
        ordered = sorted((int(run) for run in part["run"]), key=lambda run: _validation_auc(results[run]))
        run = ordered[(len(ordered) - 1) // 2]
        label = (
            "no privacy" if setting["mode"] == "none" else f"{setting['mode']}, ε {target(setting['target_epsilon'])}"
        )
        if (points := results[run].curves) is not None:
            yield label, run, points


def _validation_auc(result: ExperimentResult) -> float:
    value = result.validation["auc"].value if "auc" in result.validation else None
    return -1.0 if value is None else value
