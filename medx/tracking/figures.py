"""The figures of a result, as PNG files: confusion matrix, ROC, calibration."""

from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medx.results import CurveData, ExperimentResult

# Okabe and Ito (2008): told apart with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
LINES = ("-", "--", ":", "-.")


def draw_figures(result: ExperimentResult, folder: Path) -> list[Path]:
    """Write ``confusion_matrix.png``, ``roc.png`` and ``calibration.png`` where their points exist."""
    if result.curves is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    subtitle = result.dataset.name + (" (SYNTHETIC)" if result.dataset.synthetic else "") + ", test"
    names = result.dataset.class_names
    figures = {"confusion_matrix": _confusion(result.curves, names, subtitle)}
    if result.curves.roc:
        figures["roc"] = _roc(result, result.curves, subtitle)
    if result.curves.calibration:
        figures["calibration"] = _calibration(result.curves, subtitle)
    for name, figure in figures.items():
        _write(figure, folder / f"{name}.png")
    return [folder / f"{name}.png" for name in figures]


def draw_nothing() -> None:
    """Draw an empty figure into memory: the first one finds the fonts, which takes as long as the others."""
    figure, _ = _axes("nothing", "x", "y")
    _write(figure, BytesIO())


def _write(figure: Figure, target: Path | BytesIO) -> None:
    """The same bytes as ``savefig``, which lays everything out twice."""
    figure.set_dpi(120)
    FigureCanvasAgg(figure).print_png(target)


def _axes(
    title: str, x: str, y: str, *, left: float = 0.6, bottom: float = 0.5, right: float = 0.15
) -> tuple[Figure, Axes]:
    """A figure and its axes, with margins in inches: to have them found takes as long as all the drawing."""
    # A bare Figure draws with Agg and leaves pyplot's global state alone, so it is safe in a thread.
    width, height = 5.2, 4.6
    figure = Figure(figsize=(width, height))
    box = (left / width, bottom / height, (width - left - right) / width, (height - bottom - 0.4) / height)
    axes = figure.add_axes(box)
    figure.suptitle(title, y=1 - 0.1 / height)
    axes.set(xlabel=x, ylabel=y)
    return figure, axes


def _confusion(curves: CurveData, names: list[str], subtitle: str) -> Figure:
    matrix = np.array(curves.confusion_matrix)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    short = [name if len(name) <= 16 else name[:15] + "…" for name in names]
    widest = 0.08 * max(map(len, short))  # inches
    turned = len(names) >= 4
    margins = {"left": 0.4 + widest, "bottom": 0.4 + (widest if turned else 0.15), "right": 0.4}
    figure, axes = _axes(f"Confusion matrix, {subtitle}", "answered", "true class", **margins)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), short, rotation=60 if turned else 0, fontsize=8)
    axes.set_yticks(range(len(names)), short, fontsize=8)
    for row, column in np.ndindex(matrix.shape):
        colour = "white" if share[row, column] > 0.55 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, label="share of the true class")
    return figure


def _roc(result: ExperimentResult, curves: CurveData, subtitle: str) -> Figure:
    figure, axes = _axes(f"ROC, {subtitle}", "false positive rate", "true positive rate")
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="chance")
    for place, (index, points) in enumerate(curves.roc.items()):
        x, y = np.array(points).T
        colour, line = COLOURS[place % len(COLOURS)], LINES[place // len(COLOURS) % len(LINES)]
        area = f" (area {np.trapezoid(y, x):.3f})"
        axes.plot(x, y, line, color=colour, label=result.dataset.class_names[int(index)] + area)
    axes.legend(loc="lower right", fontsize=8)
    return figure


def _calibration(curves: CurveData, subtitle: str) -> Figure:
    figure, axes = _axes(f"Calibration, {subtitle}", "confidence of the answer", "share correct")
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="perfect")
    bins = curves.calibration
    counts = np.array([each["count"] for each in bins])
    x, y = [each["confidence"] for each in bins], [each["accuracy"] for each in bins]
    axes.plot(x, y, color=COLOURS[0], linewidth=1)
    axes.scatter(x, y, s=20 + 180 * counts / counts.max(), color=COLOURS[1], label="bin (area: images)", zorder=3)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(loc="upper left", fontsize=8)
    return figure
