"""Command lines of the small commands: a mistake is one line, as everywhere, and names the command that was called."""

import argparse
import os
import sys
from typing import NoReturn

CALLED = "MEDX_CALLED"  # set by the console script: for this process and the jobs that it starts
_VERBS = {
    "python -m medx.run": "medx run",
    "python -m medx.report compare": "medx compare",
    "python -m medx.report": "medx report",
    "python -m medx.data": "medx data",
    "python -m medx.tracking": "medx",
    "python -m medx.aggregation": "medx",
    "make ui": "medx ui",
}


def as_called(text: str) -> str:
    """The text with commands as this program was called: ``medx run`` for ``python -m medx.run``, where that is so."""
    if CALLED in os.environ:
        for module, verb in _VERBS.items():
            text = text.replace(module, verb)
    return text


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are one line without the page of usage."""

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
