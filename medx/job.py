"""One Hydra job: configuration to experiment, with the screen and the tracking store listening."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medx.attacks.standard import attacked, refuse
from medx.configuration import resumed_config, typed
from medx.experiment import make_setup, run_experiment
from medx.federation.setup import draw_key
from medx.folder import RunFolder, sweep_of
from medx.results import ExperimentResult, Observer
from medx.screen import Screen


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
    attacks = None
    if composed.experiment.attack == "standard":
        refuse(composed.config)
        attacks = attacked
    place = RunFolder.new(folder, composed.hash) if resume is None else RunFolder.of(folder, composed.hash)
    observers: list[Observer] = [] if quiet else [Screen()]
    observers += composed.tracking.observers(sweep_of(folder))
    setup = make_setup(composed.experiment, composed.config, draw_key(composed.what))
    try:
        with cache_at(composed.experiment.cache):
            return run_experiment(composed.experiment, composed.config, setup, place, observers, attacks=attacks)
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
