"""What a person sees of jobs that run at once: a line for each while it runs, and one that stays when it ends."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from medx.folder import RESULT_FILE, load_result
from medx.output import plain_text, say
from medx.schema import MedxError
from medx.screen import clock, progress_line

SCREEN_FILE = "screen.txt"
PREPARING = re.compile("  (preparing|accounting): ")
TELLING = 0.1  # of a sweep must be done before its pace tells how long the rest will take


class JobFiles:
    """How far a job is, by the files in its folder."""

    def __init__(self, title: str, folder: Path) -> None:
        self.measured = False  # what it still waits for is that its record arrives
        self._title = title
        self._folder = folder
        self._earlier = self._time_of_result()

    def look(self) -> None:
        """Note whether a result has come since; of one that was stopped it is not noted, as nothing more may begin."""
        if not self.measured and self._time_of_result() != self._earlier:
            try:
                result = load_result(self._folder)
            except MedxError:
                return  # it will be told at the end
            self.measured = result is not None and result.status != "killed"

    def last_line(self) -> str:
        """What is shown of it while it runs: the words that it showed last."""
        said = "measured, being recorded" if self.measured else self._said()
        return f"job {self._folder.name}  {self._title}  {said}"

    def part(self) -> float:
        """How much of it is done, from 0 to 1: of its rounds."""
        rounds = re.match(r"round (\d+)/(\d+)  ", self._said())
        return 1.0 if self.measured else int(rounds[1]) / int(rounds[2]) if rounds else 0.0

    def _said(self) -> str:
        screen = self._folder / SCREEN_FILE
        return (progress_line(screen.read_text(errors="replace")) if screen.exists() else "") or "starts"

    def _time_of_result(self) -> int:
        path = self._folder / RESULT_FILE
        return path.stat().st_mtime_ns if path.exists() else 0


class Progress:
    """Lines on standard output; those of running jobs only on a terminal, elsewhere just what they prepare."""

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
        say("")
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
            self.close()
            self._console.print(Text(line))
        else:
            print(plain_text(line), flush=True)

    def warn(self, text: str) -> None:
        """Print what stays on standard error."""
        if text:
            self.close()
            print(text, end="" if text.endswith("\n") else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the lines of running jobs away; they come back when they are shown again."""
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
