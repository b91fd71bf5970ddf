"""Personal models beside the shared one and what each hospital would have alone."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from medx.report.cells import Row, Table, cited, number, settled, signed
from medx.report.rows import SETTING, Results, Setting, settings_of
from medx.results import PersonalResult

WHOSE = {"local_only": "alone", "shared": "shared", "personal": "personal"}
SHOWN = {"auc": "AUC", "balanced_accuracy": "balanced accuracy", "accuracy": "accuracy"}
FREE = ("fine_tune", "interpolate", "ditto")  # they cost no epsilon
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
            found = {whose: _over(each) for whose, each in means.items()}
            data = {f"{whose}_{metric}": each for whose, each in found.items()} | {f"gain_{metric}": _gain(found)}
            shown = {f"{title}, {WHOSE[whose]}": number(each) for whose, each in found.items()}
            row |= Row(data, shown | {f"{title}, personal - better of both": signed(_gain(found))})
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


def personal_best_table(frame: pd.DataFrame, results: Results) -> Table:
    """By kind of hospitals and epsilon, the best of what costs no epsilon beside the better of alone and shared."""
    alike: dict[tuple[str, ...], list[tuple[Setting, pd.DataFrame, str, Runs]]] = {}
    for each in personal_runs(frame, results):
        if each[2] in FREE:
            alike.setdefault(tuple(str(each[0][key]) for key in SETTLED), []).append(each)
    rows = []
    for options in alike.values():
        metric = "auc" if len(options[0][3][0][0].test_counts) == 2 else "balanced_accuracy"
        found = {
            method: {whose: _over(np.array([_mean(run, whose, metric) for run in runs])) for whose in WHOSE}
            for _, _, method, runs in options
        }
        best = max(found, key=lambda method: found[method]["personal"])
        setting, part, _, runs = next(each for each in options if each[2] == best)
        known = [sum(_defined(each, metric) for each in run) for run in runs]
        have = f"{sum(known)} of {sum(map(len, runs))}"
        data = {"metric": metric, "best": best, **found[best], "gain": _gain(found[best]), "measured": sum(known)}
        shown = {"metric": SHOWN[metric], "hospitals that have it": have}
        shown |= {WHOSE[whose]: number(each) for whose, each in found[best].items()}
        shown |= {"best option": best, "personal - better of both": signed(_gain(found[best]))}
        rows.append(settled(setting, *SETTLED) | Row(data, shown) | cited(part))
    note = (
        "AUC of two classes, balanced accuracy of the most probable class of more: means over hospitals that have the "
        "metric (counted over seeds; who has one class has none), then over seeds. The best of "
        f"{', '.join(FREE)} is named by these figures, which flatters it. ε does not cover them."
    )
    return Table.of("personal_best", "The best model for each hospital that costs no epsilon", note, rows)


def personal_hospitals_table(frame: pd.DataFrame, results: Results) -> Table:
    """Hospital by hospital, with 95 % intervals over its test images."""
    rows = []
    for setting, part, method, runs in personal_runs(frame, results):
        for place, first in enumerate(runs[0]):
            same = [run[place] for run in runs]
            known = {"method": method, "hospital": first.client, "images": sum(first.test_counts)}
            titles = {"personal models": method, "hospital": first.title, "test images": str(known["images"])}
            row = Row(known, titles)
            found = {whose: _over(np.array([value(each, whose, "accuracy") for each in same])) for whose in WHOSE}
            for whose, title in WHOSE.items():
                low, high = (_over(np.array([_end(each, whose, end) for each in same])) for end in ("low", "high"))
                data = {f"{whose}_accuracy": found[whose], f"{whose}_low": low, f"{whose}_high": high}
                row |= Row(data, {f"accuracy, {title}": f"{number(found[whose])} [{number(low)}, {number(high)}]"})
            gap = found["personal"] - max(found.values())
            row |= Row({"gap": gap}, {"personal - best of three": signed(gap)})
            rows.append(settled(setting, *SETTLED) | row | cited(part))
    note = (
        "Accuracy of the most probable class on each hospital's own test images, with the 95 % bootstrap interval over "
        "them, both averaged over seeds. ε does not cover these figures."
    )
    return Table.of("personal_hospitals", "A model for each hospital, hospital by hospital", note, rows)


def _defined(each: PersonalResult, metric: str) -> bool:
    return not any(np.isnan(value(each, whose, metric)) for whose in WHOSE)


def _gain(found: dict[str, float]) -> float:
    """Of the personal model over the better of the hospital's own and the shared one."""
    return found["personal"] - float(np.fmax(found["local_only"], found["shared"]))


def _mean(run: Sequence[PersonalResult], whose: str, metric: str) -> float:
    """Over the hospitals for which the metric is defined of all three models."""
    found = [value(each, whose, metric) for each in run if _defined(each, metric)]
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
