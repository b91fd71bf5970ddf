"""Two runs side by side: configuration differences, metrics, epsilon, and a figure of both."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medx.configuration import flat
from medx.figures import COLOURS, MARKERS, Picture, drawing, finish, legend
from medx.report.runner import read_result
from medx.report.tables import DASH, number
from medx.results import ExperimentResult, Interval
from medx.schema import DataError

DRAWN = ("auc", "accuracy", "balanced_accuracy", "accuracy_at_threshold", "balanced_accuracy_at_threshold",
         "sensitivity_at_threshold", "specificity_at_threshold", "ece")  # fmt: skip
NOTE = (
    "Intervals: 95 % bootstrap over test images, each model fixed. Two single runs cannot tell a difference between "
    "settings from the luck of a seed: repeat both over seeds."
)


def load_run(text: str) -> ExperimentResult:
    """The result of an output folder or a ``result.json``; raises DataError with one line."""
    path = Path(text)
    path = path / "result.json" if path.is_dir() else path
    if not path.exists():
        raise DataError(f"{text}: no result there; give the output folder of a finished run, or its result.json")
    return read_result(path)


def comparison(first: ExperimentResult, second: ExperimentResult) -> dict[str, pd.DataFrame]:
    """Tables of text by title: configuration, privacy, metrics."""
    tables = {"Configuration": _config(first, second), "Privacy": _privacy(first, second)}
    return tables | {"Test metrics": _metrics(first, second)}


def _config(first: ExperimentResult, second: ExperimentResult) -> pd.DataFrame:
    one, other = dict(flat(first.config)), dict(flat(second.config))
    rows = [
        {"key": key, "A": _text(one, key), "B": _text(other, key)}
        for key in dict.fromkeys([*one, *other])
        if _text(one, key) != _text(other, key)
    ]
    return pd.DataFrame(rows, columns=["key", "A", "B"])


def _text(config: dict[str, Any], key: str) -> str:
    return str(config[key]) if key in config else DASH


def _privacy(first: ExperimentResult, second: ExperimentResult) -> pd.DataFrame:
    rows = []
    for name in ("mechanism", "epsilon", "delta", "target_epsilon", "unit", "adjacency", "noise_source"):
        values = [getattr(result.privacy, name) for result in (first, second)]
        shown = [DASH if value is None else f"{value:.4g}" if isinstance(value, float) else value for value in values]
        rows.append({"what": name.replace("_", " "), "A": shown[0], "B": shown[1]})
    return pd.DataFrame(rows)


def _metrics(first: ExperimentResult, second: ExperimentResult) -> pd.DataFrame:
    rows = []
    for name in dict.fromkeys([*first.test, *second.test]):
        one, other = (result.test.get(name, Interval(value=None)) for result in (first, second))
        known = one.value is not None and other.value is not None
        difference = f"{(other.value or 0) - (one.value or 0):+.3f}" if known else DASH
        rows.append({"metric": name, "A": _interval(one), "B": _interval(other), "B - A": difference})
    majority = [number(result.majority_accuracy) for result in (first, second)]
    rows.append({"metric": "accuracy of the majority class", "A": majority[0], "B": majority[1], "B - A": DASH})
    return pd.DataFrame(rows)


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
