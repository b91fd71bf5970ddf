"""What a split's probabilities are worth: metrics, once or over bootstrap resamples, and curves."""

import math
import re
from collections.abc import Sequence

import numpy as np

from medx.dataset import Task
from medx.metrics.measures import Values, auc, class_metrics, confusion_matrices, quadratic_kappa, roc_points
from medx.metrics.several import OF_EACH, measure_labels
from medx.results import CurveData, Interval
from medx.schema import ConfigError

CALIBRATION_BINS = 15
AT_THRESHOLD = ("accuracy", "balanced_accuracy", "sensitivity", "specificity")
CHUNK_CELLS = 2_000_000
Threshold = float | Sequence[float | None] | None  # of class 1; of several labels one each, None for .5


def metric_names(num_classes: int, task: Task) -> list[str]:
    """The names that ``bootstrap`` answers with, and ``evaluate`` where it is given a threshold."""
    if task == "multilabel":
        names = [
            "loss",
            "accuracy",
            "balanced_accuracy",
            "auc",
            "average_precision",
            "sensitivity",
            "specificity",
            "brier",
        ]
        names += [f"{name}_{index}" for name in OF_EACH for index in range(num_classes)]
        return names + [f"{name}_at_threshold" for name in AT_THRESHOLD]
    names = ["loss", "accuracy", "balanced_accuracy", "auc", "sensitivity", "specificity", "f1", "mcc", "ece", "brier"]
    names += [f"recall_{index}" for index in range(num_classes)]
    names += ["quadratic_kappa"] if task == "ordinal" else []
    return names + [f"{name}_at_threshold" for name in AT_THRESHOLD]


def refuse_unknown_metric(name: str, num_classes: int | None = None, task: Task = "ordinal") -> None:
    """Raise ConfigError where no data set, or none of ``num_classes``, has a validation metric of the name."""
    known = metric_names(num_classes or 0, task)
    if name in known or (num_classes is None and re.fullmatch(r"recall_\d+", name)):
        return
    raise ConfigError(f"select={name}: no such metric; accepted: {', '.join(known)}")


def evaluate(
    probabilities: np.ndarray, labels: np.ndarray, task: Task, threshold: Threshold = None
) -> dict[str, float | None]:
    """Metrics of ``probabilities [n, classes]`` against ``labels [n]``; None where a metric is undefined.

    Of the task multilabel see ``several.measure_labels``, with a threshold a label.

    The class is the most probable one (the first of equals). Of two classes, ``..._at_threshold`` answers class 1
    from ``threshold`` upwards, and is left out without one; of more, it repeats the metric itself. All metrics are
    None for an empty split or where a probability is not finite. Macro means take the classes that occur among
    the labels and need two of them.
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    names = metric_names(probabilities.shape[1], task)
    if (probabilities.shape[1] == 2 or task == "multilabel") and threshold is None:
        names = [name for name in names if not name.endswith("_at_threshold")]
    if not _measurable(probabilities):
        return dict.fromkeys(names)
    values = _measure(np.ones((1, len(labels))), probabilities, labels, task, threshold)
    return {name: _defined(values[name][0]) for name in names}


def bootstrap(
    probabilities: np.ndarray,
    labels: np.ndarray,
    task: Task,
    threshold: Threshold,
    generator: np.random.Generator,
    *,
    resamples: int = 1000,
) -> dict[str, Interval]:
    """``evaluate``'s metrics with 95 % percentile intervals over images drawn with replacement (Efron 1979).

    The model and the threshold stay fixed. Resamples in which a metric is undefined are left out of its interval;
    without a threshold the metrics that need one are undefined.
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    names = metric_names(probabilities.shape[1], task)
    values = dict.fromkeys(names) | evaluate(probabilities, labels, task, threshold)
    if not _measurable(probabilities):
        return {name: Interval(value=None) for name in values}
    size = max(1, CHUNK_CELLS // len(labels))
    draws = (_resample(len(labels), min(size, resamples - start), generator) for start in range(0, resamples, size))
    parts = [_measure(weights, probabilities, labels, task, threshold) for weights in draws]
    drawn = {name: np.concatenate([part[name] for part in parts]) for name in values}
    return {name: _interval(value, drawn[name]) for name, value in values.items()}


def calibration_bins(confidence: np.ndarray) -> np.ndarray:
    """``[n]`` index of the equal-width bin that holds each confidence; the upper edge belongs to the bin."""
    return np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)


