"""Every speed figure of docs/benchmarks.md: ``python -m benchmarks [--only NAME ...] [--device cuda] [--quick]``.

Prints one line a figure with its target. Figures are medians over repeats within this run, the parts taking turns.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import Row, python


def main() -> None:
    """Measure the chosen parts and print their rows as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="NAME")
    parser.add_argument("--device", default="cpu", help="cuda: steps are timed by events of the device")
    parser.add_argument("--quick", action="store_true", help="one repeat of all: a look, not a figure to keep")
    options = parser.parse_args()
    began = time.perf_counter()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start, device {options.device}\n")
    print(f"{'figure':52s} {'value':>9s} {'':6s} {'target':10s}")
    for name in options.only:
        for row in PARTS[name](1 if options.quick else REPEATS[name], options.device):
            print(row.text(), flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s in all")


def steps(repeats: int, device: str) -> list[Row]:
    """Private over plain step."""
    from benchmarks.step_ratios import measure

    return measure(repeats, device)


def run(repeats: int, device: str) -> list[Row]:
    """Whole run over the obvious script and over the bare loop."""
    from benchmarks.whole_run import measure

    return measure(repeats)


def rounds(repeats: int, device: str) -> list[Row]:
    """Fixed cost of a round, and cost a record."""
    from benchmarks.round_cost import measure

    return measure(repeats, device)


def drawn(repeats: int, device: str) -> list[Row]:
    """Fixed cost of a client that a round draws out of a thousand."""
    from benchmarks.round_cost import measure_drawn

    return measure_drawn(repeats, device)


def help_text(repeats: int, device: str) -> list[Row]:
    """``--help``."""
    from benchmarks.start_up import measure_help

    return measure_help(repeats)


def sweep(repeats: int, device: str) -> list[Row]:
    """One round, and the warm sweep."""
    from benchmarks.start_up import measure_sweep

    return measure_sweep(repeats)


def secure(repeats: int, device: str) -> list[Row]:
    """Secure aggregation prints a table of its own; ``--quick`` leaves the largest vectors out."""
    quick = ["--quick"] if repeats == 1 else []
    print(python(Path.cwd(), "-m", "benchmarks.secure_aggregation", *quick).output, end="", flush=True)
    return []


def pfl(repeats: int, device: str) -> list[Row]:
    """pfl-research, where it is installed."""
    from benchmarks.pfl_research import measure

    return measure(repeats)


PARTS: dict[str, Callable[[int, str], list[Row]]] = {
    "steps": steps,
    "run": run,
    "rounds": rounds,
    "drawn": drawn,
    "help": help_text,
    "sweep": sweep,
    "secure": secure,
    "pfl": pfl,
}
REPEATS = {"steps": 7, "run": 3, "rounds": 3, "drawn": 3, "help": 5, "sweep": 3, "secure": 3, "pfl": 5}

if __name__ == "__main__":
    main()
