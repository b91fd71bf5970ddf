"""How figures look: colour-blind safe, one column wide, and with colours that follow light and dark in a page."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito (2008), the ones that read on white and on black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":")
INK, FAINT, GROUND = "#1b1f24", "#8c959f", "#fdfefe"
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
    """A drawn figure. ``caption`` says what it shows and which runs are behind it."""

    name: str
    title: str
    caption: str
    svg: str
    png: bytes

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
        return re.sub(r"url\(#([^)]+)\)", rf"url(#{self.name}-\1)", body)


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
    """Render once as SVG, the same bytes for the same data, and once as PNG."""
    figure.suptitle(title, fontsize=10, color=INK)
    with mpl.rc_context(SETTINGS | {"svg.hashsalt": name}):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, for both formats
        text, image = io.StringIO(), io.BytesIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(image, format="png", dpi=120, metadata={"Software": None})
    return Picture(name, title, caption, text.getvalue(), image.getvalue())


def legend(axes: Axes, below: bool = True) -> None:
    """The legend under the axes, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    if below:
        axes.figure.legend(handles, labels, loc="outside lower center", ncols=2 if len(handles) > 1 else 1)
    else:
        axes.legend(handles, labels)
