"""A sweep as a whole: its folder and identity, going on with it after it was stopped, and its end."""

import json
import os
import sys
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from medx.files import created
from medx.folder import CONFIG_FILE, SWEEP_FILE, read_config, refuse_used
from medx.launcher.jobs import (
    AGAIN,
    combinations,
    jobs_of,
    left_out,
    refuse_chdir,
    refuse_jobs,
    refuse_selection,
    refuse_unknown,
    written,
)
from medx.launcher.outcomes import show
from medx.schema import CheckpointError, ConfigError, one_line
from medx.tracking.tracker import follow_early

BESIDE_RESUME = ("jobs", "cache", "tracking", "runtime")  # what a sweep may change when it goes on
_SWEEPS: list[tuple[Path, list[list[str]]]] = []  # this process's, if it is one: its folder, and its jobs where known


class Sweep(Callback):
    """Hydra's callback: gives a run or a sweep its folder before Hydra writes there, or refuses it in one line."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a folder that another run has used; a run that is gone on with stays in its own."""
        with refusals():
            refuse_chdir(config)
            if config.get("resume") is None:
                return refuse_used(Path(config.hydra.run.dir))
            folder = Path(config.resume).resolve()
            if (folder / SWEEP_FILE).exists() and not (folder / CONFIG_FILE).exists():
                raise ConfigError(f"resume={config.resume}: this is the folder of a sweep; add -m, or name a job's")
            read_config(folder)
            config.hydra.run.dir = str(folder)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a sweep with a job that cannot be composed; write the sweep's identity where its jobs can read it."""
        with refusals():
            refuse_chdir(config)
            resume = [part for part in written(config.hydra.overrides.task) if part.startswith("resume=")]
            if resume:
                go_on(config, resume)
            jobs = jobs_of(config)
            first = refuse_unknown(config, jobs)
            refuse_jobs(first or config)
            refuse_selection(str(config.hydra.job.config_name), first, jobs)
            for line in left_out(combinations(config)):
                print(line, flush=True)
            folder = Path(config.hydra.sweep.dir)
            if not resume:
                claim(folder, config, jobs)
        _SWEEPS[:] = [(folder, jobs)]
        follow_early((first or config).tracking, folder)


@contextmanager
def refusals() -> Iterator[None]:
    """End the program with one line where the block refuses; Hydra would warn of an error in a callback, and go on."""
    try:
        yield
    except Exception as error:
        if (line := one_line(error)) is None:
            traceback.print_exc()
            sys.exit(1)
        print(f"medx: {line}", file=sys.stderr)
        sys.exit(2)


def claim(folder: Path, config: DictConfig, jobs: list[list[str]]) -> None:
    """Make the folder this sweep's, exclusively; raises ConfigError where another sweep has used it."""
    folder.mkdir(parents=True, exist_ok=True)
    identity = {
        "id": uuid.uuid4().hex,
        "start": str(Path.cwd()),
        "overrides": written(config.hydra.overrides.task),
        "hydra": written(config.hydra.overrides.hydra),
        "params": OmegaConf.to_container(config.hydra.sweeper.get("params") or OmegaConf.create({})),
        "jobs": jobs,
    }
    try:
        with created(folder / SWEEP_FILE) as aside:
            aside.write_text(json.dumps(identity, indent=1))
    except FileExistsError:
        raise ConfigError(
            f"hydra.sweep.dir={folder}: another sweep has used this folder; accepted: another folder, or "
            f"resume={folder} -m to go on with that sweep"
        ) from None


def go_on(config: DictConfig, resume: list[str]) -> None:
    """Make ``config`` that of the sweep to go on with: the same jobs, each with what its folder holds.

    Raises ConfigError where the jobs are not known or would be others, and CheckpointError where there is no sweep.
    """
    given = resume[-1].split("=", 1)[1].strip("'\"")
    folder = Path(given).resolve()
    if not (folder / SWEEP_FILE).exists():
        raise CheckpointError(f"{resume[-1]} -m: no {SWEEP_FILE} there; accepted with -m: the folder of one sweep")
    known = json.loads((folder / SWEEP_FILE).read_text())
    beside = [part for part in written(config.hydra.overrides.task) if part not in resume]
    for part in beside:
        if part.lstrip("+~").split("=", 1)[0].split(".")[0].split("@")[0] not in BESIDE_RESUME:
            raise ConfigError(
                f"{resume[-1]}: {part}: a sweep goes on with its own settings; accepted beside it: a value of "
                f"{', '.join(BESIDE_RESUME)}"
            )
    if not known.get("jobs"):
        raise ConfigError(f"{resume[-1]}: its jobs were chosen as it went; accepted: resume= with one job's folder")
    if not Path(known["start"]).is_dir():
        raise ConfigError(f"{resume[-1]}: it was started in {known['start']}, from where its paths go; not there")
    os.chdir(known["start"])
    own = [part for part in known["hydra"] if not part.startswith("hydra.sweep.dir=")]
    config.hydra.overrides.hydra = [*own, f"hydra.sweep.dir='{folder}'"]
    config.hydra.overrides.task = known["overrides"]
    config.hydra.sweeper.params = known["params"] or None
    config.hydra.sweep.dir = str(folder)
    if jobs_of(config) != known["jobs"]:
        raise ConfigError(f"{resume[-1]}: its settings give other jobs now than they did then")
    config.hydra.overrides.task = [*known["overrides"], *beside, AGAIN]
    if len(jobs_of(config)) != len(known["jobs"]):
        raise ConfigError(f"{resume[-1]}: {' '.join(beside)}: accepted is one value of each for all its jobs")


def conclude(*, stopped: bool = False) -> bool:
    """Print the table of a sweep that has ended; whether all its jobs finished. Nothing after a single run."""
    return all([show(folder, jobs, stopped=stopped) for folder, jobs in _SWEEPS])
