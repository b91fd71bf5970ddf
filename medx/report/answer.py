"""What a page begins with: the study's answer in a few sentences, and what was run when, with what.

Each sentence is computed from the runs at hand, or left out where they do not bear it.
"""

from collections.abc import Iterator
from datetime import datetime

import numpy as np
import pandas as pd

from medx.report.cells import TITLES, number, patients_known, summarise
from medx.report.rows import PER_PATIENT, SETTING, settings_of, with_phantoms, with_role
from medx.report.section import Material
from medx.report.study import Claim, Role
from medx.report.words import deltas, listed, seed_count
from medx.results import told_epsilon

MEASURED: tuple[Role, ...] = ("utility", "baselines", "convergence", "skew", "selection", "personal")
EQUAL = 5e-5  # of an accuracy: as it is printed, with two digits of a percentage


def answer(made: Material) -> Iterator[str]:
    """What each data set's private settings come to beside the references, whom ε protects, and what of the claim."""
    rows = answered(made.frame)
    for dataset, part in rows.groupby("dataset", sort=False):
        yield _of_data(str(dataset), part)
    if chosen_from(rows) > 1:
        yield f"Best is by these test images, of up to {chosen_from(rows)} settings, so it is somewhat too good."
    yield from _protected(rows)
    if made.study.claim is not None:
        yield from _of_the_claim(made.frame, made.study.claim)


def answered(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs that the study's utility is told by; where there are none, all whose utility is told at all."""
    found = with_role(frame, "utility")
    return with_role(frame, *MEASURED) if found.empty else found


def chosen_from(rows: pd.DataFrame) -> int:
    """The most settings of one data set among which one ε, or none, has its best."""
    counts = rows.groupby(["dataset", "target_epsilon"], dropna=False)["config_hash"].nunique()
    return int(counts.max()) if len(counts) else 0


def _of_data(dataset: str, rows: pd.DataFrame) -> str:
    metric = next((each for each in ("auc", "balanced_accuracy_at_threshold") if rows[each].notna().any()), None)
    if metric is None:
        return f"{dataset}: nothing was measured on test images here."
    private, plain = rows[rows["epsilon"].notna()], rows[rows["epsilon"].isna()]
    head = f"{dataset}: {'' if rows['config_hash'].nunique() == 1 else 'best '}test {TITLES[metric]} "
    parts = []
    if not private.empty:
        targets = sorted(private["target_epsilon"].dropna().unique())
        known = [f"{_best(private[private['target_epsilon'] == each], metric)} at ε {each:g}" for each in targets]
        parts.append(listed(known))
    if not plain.empty:
        parts.append(f"{_best(plain, metric)} without privacy")
    parts += _alone(plain, private, metric)
    if not (phantoms := with_phantoms(rows)).empty and metric == "auc":
        parts.append(f"{_best(phantoms, metric)} for drawn phantoms alone, at ε 0")
    majority = rows["majority_accuracy"].astype(float).max()
    accuracy = "" if np.isnan(majority) else f", whose accuracy is {number(majority, True)}"
    if metric == "auc":
        parts.append(f"0.500 for always the majority class{accuracy}")
    nothing = "" if not private.empty else " Without an ε nothing bounds what its model tells of a record."
    return f"{head}{'; '.join(parts)} ({seed_count(rows)}).{nothing}"


def _best(rows: pd.DataFrame, metric: str) -> str:
    means = [summarise(part[metric]).mean for _, part in settings_of(rows, SETTING)]
    return number(max((mean for mean in means if not np.isnan(mean)), default=np.nan), not metric.endswith("auc"))


def _alone(plain: pd.DataFrame, private: pd.DataFrame, metric: str) -> Iterator[str]:
    """What hospitals get on average that train alone: without privacy, else within the largest ε that they share."""
    column = f"local_only_{metric}"
    for rows in (plain, private):
        known = rows[rows[column].notna()]
        if not known.empty:
            largest = known["target_epsilon"].max()
            within = "without privacy" if np.isnan(largest) else f"within the same ε {largest:g}"
            value = _best(known[known["target_epsilon"].fillna(largest) == largest] if largest > 0 else known, column)
            yield f"{value} for hospitals that train alone {within}"
            return


def _protected(rows: pd.DataFrame) -> Iterator[str]:
    """Whose ε it is, and what a patient's comes to."""
    private = rows[rows["epsilon"].notna()]
    patients = private["mode"].str.contains(PER_PATIENT, regex=False)
    hospitals = private["mode"].str.startswith("central_dp")
    images = private[~patients & ~hospitals]
    units = {"an image's": not images.empty, "a patient's, with all images": patients.any(),
             "a hospital's, with all that it holds": hospitals.any()}  # fmt: skip
    told = [unit for unit, holds in units.items() if holds]
    if not told:
        return
    said = f"ε is {listed(told, 'or')}" + (", as the mode says." if len(told) > 1 else ".")
    for dataset, part in images.groupby("dataset", sort=False):
        known = part[part["epsilon_patient"].notna()] if patients_known(part) else part[:0]
        if not known.empty:
            largest = known.astype({"epsilon_patient": float}).groupby("target_epsilon")["epsilon_patient"].max()
            values = listed(told_epsilon(each) for each in largest)
            at = listed(f"{each:g}" for each in largest.index)
            said += f" An image's ε of {at} comes to {values} for a patient of {dataset}, with all images."
    unknown = images[images["epsilon_patient"].isna()] if "epsilon_patient" in images else images
    unknown = unknown[~unknown["synthetic"].astype(bool)]
    if not unknown.empty:
        said += f" Who the patients of {listed(unknown['dataset'].unique())} are is not known, nor is their ε."
    yield said


def _of_the_claim(frame: pd.DataFrame, claim: Claim) -> Iterator[str]:
    ours = frame[frame["dataset"] == claim.dataset]
    if ours.empty:
        return
    majority = float(ours["majority_accuracy"].iloc[0])
    told = "is what always answering the majority class gets" if abs(majority - claim.accuracy) < EQUAL else (
        f"stands beside {number(majority, True, 2)} of always answering the majority class"
    )  # fmt: skip
    yield (
        f"The published accuracy of {number(claim.accuracy, True, 2)} {told} on these test images, and its ε of "
        f"{claim.epsilon:g} composes to about {claim.composed_epsilon:g}."
    )


def facts(made: Material) -> Iterator[str]:
    """When the runs were, at which δ, with which versions and revisions."""
    frame = made.frame
    yield f"{len(frame)} run{'' if len(frame) == 1 else 's'}{deltas(frame)}."
    yield _dates(frame)
    for name, title in (("versions", "Versions"), ("git", "Code")):
        told = [str(each) for each in frame.get(name, pd.Series(dtype=str)).dropna().unique() if each]
        if told:
            yield f"{title}: {'; '.join(told)}."
        elif name == "versions":
            yield "Versions of the packages are not on record here."


def _dates(frame: pd.DataFrame) -> str:
    started = frame["started"].dropna() if "started" in frame else pd.Series(dtype=str)
    if started.empty:
        return "When they began is not on record."
    first, last = (f"{datetime.fromisoformat(each):%Y-%m-%d %H:%M}" for each in (min(started), max(started)))
    told = f"Begun {first} UTC" if first == last else f"Begun from {first} to {last} UTC"
    lacking = len(frame) - len(started)
    return f"{told}; of {lacking} it is not on record." if lacking else f"{told}."
