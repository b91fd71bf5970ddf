"""What a report begins with: the study's answer in a few sentences, each made from the runs that are shown."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from medx.report.cells import number, patients_known, summarise
from medx.report.rows import BASELINES, Results, settings_of, with_role
from medx.report.words import LABELS, deltas, listed
from medx.results import told_epsilon

MOST = 3  # data sets that an answer has room for


def answer(frame: pd.DataFrame, results: Results) -> list[str]:
    """At most a sentence for each of a few data sets, and one of what epsilon is for; empty without utility runs."""
    rows = with_role(frame, "utility")
    if rows.empty:
        rows = frame
    names = list(dict.fromkeys(rows["dataset"]))
    said = [each for name in names[:MOST] for each in _of_data(name, rows[rows["dataset"] == name])]
    if len(names) > MOST:
        said.append(f"{len(names) - MOST} more data sets are below.")
    return [*said, *_patients(rows)]


def _of_data(name: str, rows: pd.DataFrame) -> Iterator[str]:
    """The best private setting at the smallest and at the largest epsilon, beside what there is to compare with."""
    private = rows[rows["target_epsilon"].notna()]
    beside = ["0.500 for always the majority class"]
    plain = rows[rows["mode"] == "none"]
    if not plain.empty:
        beside.insert(0, f"{number(_best(plain)[1])} without privacy")
    beside += [
        f"{number(summarise(rows[f'{each}_auc']).mean)} for {LABELS[each]}"
        for each in BASELINES
        if rows[f"{each}_auc"].notna().any()
    ]
    if private.empty:
        if not np.isnan(_best(rows)[1]):
            yield f"On {name} the best setting, {_best(rows)[0]}, comes to an AUC of {number(_best(rows)[1])} on test."
        return
    targets = sorted({float(private["target_epsilon"].min()), float(private["target_epsilon"].max())})
    found = [(target, *_best(private[private["target_epsilon"] == target])) for target in targets]
    if any(np.isnan(auc) for _, _, auc in found):
        return
    told = listed(f"{number(auc)} at ε {target:g} ({who})" for target, who, auc in found)
    yield f"On {name} the best private setting comes to an AUC of {told} on test; it is {listed(beside)}."


def _best(rows: pd.DataFrame) -> tuple[str, float]:
    """The setting with the largest mean AUC, by name, and that AUC."""
    means = [
        (f"{setting['model']}, {setting['mode']}", summarise(part["auc"]).mean) for setting, part in settings_of(rows)
    ]
    known = [each for each in means if not np.isnan(each[1])]
    return max(known, key=lambda each: each[1], default=("", np.nan))


def _patients(rows: pd.DataFrame) -> Iterator[str]:
    """Whose epsilon it is."""
    private = rows[rows["target_epsilon"].notna()]
    if private.empty:
        yield "No run here protects anybody: there is no ε."
        return
    records = private[~private["mode"].str.contains("per patient", regex=False)]
    if records.empty or not patients_known(private):
        return
    known = records["epsilon_patient"].astype(float).dropna()
    if not known.empty:
        ends = dict.fromkeys(told_epsilon(float(value)) for value in (known.min(), known.max()))
        yield (
            f"ε is one image's{deltas(private)}; for a patient with all images the same runs come to "
            f"{' to '.join(ends)}."
        )


def made_with(results: Results) -> str:
    """When the runs took place, as far as they say it, and by which versions."""
    days = sorted({result.started[:10] for result in results.values() if result.started})
    when = "" if not days else f"Runs of {days[0]}. " if len(days) == 1 else f"Runs of {days[0]} to {days[-1]}. "
    parts = []
    for name in ("medx", "torch", "flwr", "opacus"):
        known = sorted({version for result in results.values() if (version := result.environment.get(name))})
        parts += [f"{name} {' and '.join(known)}"] if known else []
    return f"{when}{', '.join(parts)}"
