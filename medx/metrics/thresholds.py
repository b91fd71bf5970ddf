"""Rules by which a threshold follows from a validation split: the best cut there, or the classes' shares alone."""

from typing import Literal

import numpy as np

ThresholdRule = Literal["best", "prior"]


def choose_threshold(probabilities: np.ndarray, labels: np.ndarray, rule: ThresholdRule = "best") -> float | None:
    """The cut on ``probabilities[:, 1]`` (class 1 from it upwards) for balanced accuracy; None if undefined.

    For ``probabilities [n, 2]`` and ``labels [n]`` of the *validation* split. ``best`` is the cut with the best
    balanced accuracy there. ``prior`` is class 1's share of the labels: the best one where probabilities are
    calibrated, as class 1 is then answered where an image makes it likelier than it was (Collell, Prelec and Patil
    2018). None where one class is missing or a score is not finite.
    """
    scores, positive = np.asarray(probabilities, dtype=np.float64)[:, 1], np.asarray(labels) == 1
    if positive.all() or not positive.any() or not np.isfinite(scores).all():
        return None
    return float(positive.mean()) if rule == "prior" else _best(scores, positive)


def choose_thresholds(
    probabilities: np.ndarray, labels: np.ndarray, rule: ThresholdRule = "best"
) -> list[float | None]:
    """``choose_threshold`` of every label ``[n, labels]`` by itself, over the records that tell it."""
    found = []
    for scores, own in zip(np.asarray(probabilities, dtype=np.float64).T, np.asarray(labels).T, strict=True):
        known = own >= 0
        found.append(choose_threshold(np.column_stack([1 - scores[known], scores[known]]), own[known], rule))
    return found


def _best(scores: np.ndarray, positive: np.ndarray) -> float:
    """Candidates lie half-way between neighbours, 0 and 1; of equally good ones the middle one (the lower of two)."""
    levels, inverse = np.unique(scores, return_inverse=True)
    positives = np.bincount(inverse, weights=positive, minlength=len(levels))
    negatives = np.bincount(inverse, weights=~positive, minlength=len(levels))
    missed, cleared = np.append(0, np.cumsum(positives)), np.append(0, np.cumsum(negatives))
    balanced = (1 - missed / missed[-1]) / 2 + cleared / cleared[-1] / 2
    best = np.flatnonzero(balanced >= balanced.max() - 1e-12)
    cut = best[(len(best) - 1) // 2]
    below = levels[cut - 1] if cut > 0 else min(0.0, levels[0])
    above = levels[cut] if cut < len(levels) else max(1.0, np.nextafter(levels[-1], np.inf))
    middle = (below + above) / 2
    return float(middle if middle > below else above)