def majority_accuracy(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Test accuracy of always answering the most frequent training class (the first of equals).

    Of several labels the mean over them of what the more frequent of yes and no comes to.
    """
    train, test = np.asarray(train_labels), np.asarray(test_labels)
    if train.ndim == 1:
        return float(np.mean(test == np.bincount(train).argmax()))
    answers = (train == 1).sum(axis=0) > (train == 0).sum(axis=0)
    known = test >= 0
    right = ((test == 1) == answers) & known
    told = known.any(axis=0)
    return float(np.mean(right[:, told].sum(axis=0) / known[:, told].sum(axis=0))) if told.any() else math.nan


def is_degenerate(predictions: np.ndarray) -> bool:
    """Whether all ``predictions [n]``, or ``[n, labels]``, are the same: a model that tells nothing apart."""
    return len(np.unique(predictions, axis=0)) <= 1


def curve_data(probabilities: np.ndarray, labels: np.ndarray) -> CurveData:
    """Confusion matrix (row: true class), ROC by class index, and reliability of the most probable class.

    ROC curves are lists of ``[false positive rate, true positive rate]``; of two classes only class 1 has one, and
    a class that is missing (or all there is) has none. Calibration bins have ``low``, ``high``, ``count``,
    ``confidence`` and ``accuracy``; empty bins are left out. Not finite probabilities give no curve. Of labels
    ``[n, labels]``, of which several may hold, there are ROC curves alone.
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    num_classes = probabilities.shape[1]
    if labels.ndim == 2:
        return _curves_of_labels(probabilities, labels)
    predictions = probabilities.argmax(axis=1)
    matrix = np.bincount(labels * num_classes + predictions, minlength=num_classes**2).reshape(num_classes, -1)
    if not np.isfinite(probabilities).all():
        return CurveData(confusion_matrix=matrix.tolist())
    classes = [1] if num_classes == 2 else range(num_classes)
    curves = {str(index): roc_points(probabilities[:, index], labels == index) for index in classes}
    return CurveData(
        confusion_matrix=matrix.tolist(),
        roc={name: points for name, points in curves.items() if points},
        calibration=_reliability(probabilities.max(axis=1, initial=0), predictions == labels),
    )


def _curves_of_labels(probabilities: np.ndarray, labels: np.ndarray) -> CurveData:
    curves: dict[str, list[list[float]]] = {}
    if np.isfinite(probabilities).all():
        for index in range(labels.shape[1]):
            known = labels[:, index] >= 0
            curves[str(index)] = roc_points(probabilities[known, index], labels[known, index] == 1)
    return CurveData(confusion_matrix=[], roc={name: points for name, points in curves.items() if points})


def _reliability(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, float]]:
    bins = calibration_bins(confidence)
    return [
        {
            "low": index / CALIBRATION_BINS,
            "high": (index + 1) / CALIBRATION_BINS,
            "count": int((bins == index).sum()),
            "confidence": float(confidence[bins == index].mean()),
            "accuracy": float(correct[bins == index].mean()),
        }
        for index in np.unique(bins).tolist()
    ]


def _measurable(probabilities: np.ndarray) -> bool:
    return len(probabilities) > 0 and bool(np.isfinite(probabilities).all())


def _resample(n: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """``[count, n]`` how often each row was drawn."""
    rows = generator.integers(0, n, size=(count, n)) + np.arange(count)[:, None] * n
    return np.bincount(rows.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)


def _measure(
    weights: np.ndarray, probabilities: np.ndarray, labels: np.ndarray, task: Task, threshold: Threshold
) -> Values:
    """Every metric ``[resamples]`` under ``weights [resamples, n]``; NaN where undefined."""
    if task == "multilabel":
        given = [threshold] * probabilities.shape[1] if isinstance(threshold, float) else threshold
        cuts = None if given is None else np.array([0.5 if cut is None else cut for cut in given])
        return measure_labels(weights, probabilities, labels, cuts)
    num_classes = probabilities.shape[1]
    predictions = probabilities.argmax(axis=1)
    matrices = confusion_matrices(weights, labels, predictions, num_classes)
    values = class_metrics(matrices) | _probability_metrics(weights, probabilities, labels, predictions)
    values["auc"] = auc(weights, probabilities, labels)
    if task == "ordinal":
        values["quadratic_kappa"] = quadratic_kappa(matrices)
    chosen = values
    if num_classes == 2:
        if threshold is None:
            return values | {f"{name}_at_threshold": np.full(len(weights), np.nan) for name in AT_THRESHOLD}
        answers = (probabilities[:, 1] >= float(threshold)).astype(np.int64)  # type: ignore[arg-type]
        chosen = class_metrics(confusion_matrices(weights, labels, answers, num_classes))
    return values | {f"{name}_at_threshold": chosen[name] for name in AT_THRESHOLD}


def _probability_metrics(
    weights: np.ndarray, probabilities: np.ndarray, labels: np.ndarray, predictions: np.ndarray
) -> Values:
    """Log-loss in nats, Brier score (of class 1 where there are two) and expected calibration error (Guo 2017)."""
    rows = np.arange(len(labels))
    truth = np.zeros_like(probabilities)
    truth[rows, labels] = 1.0
    squares = (probabilities - truth) ** 2
    surprise = -np.log(np.clip(probabilities[rows, labels], np.finfo(np.float64).eps, 1.0))
    confidence = probabilities[rows, predictions]
    gaps = np.zeros((len(labels), CALIBRATION_BINS))
    gaps[rows, calibration_bins(confidence)] = (predictions == labels) - confidence
    total = weights.sum(axis=1)
    return {
        "loss": weights @ surprise / total,
        "brier": weights @ (squares[:, 1] if squares.shape[1] == 2 else squares.sum(axis=1)) / total,
        "ece": np.abs(weights @ gaps).sum(axis=1) / total,
    }


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _interval(value: float | None, drawn: np.ndarray) -> Interval:
    drawn = drawn[~np.isnan(drawn)]
    if value is None or len(drawn) == 0:
        return Interval(value=value)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value=value, low=float(low), high=float(high))
