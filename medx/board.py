"""What a person sees of jobs that run at once: a line for each while it runs, and one that stays when it ends."""

import re
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text

from medx import preparing
from medx.output import plain_text
from medx.results import ExperimentResult
from medx.screen import clock

PREPARING = re.compile("  (preparing|accounting): ")


TELLING = 0.1  # of a sweep must be done before its pace tells how long the rest will take


class Board:
    """Lines on standard output; those of running jobs only on a terminal, elsewhere just what they prepare.

    No thread of its own: forks would miss it.
    """

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self._console = Console(file=sys.stdout, highlight=False)
        self._lines: Live | None = None
        self._told: set[str] = set()

    def show(self, lines: Sequence[str]) -> None:
        """Replace the lines of running jobs by these; none of them takes more than the width."""
        if not self.live:
            for line in lines:
                if PREPARING.search(line) and line not in self._told:
                    self._told.add(line)
                    self.tell(line)
            return
        preparing.say("")
        if self._lines is None:  # a new one each time: one that starts again would go up over what was printed since
            self._lines = Live(
                console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self._lines.start()
        shown = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines]
        self._lines.update(Text("\n", no_wrap=True, overflow="ellipsis").join(shown), refresh=True)

    def tell(self, line: str) -> None:
        """Print a line that stays."""
        if self.live:
            self._pause()
            self._console.print(Text(line))
        else:
            print(plain_text(line), flush=True)

    def warn(self, text: str) -> None:
        """Print what stays on standard error."""
        if text:
            self._pause()
            print(text, end="" if text.endswith("\n") else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the lines of running jobs away."""
        self._pause()

    def _pause(self) -> None:
        """Take them away for now."""
        if self._lines is not None:
            self._lines.stop()
            self._lines = None


def overall(done: int, parts: Sequence[float], total: int, elapsed: float) -> str:
    """How far a sweep of ``total`` jobs is: ``done`` of them, and of those that run the ``parts`` from 0 to 1.

    ``elapsed`` seconds were spent on just that, at first on what is prepared but once: no time left is told so early.
    """
    share = (done + sum(parts)) / total
    left = f", about {clock(elapsed / share * (1 - share))} left" if TELLING <= share < 1 else ""
    return f"{done} of {total} done{left}"


def summary(result: ExperimentResult) -> str:
    """A result in a few words."""
    auc, epsilon = result.test["auc"].value, result.privacy.epsilon
    words = [] if auc is None else [f"test AUC {auc:.3f}"]
    return ", ".join([result.status, *words, *([] if epsilon is None else [f"ε {epsilon:.3f}"])])
