"""Metrics that need only the confusion matrix, for many matrices at once. NaN says undefined."""

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
