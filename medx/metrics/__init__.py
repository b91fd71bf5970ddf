"""What a classifier's probabilities are worth: metrics, their bootstrap intervals, a threshold, and curves."""

from medx.metrics.curves import curve_data
from medx.metrics.evaluate import bootstrap, evaluate, metric_names
from medx.metrics.threshold import choose_threshold, is_degenerate, majority_accuracy

__all__ = [
    "bootstrap",
    "choose_threshold",
    "curve_data",
    "evaluate",
    "is_degenerate",
    "majority_accuracy",
    "metric_names",
]
