"""Which of a study's jobs are finished, and running the others."""

import shutil
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from medx.files import write_json
from medx.folder import CONFIG_FILE, RESULT_FILE, SWEEP_FILE, read_result, refuse_running
from medx.launcher import pool
from medx.launcher.outcomes import FAILURE_FILE, failures_kept, why_unfinished
from medx.report.study import Job
from medx.results import ExperimentResult
from medx.schema import CheckpointError, ConfigError


def finished(job: Job, store: Path) -> ExperimentResult | None:
    """The job's result, if it has one that is finished and is its own."""
    path = store / job.folder / RESULT_FILE
    if not path.exists():
        return None
    result = read_result(path)
    same = (result.config_hash, result.seed) == (job.config_hash, job.seed)
    return result if same and result.status == "finished" else None


def deleted_runs(results: Sequence[ExperimentResult]) -> set[str]:
    """Run ids that were recorded in an embedded MLflow store which is still there and no longer has them."""
    gone: set[str] = set()
    by_store: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if "run_id" in result.tracking:
            key = (result.tracking["uri"], result.tracking["experiment"])
            by_store.setdefault(key, []).append(result.tracking["run_id"])
    for (uri, experiment), run_ids in by_store.items():
        from medx.tracking.store import Destination, connect

        destination = Destination(uri=uri, experiment=experiment)
        if destination.database is None or not destination.database.exists():
            continue  # of a server, or moved away: the output folder alone decides
        connected = connect(destination)
        gone |= {run_id for run_id in run_ids if connected.status(run_id) is None}
    return gone


def collect(jobs: Sequence[Job], store: Path) -> dict[str, ExperimentResult]:
    """Finished results by job folder; a run that was deleted in MLflow is not finished any more."""
    found = {job.folder: result for job in jobs if (result := finished(job, store)) is not None}
    refuse_other_data(found, store)
    gone = deleted_runs(list(found.values()))
    for folder in [folder for folder, result in found.items() if result.tracking.get("run_id") in gone]:
        shutil.rmtree(store / folder)
        del found[folder]
    return found


def refuse_other_data(found: Mapping[str, ExperimentResult], store: Path) -> None:
    """Raise ConfigError where seeds of one setting have other data: a configuration names files, not their content."""
    first: dict[str | None, tuple[str, str | None]] = {}
    for folder, result in found.items():
        data = result.dataset.content_hash
        known, before = first.setdefault(result.config_hash, (folder, data))
        if data != before:
            raise ConfigError(
                f"{store / folder}: its data are not those of {known}, which is another seed of the same setting; "
                "accepted: delete the folder of whichever is out of date, and it is run anew"
            )


def run_jobs(jobs: Sequence[Job], store: Path, at_once: int) -> dict[str, str]:
    """Run these jobs and give the failed ones' errors by folder; jobs to be timed alone come last, one by one."""
    store.mkdir(parents=True, exist_ok=True)
    if not (store / SWEEP_FILE).exists():  # by which tracking knows that these runs belong together
        write_json(store / SWEEP_FILE, {"id": uuid.uuid4().hex, "overrides": []})
    pool.run_jobs((_in_pool(job, store) for job in sorted(jobs, key=lambda job: job.alone)), len(jobs), at_once)
    ended = {job.folder: why_unfinished(store / job.folder) for job in jobs}
    return {folder: error for folder, error in ended.items() if error is not None}


def _in_pool(job: Job, store: Path) -> pool.Job:
    folder = (store / job.folder).absolute()
    return pool.Job(job.name, folder, partial(_run, job.config, list(job.overrides), folder), job.alone)


def _run(config: dict[str, Any], overrides: list[str], folder: Path) -> None:
    """Run one job, as ``python -m medx.run`` would; one that cannot be gone on with starts anew."""
    from medx.job import run_job

    with failures_kept(folder, overrides):
        resume = prepare_folder(folder)
        try:
            result = run_job(config | {"resume": str(folder) if resume else None}, folder, overrides)
        except CheckpointError:
            if not resume:
                raise
            clear(folder)  # cut off in its first round, or by another version
            result = run_job(config | {"resume": None}, folder, overrides)
        if result.status == "killed":
            raise KeyboardInterrupt


def prepare_folder(folder: Path) -> bool:
    """Whether to go on with what is there; anything else that an earlier attempt left is removed."""
    refuse_running(folder)
    interrupted = (folder / CONFIG_FILE).exists() and any((folder / "checkpoints").glob("round_*"))
    if interrupted and (folder / RESULT_FILE).exists():
        interrupted = ExperimentResult.load(folder / RESULT_FILE).status == "killed"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILURE_FILE).unlink(missing_ok=True)
    if not interrupted:
        clear(folder)
    return interrupted


def clear(folder: Path) -> None:
    """Remove all that an attempt left, but for the screen, into which this process may be writing."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (pool.SCREEN_FILE, pool.WARNINGS_FILE):
            path.unlink()
