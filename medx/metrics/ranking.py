"""Area under the ROC curve, for many weightings of the same rows at once."""

import numpy as np

from medx.metrics.confusion import divide, present_mean


def binary_auc(weights: np.ndarray, scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """``[resamples]`` probability that a positive row outranks a negative one, ties counting half.

    Mann-Whitney's statistic with ``weights [resamples, n]`` as multiplicities; NaN where a class is missing.
    """
    order = np.argsort(scores, kind="stable")
    order = order[~positive[order]]
    ranked = scores[order]
    below = np.zeros((len(weights), len(order) + 1))
    np.cumsum(weights[:, order], axis=1, out=below[:, 1:])
    chosen = scores[positive]
    first, last = np.searchsorted(ranked, chosen, "left"), np.searchsorted(ranked, chosen, "right")
    multiplicity = weights[:, positive]
    wins = np.einsum("rn,rn->r", multiplicity, below[:, first] + below[:, last]) / 2
    return divide(wins, multiplicity.sum(axis=1) * below[:, -1])


def auc(weights: np.ndarray, probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``[resamples]`` AUC of class 1, or with more classes the macro one-versus-rest mean over those that occur."""
    num_classes = probabilities.shape[1]
    if num_classes == 2:
        return binary_auc(weights, probabilities[:, 1], labels == 1)
    each = [binary_auc(weights, probabilities[:, index], labels == index) for index in range(num_classes)]
    values = np.stack(each, axis=1)
    return present_mean(values, ~np.isnan(values))


def roc_points(scores: np.ndarray, positive: np.ndarray, most: int = 200) -> list[list[float]]:
    """``[false positive rate, true positive rate]`` from (0, 0) to (1, 1), thinned to ``most`` points.

    Empty where a class is missing.
    """
    if positive.all() or not positive.any():
        return []
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    true, false = np.cumsum(positive[order])[ends], np.cumsum(~positive[order])[ends]
    points = np.vstack([[0.0, 0.0], np.column_stack([false / false[-1], true / true[-1]])])
    steps = np.diff(points, axis=0)
    bends = steps[:-1, 0] * steps[1:, 1] != steps[:-1, 1] * steps[1:, 0]
    points = points[np.concatenate([[True], bends, [True]])]
    kept = np.unique(np.linspace(0, len(points) - 1, min(most, len(points))).round().astype(int))
    return [[float(x), float(y)] for x, y in points[kept].round(6)]
