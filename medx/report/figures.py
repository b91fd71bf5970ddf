"""The report's figures: frontier, convergence with the budget, hospitals, overhead; and those of single runs.

ROC, calibration and confusion matrices are of the run whose AUC is its group's median.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from medx.figures import (
    COLOURS,
    DASHES,
    FAINT,
    INK,
    MARKERS,
    Picture,
    calibration_figure,
    confusion_figure,
    drawing,
    finish,
    legend,
    roc_figure,
    shortened,
)  # fmt: skip
from medx.report.cells import runs_text, summarise, target, who
from medx.report.rows import Results, seeds_by_setting, settings_of, skew_rows, with_role
from medx.report.study import Claim
from medx.report.tables import round_values
from medx.report.words import LABELS
from medx.results import ClientResult, CurveData, ExperimentResult

FRONTIERS = {
    "auc": "AUC",
    "balanced_accuracy_at_threshold": "balanced accuracy",
    "accuracy": "accuracy, most probable class",
}
EPSILONS = [digit * 10.0**power for power in range(-4, 4) for digit in (1, 2, 5)]  # ticks
BESIDE = {"local_only": "alone", "centralized": "one place"}  # as a legend has room for
LINE_KEYS = ["model", "mode", "rounds"]


def frontier_figures(frame: pd.DataFrame, dataset: str, class_count: int, claim: Claim | None) -> Iterator[Picture]:
    """Utility against true epsilon: a line with its 95 % band a mode, and what stands beside it as lines.

    The axis shows where the points and what they are compared with lie; a majority far below them is told instead.
    """
    rows = with_role(frame[frame["dataset"] == dataset], "utility")
    private = rows[rows["epsilon"].notna()]
    if private.empty:
        return
    labels = (frame["task"][frame["dataset"] == dataset] == "multilabel").any()
    lines = sum(1 for _ in settings_of(private, LINE_KEYS)) + len(dict(_levels(rows[rows["epsilon"].isna()], "auc")))
    for metric, label in FRONTIERS.items():
        with drawing(size=(4.7, 3.1 + 0.15 * lines)) as (figure, (axes,)):
            for index, (line, part) in enumerate(settings_of(private, LINE_KEYS)):
                _frontier_line(axes, part, metric, index, f"{line['model']}, {line['mode']}")
            levels = dict(_levels(rows[rows["epsilon"].isna()], metric))
            for index, (label_of, level) in enumerate(levels.items()):
                axes.axhline(level, color=INK if "no privacy" in label_of else COLOURS[-1 - index % 3],
                             linestyle=DASHES[1 + index % 3], linewidth=1, label=label_of)  # fmt: skip
            points = [summarise(part[metric]).mean for _, part in settings_of(private, [*LINE_KEYS, "target_epsilon"])]
            majority = float(rows["majority_accuracy"].iloc[0])
            floor = {"auc": 0.5, "balanced_accuracy_at_threshold": 0.5 if labels else 1 / class_count}.get(
                metric, majority
            )
            told = claim if claim is not None and claim.dataset == dataset and metric == "accuracy" else None
            low, high = _range([*points, *levels.values(), *([told.accuracy] if told else [])], floor)
            below = f": {floor:.3f}, below" if floor < low else ""
            axes.axhline(floor, color=FAINT, linestyle=":", linewidth=1.5, label=f"always the majority class{below}")
            if told is not None:
                axes.plot([told.epsilon, told.composed_epsilon], [told.accuracy] * 2, marker="X", color=INK,
                          linewidth=0.8, label="published: as stated, and composed")  # fmt: skip
            _epsilon_axis(axes, private["epsilon"].astype(float))
            axes.set(ylabel=f"test {label}", ylim=(low, high))
            legend(axes)
            what = "One seed" if seeds_by_setting(rows) == [1] else "Mean over seeds with its 95 % t interval as a band"
            caption = f"{what}; {dataset}, test split. {_explained(levels)}Runs {runs_text(rows['run'])}."
            name = re.sub(r"[^\w.]+", "_", f"frontier_{dataset}_{metric}")
            yield finish(figure, name, f"{dataset}: {label.split(',')[0]} and ε", caption)


def _levels(plain: pd.DataFrame, metric: str) -> Iterator[tuple[str, float]]:
    """What runs without privacy come to, and the models that they were compared with."""
    for line, part in settings_of(plain, LINE_KEYS):
        yield f"{line['model']}, no privacy", summarise(part[metric]).mean
        for baseline, words in BESIDE.items():
            values = part.get(f"{baseline}_{metric}")
            if values is not None and values.notna().any():
                yield f"{line['model']}, no privacy, {words}", summarise(values).mean


def _explained(levels: Iterable[str]) -> str:
    """What the lines beside are of, which a legend has no room for."""
    said = {f", {word}": f"{word}: {LABELS[baseline]}" for baseline, word in BESIDE.items()}
    told = [text for ending, text in said.items() if any(level.endswith(ending) for level in levels)]
    return f"{'; '.join(told).capitalize()}. " if told else ""


def _range(values: Sequence[float], floor: float) -> tuple[float, float]:
    """The ends of an axis for these values, and for the floor too where it lies near."""
    known = [value for value in values if not np.isnan(value)] or [floor]
    low, high = min(known), max(known)
    room = max(high - low, 0.02)
    low = floor if low - room <= floor <= low else low
    return max(min(low, high) - 0.15 * room, 0.0), min(high + 0.15 * room, 1.005)


def at_the_ends(frame: pd.DataFrame) -> pd.DataFrame:
    """Runs at the smallest and at the largest target epsilon, and without privacy: a figure has room for these."""
    known = frame["target_epsilon"]
    return frame[known.isna() | (known == known.min()) | (known == known.max())]


def _frontier_line(axes: Axes, rows: pd.DataFrame, metric: str, index: int, label: str) -> None:
    points = []
    for _, part in settings_of(rows, ["target_epsilon"]):
        summary = summarise(part[metric])
        points.append((float(part["epsilon"].astype(float).mean()), summary.mean, summary.low, summary.high))
    x, mean, low, high = np.array(sorted(points)).T
    colour = COLOURS[index % len(COLOURS)]
    axes.plot(x, mean, color=colour, marker=MARKERS[index % len(MARKERS)], label=label)
    axes.fill_between(x, np.where(np.isnan(low), mean, low), np.where(np.isnan(high), mean, high), color=colour,
                      alpha=0.2, linewidth=0)  # fmt: skip


def _epsilon_axis(axes: Axes, values: pd.Series) -> None:
    axes.set_xscale("log")
    ticks = [tick for tick in EPSILONS if values.min() / 2 <= tick <= values.max() * 2]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="true ε of the whole run (log scale; smaller is more private)")


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
