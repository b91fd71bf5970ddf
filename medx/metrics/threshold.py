"""Where to cut a probability, and what a model that answers one class would score."""

import numpy as np


def choose_threshold(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """The cut on ``probabilities[:, 1]`` (class 1 from it upwards) with the best balanced accuracy; None if undefined.

    For ``probabilities [n, 2]`` and ``labels [n]`` of the *validation* split. Candidates lie half-way between
    neighbouring scores, 0 and 1; of equally good ones the middle one is taken (the lower of two). None where one
    class is missing or a score is not finite.
    """
    scores, positive = np.asarray(probabilities, dtype=np.float64)[:, 1], np.asarray(labels) == 1
    if positive.all() or not positive.any() or not np.isfinite(scores).all():
        return None
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


def majority_accuracy(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Test accuracy of always answering the most frequent training class (the first of equals)."""
    return float(np.mean(np.asarray(test_labels) == np.bincount(train_labels).argmax()))


def is_degenerate(predictions: np.ndarray) -> bool:
    """Whether all ``predictions [n]`` are the same class: a model that tells nothing apart."""
    return len(np.unique(predictions)) <= 1
