"""How the jobs of a sweep ended, found in the files that they left: the table, the selection and the exit code."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medx.folder import CONFIG_FILE, load_result
from medx.schema import MedxError
from medx.sweep_folder import FAILURE_FILE

if TYPE_CHECKING:
    from medx.results import ExperimentResult

SELECTION_FILE = "selection.json"
_FAILED: list[str] = []
_KILLED: list[str] = []


def outcome(folder: Path, title: str, code: int) -> str:
    """How a job of the crew ended, in a few words; one that ended without a word is written down as failed."""
    from medx.board import summary
    from medx.crew import INTERRUPTED

    if code not in (0, INTERRUPTED) and not (folder / FAILURE_FILE).exists():
        name = next((each.name for each in signal.Signals if each == -code), f"code {code}")
        record_failure(folder, title.split(), RuntimeError(f"its process ended by {name}"))
    if (folder / FAILURE_FILE).exists():
        return f"FAILED: {json.loads((folder / FAILURE_FILE).read_text())['error']}"
    result = result_or_why_not(folder)
    return result if isinstance(result, str) else summary(result)


def show(folder: Path, jobs: list[list[str]], *, stopped: bool = False) -> None:
    """Print the table of a sweep's jobs as far as they are, and remember those that failed.

    A job is a folder with a run's configuration or a refusal. Fewer than ``jobs``, the overrides of all of them where
    they are known beforehand, is a failure too, unless the sweep was ``stopped``.
    """
    results: list[tuple[str, ExperimentResult | str]] = []
    for job in jobs_in(folder):
        name = str(job.relative_to(folder))
        if (job / FAILURE_FILE).exists():
            failure = json.loads((job / FAILURE_FILE).read_text())
            results.append((name, f"{title(failure['overrides'], jobs)}: {failure['error']}"))
            _FAILED.append(name)
            continue
        result = result_or_why_not(job)
        results.append((name, result))
        if isinstance(result, str) or result.status != "finished":
            _FAILED.append(name)
    if len(results) < len(jobs) and not stopped:
        _FAILED.append("missing")
        notes = [f"FAILED: {len(jobs) - len(results)} of {len(jobs)} jobs left nothing in {folder}"]
    else:
        notes = selections(folder, results)
    if not results and not notes:
        return
    from medx.screen import sweep_table, where

    ended = not stopped and all(not isinstance(result, str) and result.status == "finished" for _, result in results)
    # A sweep whose jobs are not known beforehand cannot be gone on with.
    sweep_table(results, notes=[*notes, *where(folder, finished=ended or not jobs, sweep=True)])


def title(overrides: list[str], jobs: list[list[str]]) -> str:
    """What tells one job from the others of its sweep."""
    shared = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    return " ".join([part for part in overrides if part not in shared] or overrides)


def jobs_in(folder: Path) -> list[Path]:
    """The folders of a sweep's jobs in their order; one within another's is that job's own affair."""
    found = {path.parent for name in (CONFIG_FILE, FAILURE_FILE) for path in folder.glob(f"**/{name}")}
    return sorted((job for job in found if found.isdisjoint(job.parents)), key=_job_order)


def result_or_why_not(job: Path) -> "ExperimentResult | str":
    """A job's result, or in words why it has none."""
    try:
        return load_result(job) or "ended without a result"
    except MedxError as error:
        return str(error)


def selections(folder: Path, results: list[tuple[str, Any]]) -> list[str]:
    """Where the jobs ask for it: the best run of each seed in a line and in ``selection.json``, and what all spent."""
    from medx.results import ExperimentResult
    from medx.selection import by_seed, total_epsilon

    jobs = {id(result): name for name, result in results if isinstance(result, ExperimentResult)}
    finished = [result for _, result in results if isinstance(result, ExperimentResult)]
    metrics = {str(metric) for result in finished if (metric := result.config.get("select"))}
    if not metrics:
        return []
    try:
        if len(finished) < len(results):
            raise ValueError("a job left no result, so what it spent is not known")
        (metric,) = metrics
        found = {jobs[id(selection.result)]: selection for selection in by_seed(finished, metric)}
    except (MedxError, ValueError) as error:
        _FAILED.append("selection")
        return [f"no run was selected: {error}"]
    text = json.dumps({job: selection.summary() for job, selection in found.items()}, indent=2)
    (folder / SELECTION_FILE).write_text(text)
    lines = [selection.line(job) for job, selection in found.items()]
    together = total_epsilon(finished)
    return [*lines, f"All seeds together: ε {together:.3f}"] if len(found) > 1 and together is not None else lines


def _job_order(path: Path) -> tuple[int, str]:
    return (int(path.name) if path.name.isdigit() else sys.maxsize, str(path))


def record_failure(folder: Path, overrides: list[str], error: Exception) -> None:
    """Leave one small file in the job's folder, for the sweep's table and exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    temporary = folder / f".{FAILURE_FILE}.{os.getpid()}"
    temporary.write_text(json.dumps({"overrides": overrides, "error": text}))
    temporary.replace(folder / FAILURE_FILE)


def mark_failed(name: str, *, killed: bool) -> None:
    """Note that a run of this process did not finish, for its exit code."""
    _FAILED.append(name)
    if killed:
        _KILLED.append(name)


def interrupted() -> bool:
    """Whether a run of this process was stopped by the user."""
    return bool(_KILLED)


def exit_code() -> int:
    """1 where a job failed or stopped early, else 0."""
    return 1 if _FAILED else 0
