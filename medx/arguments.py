"""Command lines of the small commands: a mistake is one line, as everywhere."""

import argparse
import sys
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are one line without the page of usage."""

    def error(self, message: str) -> NoReturn:
        """Exit code 2."""
        print(f"medx: {message}; {self.prog} --help tells what is accepted", file=sys.stderr)
        sys.exit(2)
