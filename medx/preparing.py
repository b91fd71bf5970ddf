"""A word for every slow step that is no round, said when it begins, so that nobody wonders whether the program hangs.

Whoever computes says it; who shows it, if anybody, is up to the program.
"""

import sys
import time
from collections.abc import Callable
from shutil import get_terminal_size

from medx.output import plain_text

Show = Callable[[str], None]
EVERY = 3.0  # seconds between two words of one step
ERASE = "\x1b[K"
_SHOWN: list[Show] = []


def say(text: str) -> None:
    """Say what begins; the empty text when it is over."""
    for show in _SHOWN:
        show(text)


def counted(text: str, total: int) -> Callable[[int], None]:
    """Say what begins; gives a function that is told how many of ``total`` are done, and says so now and then."""
    said = time.monotonic()
    say(text)

    def progress(done: int) -> None:
        nonlocal said
        if time.monotonic() - said >= EVERY:
            said = time.monotonic()
            say(f"{text}: {done} of {total}")

    return progress


def shown_by(*shows: Show) -> tuple[Show, ...]:
    """Let these show what is said from here on; gives those who did before."""
    before = tuple(_SHOWN)
    _SHOWN[:] = shows
    return before


class Line:
    """Shows it on standard output: on a terminal in a line that goes again, else in plain lines, none of them twice."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, text: str) -> None:
        """Show it."""
        if text == self._last:
            return
        if sys.stdout.isatty():  # the cursor stays in front, so that a warning is printed over it and not behind it
            sys.stdout.write(f"{text[: get_terminal_size().columns - 1]}{ERASE}\r")
            sys.stdout.flush()
        elif text:
            print(plain_text(text), flush=True)
        self._last = text
