"""What a classifier's probabilities are worth: metrics, their bootstrap intervals, a threshold, and curves."""

from medx.metrics.evaluate import (
    bootstrap,
    choose_threshold,
    choose_thresholds,
    curve_data,
    evaluate,
    is_degenerate,
    majority_accuracy,
    metric_names,
)

__all__ = [
    "bootstrap",
    "choose_threshold",
    "choose_thresholds",
    "curve_data",
    "evaluate",
    "is_degenerate",
    "majority_accuracy",
    "metric_names",
]
