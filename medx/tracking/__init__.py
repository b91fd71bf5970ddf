"""Where runs are written down to be compared. Only this package knows MLflow."""

from medx.tracking.base import TrackedRun, Tracker, Tracking

__all__ = ["TrackedRun", "Tracker", "Tracking"]
