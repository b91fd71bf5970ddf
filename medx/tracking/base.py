"""What a tracking option offers, and what it is told about a run before the first round."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from medx.released import Record
from medx.results import ExperimentResult, RoundRecord, Status, released_config


class TrackedRun(Record):
    """A run as tracking sees it. ``privacy`` is the mechanism's name; ``sweep_dir`` is None outside a sweep.

    ``run`` is the id in its folder, by which a store knows it again. ``public`` says that everybody has the data,
    ``warning`` what a reader must know of the noise. ``config`` is the composed configuration as plain containers;
    ``environment`` has the revision as ``git``.
    """

    run: str
    output_dir: Path
    sweep_dir: Path | None = None
    study: str
    seed: int | None
    dataset: str
    model: str
    privacy: str
    target_epsilon: float | None
    synthetic: bool
    public: bool = False
    warning: str | None = None
    config_hash: str | None
    config: dict[str, Any]
    environment: dict[str, str] = Field(default_factory=dict)
    description: str = ""

    @property
    def title(self) -> str:
        """What tells runs apart comes first, as lists cut names off: ``ε=5 seed 0 local_dp scatternet pneumonia``."""
        target = [] if self.target_epsilon is None else [f"ε={self.target_epsilon:g}"]
        seed = [] if self.seed is None else [f"seed {self.seed}"]
        return " ".join([*target, *seed, self.privacy, self.model, self.dataset.removesuffix("mnist")])

    def released(self) -> "TrackedRun":
        """The same without what is its owner's alone."""
        return self.model_copy(update={"seed": None, "config_hash": None, "config": released_config(self.config)})


class Tracker(Protocol):
    """Follows one run. No method waits for a network or raises because a server is down."""

    def start(self, run: TrackedRun) -> None:
        """Before the first round; on resume the same record is continued."""
        ...

    def log_round(self, record: RoundRecord) -> None:
        """After every round; a round that was logged before is not logged twice."""
        ...

    def finish(self, result: ExperimentResult, files: Sequence[Path] = ()) -> dict[str, str]:
        """With the result, whatever its status, and more files to keep; answers like ``info``."""
        ...

    def abort(self, status: Status, error: str) -> dict[str, str]:
        """Instead of ``finish``, where a run ended without a result."""
        ...

    def info(self) -> dict[str, str]:
        """Where the run is recorded: ``uri``, ``experiment``, and ``run_id`` once it is known."""
        ...


class Tracking(Protocol):
    """A configured tracking option: one module and one yaml of the same name."""

    def settled(self, folder: Path) -> "Tracking":
        """The same, with its store named wherever it is asked for later; ``folder`` is the working directory."""
        ...

    def tracker(self) -> Tracker:
        """A fresh tracker for one run."""
        ...
