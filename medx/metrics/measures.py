"""Metrics of many weightings of the same rows at once, from confusion matrices and from ranks. NaN says undefined."""

import numpy as np

Values = dict[str, np.ndarray]


def confusion_matrices(
    weights: np.ndarray, labels: np.ndarray, predictions: np.ndarray, num_classes: int
) -> np.ndarray:
    """``[resamples, true class, predicted class]`` sums of ``weights [resamples, n]``."""
    cells = np.zeros((len(labels), num_classes * num_classes))
    cells[np.arange(len(labels)), labels * num_classes + predictions] = 1.0
    return (weights @ cells).reshape(-1, num_classes, num_classes)


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, NaN where the denominator is zero."""
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator != 0)


def present_mean(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Mean of ``values [resamples, classes]`` over the classes that occur; NaN where fewer than two do."""
    count = present.sum(axis=1)
    total = np.where(present, values, 0.0).sum(axis=1)
    return divide(total, np.where(count >= 2, count, 0).astype(float))


def class_metrics(matrices: np.ndarray) -> Values:
    """Accuracy, balanced accuracy, sensitivity, specificity, F1, MCC and recalls, each ``[resamples]``.

    Two classes: sensitivity, specificity and F1 are those of class 1. More: the macro mean over the classes
    that occur among the labels, one against the rest.
    """
    num_classes = matrices.shape[1]
    hits = np.diagonal(matrices, axis1=1, axis2=2)
    support, predicted, total = matrices.sum(axis=2), matrices.sum(axis=1), matrices.sum(axis=(1, 2))
    present = support > 0
    recall = divide(hits, support)
    rest = total[:, None] - support
    specificity = divide(rest - predicted + hits, rest)
    f1 = np.where(present, divide(2 * hits, support + predicted), np.nan)
    values = {
        "accuracy": divide(hits.sum(axis=1), total),
        "balanced_accuracy": present_mean(recall, present),
        "sensitivity": recall[:, 1] if num_classes == 2 else present_mean(recall, present),
        "specificity": specificity[:, 1] if num_classes == 2 else present_mean(specificity, present),
        "f1": f1[:, 1] if num_classes == 2 else present_mean(f1, present),
        "mcc": matthews(matrices),
    }
    return values | {f"recall_{index}": recall[:, index] for index in range(num_classes)}


def matthews(matrices: np.ndarray) -> np.ndarray:
    """Matthews' correlation for any number of classes (Gorodkin 2004).

    Undefined where one class holds all labels; 0 where the predictions are constant (Chicco and Jurman 2020).
    """
    support, predicted = matrices.sum(axis=2), matrices.sum(axis=1)
    total, hits = support.sum(axis=1), np.trace(matrices, axis1=1, axis2=2)
    covariance = hits * total - (support * predicted).sum(axis=1)
    label_spread = total**2 - (support**2).sum(axis=1)
    prediction_spread = total**2 - (predicted**2).sum(axis=1)
    correlation = divide(covariance, np.sqrt(label_spread * prediction_spread))
    return np.where((label_spread > 0) & (prediction_spread == 0), 0.0, correlation)


def quadratic_kappa(matrices: np.ndarray) -> np.ndarray:
    """Cohen's kappa with quadratic weights (Cohen 1968); undefined where one class holds all labels."""
    classes = np.arange(matrices.shape[1])
    cost = (classes[:, None] - classes[None, :]) ** 2.0
    support, predicted = matrices.sum(axis=2), matrices.sum(axis=1)
    expected = divide((support @ cost * predicted).sum(axis=1), support.sum(axis=1))
    kappa = 1.0 - divide((matrices * cost).sum(axis=(1, 2)), expected)
    return np.where((support > 0).sum(axis=1) >= 2, kappa, np.nan)


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
