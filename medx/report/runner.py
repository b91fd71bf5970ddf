"""Which of a study's jobs are finished, and running the others: one after another, or in worker processes."""

import contextlib
import json
import os
import shutil
import time
import traceback
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from medx.folder import refuse_running
from medx.report.study import Job, option_name
from medx.results import ExperimentResult
from medx.schema import CONF, CheckpointError, DataError, MedxError
from medx.sweep_folder import SWEEP_FILE

RESULT = "result.json"
LOG = "log.txt"
KILLED = "killed: "


class Progress(Protocol):
    """Who is told how the study goes."""

    def __call__(self, done: int, total: int, name: str, error: str | None, left: float) -> None:
        """After every job; ``left`` in seconds."""
        ...


def finished(job: Job, store: Path) -> ExperimentResult | None:
    """The job's result, if it has one that is finished and is its own."""
    path = store / job.folder / RESULT
    if not path.exists():
        return None
    result = read_result(path)
    same = (result.config_hash, result.seed) == (job.config_hash, job.seed)
    return result if same and result.status == "finished" else None


def read_result(path: Path) -> ExperimentResult:
    """What ``path`` holds; raises DataError with one line."""
    try:
        return ExperimentResult.load(path)
    except ValidationError as error:
        raise DataError(f"{path}: not a result of this version of medx ({error.error_count()} fields differ)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


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
        gone |= {run_id for run_id in run_ids if not connected.exists(run_id)}
    return gone


def collect(jobs: Sequence[Job], store: Path) -> dict[str, ExperimentResult]:
    """Finished results by job folder; a run that was deleted in MLflow is not finished any more."""
    found = {job.folder: result for job in jobs if (result := finished(job, store)) is not None}
    gone = deleted_runs(list(found.values()))
    for folder in [folder for folder, result in found.items() if result.tracking.get("run_id") in gone]:
        shutil.rmtree(store / folder)
        del found[folder]
    return found


def run_jobs(jobs: Sequence[Job], store: Path, workers: int, progress: Progress) -> dict[str, str]:
    """Run these jobs and give the failed ones' errors by folder; jobs to be timed alone come last, one by one."""
    name_sweep(store)
    together = [job for job in jobs if not job.alone]
    alone = [job for job in jobs if job.alone]
    errors: dict[str, str] = {}
    clock = Clock(jobs, workers)
    outcomes = [*_schedule(together, workers), *_schedule(alone, 1)]
    for batch, count in outcomes:
        for job, error, seconds in run_batch(batch, store, count):
            if error is not None:
                errors[job.folder] = error
            clock.done(job, seconds)
            progress(clock.count, len(jobs), job.name, error, clock.left())
    return errors


def _schedule(jobs: list[Job], workers: int) -> list[tuple[list[Job], int]]:
    return [(jobs, min(workers, len(jobs)))] if jobs else []


def run_batch(jobs: Sequence[Job], store: Path, workers: int) -> Iterator[tuple[Job, str | None, float]]:
    """(job, error, seconds) as they end. One worker is this process; a crashed worker is its jobs' error."""
    if workers <= 1:
        for job in jobs:
            error, seconds = run_one(job.overrides, store / job.folder)
            if error is not None and error.startswith(KILLED):
                raise KeyboardInterrupt
            yield job, error, seconds
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=single_thread)
    try:
        waiting: dict[Future[tuple[str | None, float]], Job] = {
            pool.submit(run_one, job.overrides, store / job.folder): job for job in jobs
        }
        for future in as_completed(waiting):
            problem = future.exception()
            error, seconds = future.result() if problem is None else (f"{type(problem).__name__}: {problem}", 0.0)
            yield waiting[future], error, seconds
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def single_thread() -> None:
    """Workers share the cores between them, so each computes on one; before torch is loaded, for all its threads."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    import torch

    torch.set_num_threads(1)


def run_one(overrides: Sequence[str], folder: Path) -> tuple[str | None, float]:
    """Run one job into ``folder``, its screen into ``log.txt``; gives a one-line error or None, and the seconds."""
    began = time.monotonic()
    folder = folder.absolute()
    try:
        resume = prepare_folder(folder)
        try:
            compose_and_run(overrides, folder, resume)
        except CheckpointError:
            if not resume:
                raise
            shutil.rmtree(folder)  # cut off in its first round, or by another version: start it anew
            folder.mkdir()
            compose_and_run(overrides, folder, resume=False)
        result = ExperimentResult.load(folder / RESULT)
        error = None if result.status == "finished" else f"{result.status}: {result.error}"
    except MedxError as problem:
        error = str(problem)
    except Exception as problem:
        (folder / "error.log").write_text(traceback.format_exc())
        error = f"{type(problem).__name__}: {problem}; see {folder / 'error.log'}"
    return error, time.monotonic() - began


def compose_and_run(overrides: Sequence[str], folder: Path, resume: bool) -> None:
    """Compose the job's configuration and run it, as ``python -m medx.run`` would."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from medx.job import run_job

    GlobalHydra.instance().clear()
    with (
        (folder / LOG).open("a") as log,
        contextlib.redirect_stdout(log),
        initialize_config_dir(version_base="1.3", config_dir=str(CONF)),
    ):
        config = compose("config", [*overrides, *([f"resume='{folder}'"] if resume else [])])
        run_job(config, folder, list(overrides))


def prepare_folder(folder: Path) -> bool:
    """Whether to go on with what is there; anything else that an earlier attempt left is removed."""
    refuse_running(folder)
    interrupted = (folder / "config.json").exists() and any((folder / "checkpoints").glob("round_*"))
    if interrupted and (folder / RESULT).exists():
        interrupted = ExperimentResult.load(folder / RESULT).status == "killed"
    if folder.exists() and not interrupted:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return interrupted


def name_sweep(store: Path) -> None:
    """The file by which tracking knows that these runs belong together."""
    store.mkdir(parents=True, exist_ok=True)
    path = store / SWEEP_FILE
    if not path.exists():
        path.write_text(json.dumps({"id": uuid.uuid4().hex, "overrides": []}))


class Clock:
    """Time left: every kind of job takes as long as its kind did so far, or as long as the mean."""

    def __init__(self, jobs: Sequence[Job], workers: int) -> None:
        self._left = {job.folder: self._kind(job) for job in jobs}
        self._alone = {job.folder for job in jobs if job.alone}
        self._seconds: dict[str, list[float]] = {}
        self._workers = max(workers, 1)
        self.count = 0

    def done(self, job: Job, seconds: float) -> None:
        """One job ended."""
        self.count += 1
        self._seconds.setdefault(self._left.pop(job.folder), []).append(seconds)

    def left(self) -> float:
        """Seconds until the last job ends, by what is known."""
        every = [seconds for kind in self._seconds.values() for seconds in kind]
        mean = sum(every) / len(every) if every else 0.0
        total = 0.0
        for folder, kind in self._left.items():
            known = self._seconds.get(kind)
            seconds = sum(known) / len(known) if known else mean
            total += seconds / (1 if folder in self._alone else self._workers)
        return total

    @staticmethod
    def _kind(job: Job) -> str:
        return f"{option_name(job.config, 'model')} {option_name(job.config, 'privacy')} {'alone' if job.alone else ''}"
