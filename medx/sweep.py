"""What belongs to a sweep as a whole: its identity, its failures, and the table at its end."""

import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

SWEEP_FILE = "sweep.json"
FAILURE_FILE = "failure.json"
_FAILED: list[str] = []


class Sweep(Callback):
    """Hydra's callback: names the sweep before its first job and prints one table after its last."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the sweep's identity where its jobs, in whatever process, can read it."""
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / SWEEP_FILE).exists():
            overrides = [str(override) for override in config.hydra.overrides.task]
            identity = {"id": uuid.uuid4().hex, "overrides": overrides}
            temporary = folder / f".{SWEEP_FILE}.{os.getpid()}"
            temporary.write_text(json.dumps(identity))
            temporary.replace(folder / SWEEP_FILE)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table and remember whether a job failed."""
        from medx.results import ExperimentResult
        from medx.screen import sweep_table

        folder = Path(config.hydra.sweep.dir)
        jobs = sorted((path for path in folder.iterdir() if path.is_dir()), key=_job_order)
        results: list[tuple[str, ExperimentResult | str]] = []
        for job in jobs:
            if (job / FAILURE_FILE).exists():
                failure = json.loads((job / FAILURE_FILE).read_text())
                results.append((job.name, f"{' '.join(failure['overrides'])}: {failure['error']}"))
                _FAILED.append(job.name)
            elif (job / "result.json").exists():
                result = ExperimentResult.load(job / "result.json")
                results.append((job.name, result))
                if result.status != "finished":
                    _FAILED.append(job.name)
        sweep_table(results)


def _job_order(path: Path) -> tuple[int, str]:
    return (int(path.name) if path.name.isdigit() else sys.maxsize, path.name)


def record_failure(folder: Path, overrides: list[str], error: Exception) -> None:
    """Leave one small file in the job's folder, for the sweep's table and exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    (folder / FAILURE_FILE).write_text(json.dumps({"overrides": overrides, "error": text}))


def mark_failed(name: str) -> None:
    """Note that a run of this process did not finish, for its exit code."""
    _FAILED.append(name)


def exit_code() -> int:
    """1 where a job failed or stopped early, else 0."""
    return 1 if _FAILED else 0
