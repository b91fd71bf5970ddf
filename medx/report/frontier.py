"""Utility against epsilon: the picture that a study is for, and the references that stand beside its lines."""

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from medx.figures import COLOURS, DASHES, FAINT, INK, MARKERS, Picture, drawing, finish, legend
from medx.report.cells import runs_text, summarise
from medx.report.rows import HEADLINE, OPERATING, seeds_by_setting, settings_of, with_phantoms, with_role
from medx.report.study import Claim
from medx.report.words import LABELS

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
    lines = sum(1 for _ in settings_of(private, LINE_KEYS)) + len(dict(_levels(rows, "auc")))
    for metric, label in FRONTIERS.items():
        if private[metric].isna().all():  # hospitals may keep their test images
            continue
        with drawing(size=(4.7, 3.1 + 0.15 * lines)) as (figure, (axes,)):
            for index, (line, part) in enumerate(settings_of(private, LINE_KEYS)):
                _frontier_line(axes, part, metric, index, f"{line['model']}, {line['mode']}")
            levels = dict(_levels(rows, metric))
            for index, (label_of, level) in enumerate(levels.items()):
                axes.axhline(level, color=INK if "no privacy" in label_of else COLOURS[-1 - index % 3],
                             linestyle=DASHES[1 + index % 3], linewidth=1, label=label_of)  # fmt: skip
            points = [summarise(part[metric]).mean for _, part in settings_of(private, [*LINE_KEYS, "target_epsilon"])]
            majority = float(rows["majority_accuracy"].astype(float).iloc[0])
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


def _levels(rows: pd.DataFrame, metric: str) -> Iterator[tuple[str, float]]:
    """What runs without privacy come to, and the models that they were compared with; and phantoms alone."""
    for line, part in settings_of(with_phantoms(rows), ["model"]):
        if metric in (*HEADLINE, *OPERATING):
            yield f"{line['model']}, phantoms alone (ε 0)", summarise(part[metric]).mean
    for line, part in settings_of(rows[rows["epsilon"].isna()], LINE_KEYS):
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
