"""What a person sees of jobs that run at once: a line for each while it runs, and one that stays when it ends."""

import logging
import sys
from collections import deque
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text

from medx.results import ExperimentResult
from medx.screen import plain_text
from medx.tracking import courier


class Board:
    """Lines on standard output; those of running jobs only on a terminal. No thread of its own: forks would miss it."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self._console = Console(file=sys.stdout, highlight=False)
        self._lines: Live | None = None
        self._later: deque[logging.LogRecord] = deque()
        if self.live:
            courier.log.addFilter(self._hold)  # its thread would write into the lines of running jobs

    def show(self, lines: Sequence[str]) -> None:
        """Replace the lines of running jobs; none of them takes more than the width."""
        if not self.live:
            return
        if self._later:
            self._pause()
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
        self.disown()

    def disown(self) -> None:
        """In a fork: log as ever."""
        courier.log.removeFilter(self._hold)

    def _pause(self) -> None:
        """Take them away for now, and log what waited for that."""
        if self._lines is not None:
            self._lines.stop()
            self._lines = None
        while self._later:
            logging.getLogger().callHandlers(self._later.popleft())

    def _hold(self, record: logging.LogRecord) -> bool:
        self._later.append(record)
        return False


def summary(result: ExperimentResult) -> str:
    """A result in a few words."""
    auc, epsilon = result.test["auc"].value, result.privacy.epsilon
    words = [] if auc is None else [f"test AUC {auc:.3f}"]
    return ", ".join([result.status, *words, *([] if epsilon is None else [f"ε {epsilon:.3f}"])])
