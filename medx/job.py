"""One Hydra job: configuration to experiment, with the screen and the tracking store listening."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medx.configuration import resumed_config, typed
from medx.experiment import config_name, make_setup, run_experiment
from medx.federation.job import draw_key
from medx.folder import SWEEP_FILE, RunFolder
from medx.machine import environment
from medx.observer import Observer, RunContext
from medx.results import ExperimentResult, RoundRecord, Status
from medx.screen import Screen
from medx.tracking.base import TrackedRun, Tracker


def run_job(config: dict[str, Any], folder: Path, overrides: list[str], *, quiet: bool = False) -> ExperimentResult:
    """Run one job in its output folder; ``config`` is the composed configuration as plain containers.

    ``quiet`` leaves the screen alone.
    """
    config = dict(config)
    resume = config.pop("resume")
    if resume is not None:
        folder = Path(resume).resolve()  # by whatever relative path or link: one folder, one record
        config = resumed_config(folder, config, overrides)
    composed = typed(config)
    place = RunFolder.new(folder, composed.hash) if resume is None else RunFolder.of(folder, composed.hash)
    tracked = Tracked(composed.tracking.tracker(), sweep_folder(folder))
    observers: list[Observer] = [tracked] if quiet else [Screen(), tracked]
    setup = make_setup(composed.experiment, composed.config, draw_key(composed.what))
    try:
        with cache_at(composed.experiment.cache):
            return run_experiment(composed.experiment, composed.config, setup, place, observers)
    finally:
        place.release()


@contextmanager
def cache_at(folder: Path) -> Iterator[None]:
    """Calibrations, which many ask for, go where ``cache=`` says: in workers too, which have this environment."""
    before = os.environ.get("MEDX_CACHE")
    os.environ["MEDX_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MEDX_CACHE"]
        else:
            os.environ["MEDX_CACHE"] = before


def sweep_folder(folder: Path) -> Path | None:
    """The sweep that this job belongs to, found by the file that names it."""
    for parent in folder.parents:
        if (parent / SWEEP_FILE).exists():
            return parent
    return None


class Tracked:
    """A tracker as an observer of the run."""

    def __init__(self, tracker: Tracker, sweep: Path | None) -> None:
        self._tracker = tracker
        self._sweep = sweep

    def on_start(self, context: RunContext) -> None:
        """Tell the tracker which run this is."""
        config = context.config
        self._tracker.start(
            TrackedRun(
                run=context.run,
                output_dir=context.folder,
                sweep_dir=self._sweep,
                study=config["study"] or "",
                seed=config["seed"],
                dataset=context.dataset,
                model=config_name(config, "model"),
                privacy=config_name(config, "privacy"),
                target_epsilon=config["privacy"].get("epsilon"),
                synthetic=context.synthetic,
                public=context.public,
                warning=context.warning,
                config_hash=context.config_hash,
                config=config,
                environment=environment("cpu"),
                description=context.statement,
            )
        )

    def on_round(self, record: RoundRecord) -> None:
        """Pass it on."""
        self._tracker.log_round(record)

    def on_end(self, result: ExperimentResult) -> None:
        """Pass it on with the checkpoint, and note in the result where the run is recorded."""
        files = [Path(result.checkpoint)] if result.checkpoint else []
        result.tracking = self._tracker.finish(result, files)

    def on_error(self, error: BaseException) -> None:
        """The record is closed as failed."""
        status: Status = "killed" if isinstance(error, KeyboardInterrupt) else "failed"
        self._tracker.abort(status, str(error).splitlines()[0] if str(error) else type(error).__name__)
