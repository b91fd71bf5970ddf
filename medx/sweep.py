"""A sweep as a whole: its folder and identity, whether its jobs run side by side, and its end."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from medx.folder import CONFIG_FILE, read_config, refuse_used
from medx.outcomes import jobs_in, outcome, show
from medx.schema import ConfigError, one_line
from medx.sweep_checks import reason_to_queue, refuse_chdir, refuse_jobs, refuse_selection, refuse_unknown
from medx.sweep_folder import SWEEP_FILE, claim, go_on, is_done
from medx.sweeper import combinations, jobs_of, left_out, written

if TYPE_CHECKING:
    from medx.crew import Crew

_FOLDERS: list[Path] = []  # of this process's sweep, if it is one
_JOBS: list[list[str]] = []  # its jobs, where they are known beforehand
_LISTED: list[list[str]] = []  # the same, where Hydra runs them one by one
_CREW: "list[Crew | None]" = []  # at most one, from the first job on; None where jobs run in this process


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
        _FOLDERS[:] = [folder]
        _JOBS[:] = jobs
        _LISTED[:] = jobs if str(config.hydra.launcher._target_).endswith("BasicLauncher") else []


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


def conclude() -> None:
    """Wait for a sweep's last jobs and print its table; nothing after a single run."""
    for crew in filter(None, _CREW):
        crew.finish()
    for folder in _FOLDERS:
        show(folder, _JOBS)


def crew(config: DictConfig) -> "Crew | None":
    """Who runs the jobs of this sweep side by side; None where they run here, one after another.

    The first job decides: once this process has computed, it must not fork. Raises ConfigError where ``jobs`` is wrong.
    """
    from medx.crew import Crew, jobs_at_once

    refuse_jobs(config)
    at_once = jobs_at_once(config.get("jobs"), len(_LISTED), reason_to_queue(config))
    if not _CREW:
        done = sum(is_done(job) for folder in _FOLDERS for job in jobs_in(folder))
        _CREW.append(Crew(at_once, outcome, len(_LISTED) - done) if at_once > 1 else None)
    return _CREW[0]


def known_jobs() -> list[list[str]]:
    """The overrides of this sweep's jobs; none where a sweeper chooses them as it goes."""
    return _JOBS


def show_interrupted() -> None:
    """Stop the jobs of a sweep that the user stopped, and show its table; nothing where there is no sweep."""
    stop()
    for folder in _FOLDERS:
        show(folder, _JOBS, stopped=True)


def stop() -> None:
    """Let the jobs that still run end in order, as after Ctrl-C."""
    for crew in filter(None, _CREW):
        crew.interrupt()
