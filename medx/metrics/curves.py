"""The points behind the figures of a split."""

import numpy as np

from medx.metrics.evaluate import CALIBRATION_BINS, calibration_bins
from medx.metrics.ranking import roc_points
from medx.results import CurveData


def curve_data(probabilities: np.ndarray, labels: np.ndarray) -> CurveData:
    """Confusion matrix (row: true class), ROC by class index, and reliability of the most probable class.

    ROC curves are lists of ``[false positive rate, true positive rate]``; of two classes only class 1 has one, and
    a class that is missing (or all there is) has none. Calibration bins have ``low``, ``high``, ``count``,
    ``confidence`` and ``accuracy``; empty bins are left out. Not finite probabilities give no curve.
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    num_classes = probabilities.shape[1]
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
