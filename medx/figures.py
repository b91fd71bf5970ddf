"""Figures: how they look (colour-blind safe, one column wide, light and dark in a page), and those of single runs.

A run's ROC, calibration and answers are drawn here alone, for MLflow and for the report.
"""

import base64
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shutil import copyfile
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medx.results import ExperimentResult

# Okabe and Ito (2008), the ones that read on white and on black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":")
INK, FAINT, GROUND = "#1b1f24", "#8c959f", "#fdfefe"
ROOM = 0.1  # inches beside long labels, which an SVG draws wider than they were laid out
SIZE = (4.7, 3.5)  # inches: legible at the width of a phone
SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "text.color": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.facecolor": GROUND, "figure.facecolor": GROUND, "savefig.facecolor": GROUND,
    "legend.facecolor": GROUND, "legend.edgecolor": FAINT, "legend.framealpha": 0.85, "grid.color": FAINT,
    "grid.alpha": 0.35, "axes.grid": True, "axes.axisbelow": True, "font.size": 9, "axes.titlesize": 10,
    "legend.fontsize": 7.5, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "path",
    "font.family": "DejaVu Sans", "lines.markersize": 5,
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A drawn figure, rendered when it is asked for. ``caption`` says what it shows and which runs are behind it."""

    name: str
    title: str
    caption: str
    figure: Figure

    @cached_property
    def svg(self) -> str:
        """The same bytes for the same data."""
        text = io.StringIO()
        with mpl.rc_context(SETTINGS | {"svg.hashsalt": self.name}):
            self.figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        return text.getvalue()

    @cached_property
    def png(self) -> bytes:
        """The same bytes for the same data."""
        image = io.BytesIO()
        with mpl.rc_context(SETTINGS):
            self.figure.savefig(image, format="png", dpi=120, metadata={"Software": None})
        return image.getvalue()

    def save(self, folder: Path) -> None:
        """``NAME.svg`` and ``NAME.png``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.svg").write_text(self.svg)
        (folder / f"{self.name}.png").write_bytes(self.png)

    @property
    def inline(self) -> str:
        """The SVG for a page: colours follow the page's, size follows the column, and the title is read aloud."""
        body = self.svg[self.svg.index("<svg") :]
        body = re.sub(r'<svg([^>]*?) height="[^"]*"', r"<svg\1", body, count=1)
        body = re.sub(r'<svg([^>]*?) width="[^"]*"', rf'<svg\1 role="img" aria-label="{self.title}"', body, count=1)
        for colour, name in ((INK, "ink"), (FAINT, "faint"), (GROUND, "ground")):
            body = body.replace(colour, f"var(--{name})")
        # Glyphs are shared within a figure by id, and ids must not meet those of another figure.
        body = re.sub(r'id="([^"]+)"', rf'id="{self.name}-\1"', body)
        body = re.sub(r'href="#([^"]+)"', rf'href="#{self.name}-\1"', body)
        body = re.sub(r"url\(#([^)]+)\)", rf"url(#{self.name}-\1)", body)
        body = re.sub(r"\s*\n\s*", " ", re.sub(r"<!--.*?-->", "", body)).replace("> <", "><")
        return re.sub(r' d="([^"]+)"', lambda path: re.sub(r"\d+\.\d{3,}", _shorter, path[0]), body)


def _shorter(number: re.Match[str]) -> str:
    """A coordinate to a hundredth of a point, finer than a screen."""
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class Kept:
    """A figure that lies finished in a folder, as ``Picture.save`` writes it, with pictures in it that are no lines."""

    name: str
    title: str
    caption: str
    folder: Path

    def save(self, folder: Path) -> None:
        """Copy ``NAME.svg`` and ``NAME.png``."""
        for ending in ("svg", "png"):
            copyfile(self.folder / f"{self.name}.{ending}", folder / f"{self.name}.{ending}")

    @property
    def inline(self) -> str:
        """The PNG for a page, inside it, as wide as the page."""
        content = base64.b64encode((self.folder / f"{self.name}.png").read_bytes()).decode()
        return f'<img class="wide" alt="{self.title}" src="data:image/png;base64,{content}">'


Shown = Picture | Kept


