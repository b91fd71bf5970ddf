"""Train, validation and test by whole patients: what a split column says, and what it leaves to chance."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from annotated_types import Ge

from medx.dataset.table import SPLITS
from medx.randomness import derive_seed, numpy_generator
from medx.schema import DataError

Fold = tuple[Annotated[int, Ge(0)], Annotated[int, Ge(2)]]  # which part of how many is validation


def deal_patients(
    labels: np.ndarray, patients: np.ndarray, fraction: float, rows: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Of ``rows``, those of a random ``fraction`` of the patients, as a mask over all; alike in every class.

    A patient's class is that of most of the images. A class of at least two patients is on both sides.
    """
    chosen = np.zeros(len(labels), bool)
    units, place = np.unique(patients[rows], return_inverse=True)
    unit_labels = majority_labels(labels[rows], place)
    for label in np.unique(unit_labels):
        own = generator.permutation(units[unit_labels == label])
        count = round(fraction * len(own))
        if fraction > 0 and len(own) > 1:
            count = min(max(count, 1), len(own) - 1)
        chosen[rows] |= np.isin(patients[rows], own[:count])
    return chosen


def majority_labels(labels: np.ndarray, units: np.ndarray) -> np.ndarray:
    """The most frequent label of every unit 0, 1, ...; the lower one of two that are as frequent."""
    counts = np.zeros((units.max(initial=-1) + 1, labels.max(initial=0) + 1), np.int64)
    np.add.at(counts, (units, labels), 1)
    return counts.argmax(axis=1)


def split_codes(
    words: Sequence[str] | None,
    labels: np.ndarray,
    patients: np.ndarray,
    fractions: dict[str, float],
    seed: int,
) -> np.ndarray:
    """0, 1, 2 a row: train, validation, test. Parts that ``words`` lack are dealt from train, test before validation.

    ``patients`` of images whose patients are unknown are different numbers: each is dealt by itself.
    """
    given = np.zeros(len(labels), np.int64) if words is None else np.array([SPLITS.index(word) for word in words])
    codes = given.copy()
    left = 1.0  # share of all rows that the next part is dealt from
    for name in ("test", "validation"):
        code = SPLITS.index(name)
        if (given == code).any():
            continue
        generator = numpy_generator(derive_seed(seed, "split", name))
        chosen = deal_patients(labels, patients, fractions[name] / left, np.flatnonzero(codes == 0), generator)
        codes[chosen] = code
        left -= fractions[name] if words is None else 0.0
    return codes


def dealt_anew(codes: np.ndarray, labels: np.ndarray, patients: np.ndarray, seed: int) -> np.ndarray:
    """The codes with train and validation dealt anew by whole patients, validation with as large a share as before."""
    pool = np.flatnonzero(codes < 2)
    share = float((codes[pool] == 1).mean())
    chosen = deal_patients(labels, patients, share, pool, numpy_generator(derive_seed(seed, "split", "validation")))
    return np.where(codes == 2, 2, chosen.astype(np.int64))


def folded(codes: np.ndarray, labels: np.ndarray, patients: np.ndarray, fold: Fold) -> np.ndarray:
    """The codes with one of several parts of train and validation as validation, and the others as train.

    The parts are of whole patients, alike in every class as ``deal_patients`` counts it, and the same whatever part is
    asked for: each image is in validation once. Raises DataError where there are fewer patients than parts.
    """
    part, parts = fold
    if part >= parts:
        raise DataError(f"dataset.fold={list(fold)}: accepted: [k,{parts}] with k from 0 to {parts - 1}")
    pool = np.flatnonzero(codes < 2)
    units, place = np.unique(patients[pool], return_inverse=True)
    if len(units) < parts:
        raise DataError(f"dataset.fold={list(fold)}: accepted: at most {len(units)} parts, one a patient")
    generator = numpy_generator(derive_seed(0, "split", "fold"))
    order = generator.permutation(len(units))
    order = order[np.argsort(majority_labels(labels[pool], place)[order], kind="stable")]  # class after class
    dealt = np.empty(len(units), np.int64)
    dealt[order] = np.arange(len(units)) % parts
    result = np.zeros_like(codes)
    result[codes == 2] = 2
    result[pool[dealt[place] == part]] = 1
    return result


def shared_patients(codes: np.ndarray, patients: np.ndarray) -> dict[str, int]:
    """Images of validation and of test whose patients are in another split: of train, of validation."""
    train, validation, test = (patients[codes == code] for code in range(3))
    pairs = {
        "validation/train": (validation, train),
        "test/train": (test, train),
        "test/validation": (test, validation),
    }
    return {name: int(np.isin(one, other).sum()) for name, (one, other) in pairs.items()}


def refuse_shared_patients(codes: np.ndarray, patients: np.ndarray) -> None:
    """Raise DataError where the split column has a patient on two sides."""
    shared = {name: count for name, count in shared_patients(codes, patients).items() if count}
    if shared:
        told = ", ".join("{} {} images of patients who are in {}".format(n, *k.split("/")) for k, n in shared.items())
        raise DataError(
            f"dataset.columns.split: {told}, so results would be too good; accepted: dataset.columns.split=false, "
            "which deals whole patients, or dataset.shared_patients=accept"
        )
