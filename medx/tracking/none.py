"""No tracking: the output folder alone holds the run."""

from collections.abc import Sequence
from pathlib import Path

from medx.results import ExperimentResult, RoundRecord, Status
from medx.schema import component
from medx.tracking.base import TrackedRun


class NoTracker:
    """Records nothing."""

    def start(self, run: TrackedRun) -> None:
        """Nothing to prepare."""

    def log_round(self, record: RoundRecord) -> None:
        """Nothing to record."""

    def finish(self, result: ExperimentResult, files: Sequence[Path] = ()) -> dict[str, str]:
        """Nothing to finish."""
        return {}

    def abort(self, status: Status, error: str) -> dict[str, str]:
        """Nothing to finish."""
        return {}

    def info(self) -> dict[str, str]:
        """Nowhere."""
        return {}


@component("tracking/none")
class NoTracking:
    """``tracking=none``."""

    def settled(self, folder: Path) -> "NoTracking":
        """It has no store."""
        return self

    def tracker(self) -> NoTracker:
        """A tracker that records nothing."""
        return NoTracker()
