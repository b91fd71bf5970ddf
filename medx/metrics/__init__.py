"""What a classifier's probabilities are worth: metrics, their bootstrap intervals, a threshold, and curves."""

from medx.metrics.evaluate import (
    bootstrap,
    curve_data,
    evaluate,
    is_degenerate,
    majority_accuracy,
    metric_names,
)
from medx.metrics.thresholds import ThresholdRule, choose_threshold, choose_thresholds

__all__ = [
    "ThresholdRule",
    "bootstrap",
    "choose_threshold",
    "choose_thresholds",
    "curve_data",
    "evaluate",
    "is_degenerate",
    "majority_accuracy",
    "metric_names",
]
