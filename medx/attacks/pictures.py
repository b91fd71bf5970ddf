"""What attacks found, drawn."""

from collections.abc import Mapping
from typing import Any

from medx.attacks.membership import SMALLEST, Membership
from medx.figures import COLOURS, DASHES, FAINT, Picture, drawing, finish, legend

NAMES = {"lira": "LiRA", "rmia": "RMIA"}


def member_roc(attack: str, title: str, found: Mapping[str, Membership]) -> Picture:
    """The balanced ROC of one attack on all records, both rates on logarithmic scales; a line a setting."""
    with drawing(size=(4.7, 4.5)) as (figure, (axes,)):
        axes.plot([SMALLEST, 1], [SMALLEST, 1], color=FAINT, linewidth=1, label="chance")
        for index, (setting, each) in enumerate(found.items()):
            false, true = zip(*each.of(attack).roc, strict=True)
            style: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)]}
            axes.plot(false, true, label=setting, **style)
        axes.set(xscale="log", yscale="log", xlim=(SMALLEST, 1), ylim=(SMALLEST, 1), aspect="equal")
        axes.set(xlabel="false positive rate", ylabel="true positive rate")
        legend(axes)
        runs = ", ".join(f"{setting}: {each.runs} runs" for setting, each in found.items())
        return finish(
            figure, f"membership_{attack}", f"{title} {NAMES[attack]}", f"Half of the trials are members. {runs}."
        )
