"""Personal models beside the shared one and what each hospital would have alone."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from medx.report.cells import Row, Table, cited, number, settled
from medx.report.rows import SETTING, Results, Setting, settings_of
from medx.results import PersonalResult

WHOSE = {"local_only": "alone", "shared": "shared", "personal": "personal"}
SHOWN = {"auc": "AUC", "accuracy": "accuracy"}
SETTLED = ("dataset", "partition", "mode", "target_epsilon")
HOME = "without noise and never sent"
Runs = Sequence[Sequence[PersonalResult]]


def personal_runs(frame: pd.DataFrame, results: Results) -> Iterator[tuple[Setting, pd.DataFrame, str, Runs]]:
    """Settings with personal models: setting, rows, option, and every run's hospitals."""
    for setting, part in settings_of(frame, SETTING):
        runs = [results[int(run)].personal for run in part["run"]]
        if all(runs):
            yield setting, part, runs[0][0].method, runs


def value(each: PersonalResult, whose: str, metric: str) -> float:
    """A metric on the hospital's own test images, NaN where it is undefined."""
    found = getattr(each, whose).get(metric)
    return np.nan if found is None or found.value is None else float(found.value)


def personal_table(frame: pd.DataFrame, results: Results) -> Table:
    """Means over hospitals, and the hospital that is served worst."""
    rows = []
    for setting, part, method, runs in personal_runs(frame, results):
        row = Row({"method": method}, {"personal models": method})
        for metric, title in SHOWN.items():
            means = {whose: np.array([_mean(run, whose, metric) for run in runs]) for whose in WHOSE}
            better = np.fmax(means["local_only"], means["shared"])
            data = {f"{whose}_{metric}": _over(found) for whose, found in means.items()}
            data |= {f"gain_{metric}": _over(means["personal"] - better)}
            shown = {f"{title}, {WHOSE[whose]}": number(data[f"{whose}_{metric}"]) for whose in WHOSE}
            row |= Row(data, shown | {f"{title}, personal - better of both": f"{data[f'gain_{metric}']:+.3f}"})
        worst = {whose: _over(np.array([_worst(run, whose, "accuracy") for run in runs])) for whose in WHOSE}
        shown = {f"worst hospital, {WHOSE[whose]}": number(found) for whose, found in worst.items()}
        row |= Row({f"worst_{whose}": found for whose, found in worst.items()}, shown)
        seeds = Row({"seeds": part["seed"].nunique()}, {"seeds": str(part["seed"].nunique())})
        rows.append(settled(setting, *SETTLED) | row | seeds | cited(part))
    note = (
        "Means over hospitals, each on its own test images (where the data tell no hospitals: on a share of the test "
        "images of its classes), then over seeds; AUC over hospitals that have one, accuracy of the most probable "
        "class. "
        f"Alone: the hospital's own model, trained {HOME}. fine_tune, interpolate and ditto are too and cost no ε; "
        "mr_mtl and local_norm are under the hospital's own ε. The study holds all data and can compute this; ε does "
        "not cover it."
    )
    return Table.of("personal", "A model for each hospital", note, rows)


def personal_hospitals_table(frame: pd.DataFrame, results: Results) -> Table:
    """Hospital by hospital, with 95 % intervals over its test images."""
    rows = []
    for setting, part, method, runs in personal_runs(frame, results):
        for place, first in enumerate(runs[0]):
            same = [run[place] for run in runs]
            known = {"method": method, "hospital": first.client, "images": sum(first.test_counts)}
            titles = {"personal models": method, "hospital": str(first.client), "test images": str(known["images"])}
            row = Row(known, titles)
            found = {whose: _over(np.array([value(each, whose, "accuracy") for each in same])) for whose in WHOSE}
            for whose, title in WHOSE.items():
                low, high = (_over(np.array([_end(each, whose, end) for each in same])) for end in ("low", "high"))
                data = {f"{whose}_accuracy": found[whose], f"{whose}_low": low, f"{whose}_high": high}
                row |= Row(data, {f"accuracy, {title}": f"{number(found[whose])} [{number(low)}, {number(high)}]"})
            gap = found["personal"] - max(found.values())
            row |= Row({"gap": gap}, {"personal - best of three": f"{gap:+.3f}"})
            rows.append(settled(setting, *SETTLED) | row | cited(part))
    note = (
        "Accuracy of the most probable class on each hospital's own test images, with the 95 % bootstrap interval over "
        "them, both averaged over seeds. ε does not cover these figures."
    )
    return Table.of("personal_hospitals", "A model for each hospital, hospital by hospital", note, rows)


def _mean(run: Sequence[PersonalResult], whose: str, metric: str) -> float:
    """Over the hospitals for which the metric is defined of all three models."""
    found = [value(each, whose, metric) for each in run if not any(np.isnan(value(each, w, metric)) for w in WHOSE)]
    return float(np.mean(found)) if found else np.nan


def _worst(run: Sequence[PersonalResult], whose: str, metric: str) -> float:
    found = [each for one in run if not np.isnan(each := value(one, whose, metric))]
    return min(found, default=np.nan)


def _end(each: PersonalResult, whose: str, end: str) -> float:
    found = getattr(each, whose).get("accuracy")
    known = None if found is None else getattr(found, end)
    return np.nan if known is None else float(known)


def _over(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan
