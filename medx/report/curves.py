"""Figures of single runs: ROC, calibration and confusion matrices, of the run whose AUC is its group's median."""

from collections.abc import Iterator

import pandas as pd

from medx.figures import Picture, calibration_figure, confusion_figure, roc_figure, shortened
from medx.report.cells import target
from medx.report.figures import at_the_ends
from medx.report.rows import Results, settings_of, with_role
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
    runs = ", ".join(str(run) for _, run, _ in chosen)
    caption = f"{model}, test split, 15 bins; below the line is overconfident. Runs {runs}."
    lines = [(label, _curves(result).calibration) for label, _, result in chosen]
    yield calibration_figure(f"calibration_{dataset}", f"{dataset}: calibration", lines, caption)
    for index, (label, run, result) in enumerate(chosen):
        what = "counts on test, the most probable class; the lighter, the more of its row"
        caption = f"{model}, {label}: {what}. Run {run}."
        name, title = f"confusion_{dataset}_{index}", f"{dataset}: answers, {label}"
        yield confusion_figure(name, title, _curves(result).confusion_matrix, result.dataset.class_names, caption)


def _curves(result: ExperimentResult) -> CurveData:
    assert result.curves is not None
    return result.curves


def _roc(dataset: str, model: str, chosen: Chosen) -> Iterator[Picture]:
    """Of two classes one figure with a line a run; of more a figure a run with a line a class."""
    if chosen[0][2].dataset.task == "binary":
        lines = [(label, _curves(result).roc.get("1", [])) for label, _, result in chosen]
        runs = ", ".join(str(run) for _, run, _ in chosen)
        caption = f"{model}, test split; of each setting the run with the median validation AUC. Runs {runs}."
        yield roc_figure(f"roc_{dataset}", f"{dataset}: ROC", lines, caption)
        return
    for index, (label, run, result) in enumerate(chosen):
        names = result.dataset.class_names
        lines = [(shortened(names[int(key)]), points) for key, points in _curves(result).roc.items()]
        caption = f"{model}, {label}: every class against the rest, test split. Run {run}."
        yield roc_figure(f"roc_{dataset}_{index}", f"{dataset}: ROC, {label}", lines, caption)
