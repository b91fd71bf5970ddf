"""Figures of single runs: ROC, calibration and confusion matrices, of the run whose AUC is its group's median."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from medx.report.cells import target
from medx.report.figures import at_the_ends
from medx.report.rows import Results, settings_of, with_role
from medx.report.style import COLOURS, DASHES, FAINT, Picture, drawing, finish, legend
from medx.results import CurveData, ExperimentResult

Chosen = list[tuple[str, int, ExperimentResult]]


def choose_runs(frame: pd.DataFrame, results: Results, dataset: str) -> Chosen:
    """(label, run number, result) of the median run by validation AUC: see ``at_the_ends``, of the first model."""
    rows = with_role(frame[frame["dataset"] == dataset], "utility")
    if rows.empty:
        return []
    rows = rows[rows["model"] == rows["model"].iloc[0]]
    rows = at_the_ends(rows)
    chosen: Chosen = []
    for setting, part in settings_of(rows, ["mode", "target_epsilon"]):
        ordered = sorted((int(run) for run in part["run"]), key=lambda run: _validation_auc(results[run]))
        run = ordered[(len(ordered) - 1) // 2]
        epsilon = target(setting["target_epsilon"])
        label = "no privacy" if setting["mode"] == "none" else f"{setting['mode']}, ε {epsilon}"
        if results[run].curves is not None:
            chosen.append((label, run, results[run]))
    return chosen


def _validation_auc(result: ExperimentResult) -> float:
    value = result.validation["auc"].value if "auc" in result.validation else None
    return -1.0 if value is None else value


def curve_figures(frame: pd.DataFrame, results: Results, dataset: str) -> Iterator[Picture]:
    """ROC, calibration, and a confusion matrix a run."""
    chosen = choose_runs(frame, results, dataset)
    if not chosen:
        return
    model = str(frame.loc[frame["run"] == chosen[0][1], "model"].iloc[0])
    yield from _roc(dataset, model, chosen)
    yield _calibration(dataset, model, chosen)
    for index, (label, run, result) in enumerate(chosen):
        yield _confusion(dataset, index, f"{model}, {label}", (label, run, result))


def _curves(result: ExperimentResult) -> CurveData:
    assert result.curves is not None
    return result.curves


def _roc(dataset: str, model: str, chosen: Chosen) -> Iterator[Picture]:
    """Of two classes one figure with a line a run; of more a figure a run with a line a class."""
    if chosen[0][2].dataset.task == "binary":
        lines = [(label, _curves(result).roc.get("1", [])) for label, _, result in chosen]
        runs = ", ".join(str(run) for _, run, _ in chosen)
        caption = f"{model}, test split; of each setting the run with the median validation AUC. Runs {runs}."
        yield _roc_figure(f"roc_{dataset}", f"{dataset}: ROC", lines, caption)
        return
    for index, (label, run, result) in enumerate(chosen):
        names = result.dataset.class_names
        lines = [(_short(names[int(key)]), points) for key, points in _curves(result).roc.items()]
        caption = f"{model}, {label}: every class against the rest, test split. Run {run}."
        yield _roc_figure(f"roc_{dataset}_{index}", f"{dataset}: ROC, {label}", lines, caption)


def _roc_figure(name: str, title: str, lines: list[tuple[str, list[list[float]]]], caption: str) -> Picture:
    with drawing(size=(4.7, 4.3)) as (figure, (axes,)):
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, label="chance")
        for index, (label, points) in enumerate(lines):
            if points:
                x, y = np.array(points).T
                axes.plot(x, y, color=COLOURS[index % len(COLOURS)], linestyle=DASHES[index % 4], label=label)
        axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
        legend(axes)
        return finish(figure, name, title, caption)


def _calibration(dataset: str, model: str, chosen: Chosen) -> Picture:
    with drawing(size=(4.7, 4.3)) as (figure, (axes,)):
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, label="perfect")
        for index, (label, _, result) in enumerate(chosen):
            bins = _curves(result).calibration
            axes.plot([part["confidence"] for part in bins], [part["accuracy"] for part in bins], marker=".",
                      color=COLOURS[index % len(COLOURS)], linestyle=DASHES[index % 4], label=label)  # fmt: skip
        axes.set(xlabel="probability given to the answer", ylabel="share of right answers", aspect="equal")
        legend(axes)
        runs = ", ".join(str(run) for _, run, _ in chosen)
        caption = f"{model}, test split, 15 bins; below the line is overconfident. Runs {runs}."
        return finish(figure, f"calibration_{dataset}", f"{dataset}: calibration", caption)


def _confusion(dataset: str, index: int, who: str, chosen: tuple[str, int, ExperimentResult]) -> Picture:
    label, run, result = chosen
    matrix = np.array(_curves(result).confusion_matrix)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    names = [_short(name) for name in result.dataset.class_names]
    with drawing(size=(4.7, 3.9)) as (figure, (axes,)):
        axes.pcolormesh(share, cmap="cividis", vmin=0, vmax=1)  # not imshow, which is a bitmap in SVG
        axes.invert_yaxis()
        axes.grid(False)
        few = len(names) < 4
        places = [index + 0.5 for index in range(len(names))]
        axes.set_xticks(places, names, rotation=0 if few else 35, ha="center" if few else "right")
        axes.set_yticks(places, names)
        for row, column in np.ndindex(matrix.shape):
            colour = "#000000" if share[row, column] > 0.5 else "#ffffff"
            axes.text(
                column + 0.5, row + 0.5, str(matrix[row, column]), ha="center", va="center", color=colour, fontsize=8
            )
        axes.set(xlabel="answered", ylabel="true class")
        caption = f"{who}: counts on test, the most probable class; the lighter, the more of its row. Run {run}."
        return finish(figure, f"confusion_{dataset}_{index}", f"{dataset}: answers, {label}", caption)


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"