@contextmanager
def drawing(
    rows: int = 1, size: tuple[float, float] = SIZE, sharex: bool = True
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of stacked axes in the report's style; pyplot's global state is left alone."""
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, 1, sharex=sharex, squeeze=False)
        yield figure, [axes[index, 0] for index in range(rows)]


def finish(figure: Figure, name: str, title: str, caption: str) -> Picture:
    """Lay the figure out, once for all formats."""
    figure.suptitle(fill(title, LETTERS), fontsize=10, color=INK)
    with mpl.rc_context(SETTINGS):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    return Picture(name, title, caption, figure)


LETTERS = 62  # of a title that fit into a figure's width
HALF_A_LINE = 34  # letters of a legend that fit twice into a figure's width
# A format rounds each line of a legend in its own way, so the layout, which is one for all, leaves the more room.
FEW_LINES, LINE_ROOM = 6, 0.007  # inches


def legend(axes: Axes, below: bool = True) -> None:
    """The legend under the axes, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    if below:
        beside = len(handles) > 1 and max(map(len, labels)) <= HALF_A_LINE
        if len(handles) > FEW_LINES and (layout := axes.figure.get_layout_engine()) is not None:
            layout.set(h_pad=LINE_ROOM * len(handles))  # type: ignore[call-arg]
        axes.figure.legend(handles, labels, loc="outside lower center", ncols=2 if beside else 1)
    else:
        axes.legend(handles, labels)


Points = list[list[float]]


def run_figures(result: ExperimentResult) -> Iterator[Picture]:
    """``confusion_matrix``, ``roc`` and ``calibration`` of a run's test split, where their points exist."""
    curves, names = result.curves, result.dataset.class_names
    if curves is None:
        return
    where = result.dataset.name + (" (SYNTHETIC)" if result.dataset.synthetic else "") + ", test"
    if curves.confusion_matrix:
        yield confusion_figure("confusion_matrix", f"Confusion matrix, {where}", curves.confusion_matrix, names, "")
    if curves.roc:
        lines = []
        for index, points in curves.roc.items():
            x, y = np.array(points).T
            lines.append((f"{shortened(names[int(index)])} (area {np.trapezoid(y, x):.3f})", points))
        yield roc_figure("roc", f"ROC, {where}", lines, "")
    if curves.calibration:
        yield calibration_figure("calibration", f"Calibration, {where}", [("this run", curves.calibration)], "")


def roc_figure(name: str, title: str, lines: Sequence[tuple[str, Points]], caption: str) -> Picture:
    """A line for each label: points are [false positive rate, true positive rate]."""
    with drawing(size=(4.7, 4.3)) as (figure, (axes,)):
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, label="chance")
        for index, (label, points) in enumerate(lines):
            if points:
                x, y = np.array(points).T
                axes.plot(x, y, color=COLOURS[index % len(COLOURS)], linestyle=DASHES[index % 4], label=label)
        axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
        legend(axes)
        return finish(figure, name, title, caption)


def calibration_figure(
    name: str, title: str, lines: Sequence[tuple[str, list[dict[str, float]]]], caption: str
) -> Picture:
    """A line for each label: bins with ``confidence``, ``accuracy`` and ``count``; of one alone with its counts."""
    with drawing(size=(4.7, 4.3)) as (figure, (axes,)):
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, label="perfect")
        for index, (label, bins) in enumerate(lines):
            x, y = [part["confidence"] for part in bins], [part["accuracy"] for part in bins]
            axes.plot(x, y, marker=".", color=COLOURS[index % len(COLOURS)], linestyle=DASHES[index % 4], label=label)
            if len(lines) == 1:
                counts = np.array([part["count"] for part in bins])
                axes.scatter(x, y, s=20 + 180 * counts / counts.max(), color=COLOURS[1], label="bin (area: images)")
        axes.set(xlabel="probability given to the answer", ylabel="share of right answers", aspect="equal")
        legend(axes)
        return finish(figure, name, title, caption)


def confusion_figure(name: str, title: str, counts: list[list[int]], classes: Sequence[str], caption: str) -> Picture:
    """Counts by [true class, answered]; the lighter, the more of its row."""
    matrix = np.array(counts)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    names = [shortened(each) for each in classes]
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
        return finish(figure, name, title, caption)


def shortened(name: str) -> str:
    """A class's name as it fits beside a figure."""
    return name if len(name) <= 18 else name[:17] + "…"
