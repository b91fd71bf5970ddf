"""Metrics where several labels may hold for one record: of each label over the records that tell it, and means."""

import numpy as np

from medx.metrics.measures import Values, binary_auc, divide

OF_EACH = ("auc", "average_precision", "recall")
ANSWERED = ("accuracy", "balanced_accuracy", "sensitivity", "specificity")


def measure_labels(
    weights: np.ndarray, probabilities: np.ndarray, labels: np.ndarray, thresholds: np.ndarray | None
) -> Values:
    """Every metric ``[resamples]`` of ``probabilities [n, labels]`` under ``weights [resamples, n]``; NaN: undefined.

    A label that holds from .5 upwards is answered, and for ``..._at_threshold`` from ``thresholds [labels]`` upwards.
    Means are over the labels for which a metric is defined. ``loss`` is the sum over a record's labels.
    """
    num_labels = probabilities.shape[1]
    known = labels >= 0
    truth = labels == 1
    each: dict[str, list[np.ndarray]] = {name: [] for name in OF_EACH}
    for index in range(num_labels):
        rows = known[:, index]
        scores, positive, counted = probabilities[rows, index], truth[rows, index], weights[:, rows]
        each["auc"].append(binary_auc(counted, scores, positive))
        each["average_precision"].append(average_precision(counted, scores, positive))
    at_half = _answers(weights, probabilities >= 0.5, truth, known)
    each["recall"] = list(at_half.pop("recalls").T)
    values = {f"{name}_{index}": found for name, parts in each.items() for index, found in enumerate(parts)}
    values |= {name: _mean(np.stack(each[name], axis=1)) for name in ("auc", "average_precision")} | at_half
    clipped = np.clip(np.where(truth, probabilities, 1 - probabilities), np.finfo(np.float64).eps, 1.0)
    values["loss"] = weights @ (-np.log(clipped) * known).sum(axis=1) / weights.sum(axis=1)
    squares = ((probabilities - truth) ** 2 * known).sum(axis=1)
    values["brier"] = divide(weights @ squares, weights @ known.sum(axis=1).astype(float))
    chosen = dict.fromkeys(ANSWERED, np.full(len(weights), np.nan))
    if thresholds is not None:
        chosen = _answers(weights, probabilities >= thresholds, truth, known)
    return values | {f"{name}_at_threshold": chosen[name] for name in ANSWERED}


def average_precision(weights: np.ndarray, scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """``[resamples]`` precision summed over the steps of recall, equal scores at once; NaN without a positive row."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1) if len(scores) else np.empty(0, np.int64)
    drawn = weights[:, order]
    true = np.cumsum(drawn * positive[order], axis=1)[:, ends]
    every = np.cumsum(drawn, axis=1)[:, ends]
    steps = np.diff(true, axis=1, prepend=0.0)
    total = true[:, -1] if true.shape[1] else np.zeros(len(weights))
    precision = np.divide(true, every, out=np.zeros(true.shape), where=every != 0)
    return divide((steps * precision).sum(axis=1), total)


def _answers(weights: np.ndarray, answers: np.ndarray, truth: np.ndarray, known: np.ndarray) -> Values:
    """Means over labels of what yes and no are worth, and the recall of each label ``[resamples, labels]``."""
    positive, negative = weights @ (truth & known), weights @ (~truth & known)
    hits, cleared = weights @ (truth & known & answers), weights @ (~truth & known & ~answers)
    sensitivity, specificity = divide(hits, positive), divide(cleared, negative)
    return {
        "recalls": sensitivity,
        "accuracy": _mean(divide(hits + cleared, positive + negative)),
        "balanced_accuracy": _mean((sensitivity + specificity) / 2),
        "sensitivity": _mean(sensitivity),
        "specificity": _mean(specificity),
    }


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the labels ``[resamples, labels]`` for which there is a value."""
    there = ~np.isnan(values)
    return divide(np.where(there, values, 0.0).sum(axis=1), there.sum(axis=1).astype(float))
