"""Two runs side by side: configuration differences, metrics, epsilon, and a figure of both."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table as Printed

from medx.configuration import flat
from medx.figures import COLOURS, MARKERS, Picture, drawing, finish, legend
from medx.folder import read_result
from medx.output import Parser
from medx.report.cells import DASH, Table, number, signed
from medx.results import ExperimentResult, Interval

DRAWN = ("auc", "accuracy", "balanced_accuracy", "accuracy_at_threshold", "balanced_accuracy_at_threshold",
         "sensitivity_at_threshold", "specificity_at_threshold", "ece")  # fmt: skip
NOTE = (
    "Intervals: 95 % bootstrap over test images, each model fixed. Two single runs cannot tell a difference between "
    "settings from the luck of a seed: repeat both over seeds."
)


def comparison(first: ExperimentResult, second: ExperimentResult) -> list[Table]:
    """Tables of text: what differs in the configuration, privacy, metrics."""
    one, other = ({key: str(value) for key, value in flat(result.config)} for result in (first, second))
    keys = [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]
    tables = [_table("Configuration", ("key", "A", "B"), [(key, one.get(key), other.get(key)) for key in keys])]
    names = ("mechanism", "epsilon", "delta", "target_epsilon", "unit", "adjacency", "noise_source")
    spent = [(name, *(getattr(result.privacy, name) for result in (first, second))) for name in names]
    shown = [(name.replace("_", " "), _short(a), _short(b)) for name, a, b in spent]
    return [*tables, _table("Privacy", ("what", "A", "B"), shown), _metrics(first, second)]


def _table(title: str, header: Sequence[str], rows: Iterable[Sequence[str | None]]) -> Table:
    cells = [[DASH if cell is None else cell for cell in row] for row in rows]
    return Table("", title, "", pd.DataFrame(), list(header), cells)


def _short(value: float | str | None) -> str | None:
    return f"{value:.4g}" if isinstance(value, float) else value


def _metrics(first: ExperimentResult, second: ExperimentResult) -> Table:
    rows = []
    for name in dict.fromkeys([*first.test, *second.test]):
        one, other = (result.test.get(name, Interval(value=None)) for result in (first, second))
        known = one.value is not None and other.value is not None
        difference = (other.value or 0) - (one.value or 0) if known else np.nan
        rows.append((name, _interval(one), _interval(other), signed(difference)))
    majority = [number(result.majority_accuracy) for result in (first, second)]
    return _table("Test metrics", ("metric", "A", "B", "B - A"),
                  [*rows, ("accuracy of the majority class", *majority, None)])  # fmt: skip


def _interval(value: Interval) -> str:
    bounds = "" if value.low is None or value.high is None else f" [{value.low:.3f}, {value.high:.3f}]"
    return number(value.value) + bounds


def draw(first: ExperimentResult, second: ExperimentResult, names: tuple[str, str]) -> Picture:
    """Metrics with their intervals above, test AUC by round below."""
    with drawing(2, (6.2, 6.0), sharex=False) as (figure, (above, below)):
        for index, (result, name) in enumerate(zip((first, second), names, strict=True)):
            style: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index]}
            places = np.arange(len(DRAWN)) + 0.24 * index - 0.12
            for place, metric in zip(places, DRAWN, strict=True):
                interval = result.test.get(metric, Interval(value=None))
                if interval.value is not None:
                    low, high = (interval.value if end is None else end for end in (interval.low, interval.high))
                    error = [[max(0.0, interval.value - low)], [max(0.0, high - interval.value)]]
                    above.errorbar(interval.value, place, xerr=error, capsize=2, **style)
            known = [(record.round, value) for record in result.rounds
                     if (value := record.metrics.get("test/auc")) is not None]  # fmt: skip
            below.plot([x for x, _ in known], [y for _, y in known], label=f"{'AB'[index]}: {name}",
                       markevery=max(1, len(known) // 10), **style)  # fmt: skip
        above.set_yticks(range(len(DRAWN)), [name.replace("_", " ") for name in DRAWN])
        above.invert_yaxis()
        above.set(xlabel="test, 95 % over images")
        below.set(xlabel="round", ylabel="test AUC")
        legend(below)
        return finish(figure, "compare", "A and B", NOTE)


def main(given: list[str]) -> int:
    """Print two runs side by side and draw them."""
    parser = Parser(prog="python -m medx.report compare", description="Two runs side by side.")
    parser.add_argument("runs", nargs=2, metavar="RUN", help="output folder of a finished run, or its result.json")
    parser.add_argument("--out", type=Path, default=Path("report"), help="where compare.svg and .png go")
    chosen = parser.parse_args(given)
    first, second = (read_result(Path(text)) for text in chosen.runs)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(f"A  {chosen.runs[0]}\nB  {chosen.runs[1]}")
    for table in comparison(first, second):
        printed = Printed(*table.header, title=table.title, title_justify="left")
        for row in table.rows:
            printed.add_row(*row)
        console.print(printed)
    console.print(NOTE)
    draw(first, second, (Path(chosen.runs[0]).name, Path(chosen.runs[1]).name)).save(chosen.out)
    console.print(f"{chosen.out / 'compare.svg'}")
    return 0
