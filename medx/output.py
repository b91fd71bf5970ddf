"""How the program speaks: on streams that take every word, of slow steps, and with its commands as they were called.

Streams take it in whatever encoding, and whether or not anybody reads them. A step that is no round is told when it
begins, so that nobody wonders whether the program hangs: whoever computes says it; who shows it, if anybody, is up to
the program. A mistake on a command line is one line, as everywhere.
"""

import argparse
import codecs
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from shutil import get_terminal_size
from typing import NoReturn

SPELLED = {"ε": "epsilon", "δ": "delta", "σ": "sigma", "α": "alpha", "±": "+-", "–": "-", "—": "-", "…": "..."}
SPELL_OUT = "medx.spell_out"
Show = Callable[[str], None]
EVERY = 3.0  # seconds between two words of one step
ERASE = "\x1b[K"
_SHOWN: list[Show] = []
CALLED = "MEDX_CALLED"  # set by the console script: for this process and the jobs that it starts
_VERBS = {
    "python -m medx.run": "medx run",
    "python -m medx.report compare": "medx compare",
    "python -m medx.report": "medx report",
    "python -m medx.data": "medx data",
    "python -m medx.dossier": "medx dossier",
    "python -m medx.audit": "medx audit",
    "python -m medx.membership": "medx membership",
    "python -m medx.attacks": "medx attack",
    "python -m medx.tracking": "medx",
    "python -m medx.aggregation": "medx",
    "make ui": "medx ui",
}


def plain_text(text: str) -> str:
    """Printable ASCII: Greek spelled out, control codes and the rest replaced."""
    spelled = text.encode("ascii", SPELL_OUT).decode("ascii")
    return "".join(letter if " " <= letter <= "~" else "?" for letter in spelled)


def take_all() -> None:
    """From here on no word that this process prints can end it.

    What the encoding lacks (Latin-1, ASCII, a file name that is no UTF-8) is spelled out or becomes a question mark.
    Where a pipe's reader has gone (``| head -1``) the rest goes nowhere: a run ends as ever, with its result.
    """
    sys.stdout, sys.stderr = (_lenient(stream) for stream in (sys.stdout, sys.stderr))


def _lenient(stream: io.TextIOWrapper | object) -> io.TextIOWrapper:
    assert isinstance(stream, io.TextIOWrapper)
    raw: io.RawIOBase = _Pipe(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, SPELL_OUT, line_buffering=True)


class _Pipe(io.FileIO):
    """A file descriptor that leads nowhere once nobody reads it, here and in child processes."""

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Number of bytes taken."""
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return super().write(data)


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(SPELLED.get(letter, "?") for letter in letters), error.end


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


def as_called(text: str) -> str:
    """The text with commands as this program was called: ``medx run`` for ``python -m medx.run``, where that is so."""
    if CALLED in os.environ:
        for module, verb in _VERBS.items():
            text = text.replace(module, verb)
    return text


@contextmanager
def refusing() -> Iterator[None]:
    """Within the block what a person can act on ends the program: one line on standard error, exit code 2."""
    try:
        yield
    except Exception as error:
        from medx.schema import one_line  # which brings pydantic, and help needs none

        if (line := one_line(error)) is None:
            raise
        say("")
        print(f"medx: {' '.join(line.split())}", file=sys.stderr)
        sys.exit(2)


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are one line without the page of usage."""

    @classmethod
    def of(cls, module: str, description: str | None, epilog: str) -> "Parser":
        """For ``python -m module``; the epilog stands below the options as it is written."""
        raw = argparse.RawTextHelpFormatter
        return cls(prog=f"python -m {module}", description=description, epilog=epilog, formatter_class=raw)

    def format_usage(self) -> str:
        """As it was called."""
        return as_called(super().format_usage())

    def format_help(self) -> str:
        """As it was called."""
        return as_called(super().format_help())

    def error(self, message: str) -> NoReturn:
        """Exit code 2."""
        print(f"medx: {message}; {as_called(self.prog)} --help tells what is accepted", file=sys.stderr)
        sys.exit(2)


codecs.register_error(SPELL_OUT, _spell_out)
