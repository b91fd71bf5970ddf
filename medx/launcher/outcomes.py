"""How the jobs of a sweep ended, found in the files that they left: the table, the selection and the exit code."""

import json
import logging
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medx.files import write_json, write_text
from medx.folder import CONFIG_FILE, RESULT_FILE, load_result
from medx.schema import MedxError

if TYPE_CHECKING:
    from medx.results import ExperimentResult

log = logging.getLogger(__name__)
FAILURE_FILE = "failure.json"
SELECTION_FILE = "selection.json"
INTERRUPTED = 130  # exit code of a job that the user stopped
COLUMNS = ("dataset", "model", "privacy", "privacy.epsilon")  # of the table, by their overrides
ROOM = 24  # letters of a job's name there


def outcome(folder: Path, title: str, code: int) -> str:
    """How a job ended, by its folder and its process's exit code (negative for a signal), in a few words.

    One that ended without a word is written down as failed.
    """
    if code not in (0, INTERRUPTED) and not (folder / FAILURE_FILE).exists():
        name = next((each.name for each in signal.Signals if each == -code), f"code {code}")
        record_failure(folder, title.split(), RuntimeError(f"its process ended by {name}"))
    result = ended(folder)
    if isinstance(result, str):
        return result if failure(folder) is None else f"FAILED: {result}"
    auc, epsilon = result.test["auc"].value, result.privacy.epsilon
    words = [] if auc is None else [f"test AUC {auc:.3f}"]
    return ", ".join([result.status, *words, *([] if epsilon is None else [f"ε {epsilon:.3f}"])])


def show(folder: Path, jobs: list[list[str]], *, stopped: bool = False) -> bool:
    """Print the table of a sweep's jobs as far as they are; whether all of them finished.

    A job is a folder with a run's configuration or a refusal. Fewer than ``jobs``, the overrides of all of them where
    they are known beforehand, is a failure too, unless the sweep was ``stopped``.
    """
    results: list[tuple[str, ExperimentResult | str]] = []
    for job in jobs_in(folder):
        failed, result = failure(job), ended(job)
        told = result if failed is None else f"{title(failed['overrides'], jobs)}: {result}"
        results.append((str(job.relative_to(folder)), told))
    finished = all(not isinstance(result, str) and result.status == "finished" for _, result in results)
    if complete := len(results) >= len(jobs) or stopped:
        notes, selected = selections(folder, results)
    else:
        notes, selected = [f"FAILED: {len(jobs) - len(results)} of {len(jobs)} jobs left nothing in {folder}"], False
    if results or notes:
        from medx.screen import sweep_table, where

        # A sweep whose jobs are not known beforehand cannot be gone on with.
        done = (finished and not stopped) or not jobs
        named = names([number for number, _ in results], jobs)
        shown = [  # a line of one that failed says itself what it was
            (number if isinstance(result, str) else name, result)
            for name, (number, result) in zip(named, results, strict=True)
        ]
        sweep_table(shown, notes=[*notes, *where(folder, finished=done, sweep=True)])
    return finished and complete and selected


def names(numbers: list[str], jobs: list[list[str]]) -> list[str]:
    """Each job's number and what tells it from others beside the table's columns, where there is room for that."""
    known = [jobs[int(each)] if each.isdigit() and int(each) < len(jobs) else [] for each in numbers]
    named = [
        " ".join([number, *(part for part in apart(own, jobs) if part.partition("=")[0] not in COLUMNS)])
        for number, own in zip(numbers, known, strict=True)
    ]
    return named if max(map(len, named), default=0) <= ROOM else numbers


def title(overrides: list[str], jobs: list[list[str]]) -> str:
    """What tells one job from the others of its sweep."""
    return " ".join(apart(overrides, jobs) or overrides)


def apart(overrides: list[str], jobs: list[list[str]]) -> list[str]:
    """Those of a job's overrides that not all jobs have."""
    shared = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    return [part for part in overrides if part not in shared]


def jobs_in(folder: Path) -> list[Path]:
    """The folders of a sweep's jobs in their order; one within another's is that job's own affair."""
    found = {path.parent for name in (CONFIG_FILE, FAILURE_FILE) for path in folder.glob(f"**/{name}")}
    return sorted((job for job in found if found.isdisjoint(job.parents)), key=_job_order)


def failure(folder: Path) -> dict[str, Any] | None:
    """What a job that failed has left: its ``overrides`` and its ``error`` in a line; None where there is none."""
    path = folder / FAILURE_FILE
    return json.loads(path.read_text()) if path.exists() else None


def ended(folder: Path) -> "ExperimentResult | str":
    """A job's result, or in words why it has none."""
    if (failed := failure(folder)) is not None:
        return str(failed["error"])
    try:
        return load_result(folder) or "ended without a result"
    except MedxError as error:
        return str(error)


def selections(folder: Path, results: list[tuple[str, Any]]) -> tuple[list[str], bool]:
    """Where the jobs ask for it, the best run of each seed in a line and in ``selection.json``, and what all spent.

    Also whether what they ask for could be done.
    """
    from medx.results import ExperimentResult

    jobs = {id(result): name for name, result in results if isinstance(result, ExperimentResult)}
    finished = [result for _, result in results if isinstance(result, ExperimentResult)]
    metrics = {str(metric) for result in finished if (metric := result.config.get("select"))}
    if not metrics:
        return [], True
    from medx.selection import by_seed, total_epsilon  # which brings torch with it

    try:
        if len(finished) < len(results):
            raise ValueError("a job left no result, so what it spent is not known")
        (metric,) = metrics
        found = {jobs[id(selection.result)]: selection for selection in by_seed(finished, metric)}
    except (MedxError, ValueError) as error:
        return [f"no run was selected: {error}"], False
    text = json.dumps({job: selection.summary() for job, selection in found.items()}, indent=2)
    write_text(folder / SELECTION_FILE, text)
    lines = [selection.line(job) for job, selection in found.items()]
    together = total_epsilon(finished)
    if len(found) > 1 and together is not None:
        lines.append(f"All seeds together: ε {together:.3f}")
    return lines, True


def _job_order(path: Path) -> tuple[int, str]:
    return (int(path.name) if path.name.isdigit() else sys.maxsize, str(path))


@contextmanager
def failures_kept(folder: Path, overrides: list[str]) -> Iterator[None]:
    """Write down an error in the job's folder, and raise nothing."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, MedxError):
            log.error("job %s failed", overrides, exc_info=True)
            (folder / "error.log").write_text(traceback.format_exc())
        record_failure(folder, overrides, error)


def record_failure(folder: Path, overrides: list[str], error: Exception) -> None:
    """Leave one small file in the job's folder, for the sweep's table and exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    write_json(folder / FAILURE_FILE, {"overrides": overrides, "error": text})


def why_unfinished(folder: Path) -> str | None:
    """In words why a job did not finish, or None where it did."""
    result = ended(folder)
    if isinstance(result, str):
        return result
    return None if result.status == "finished" else f"{result.status}: {result.error}"


def is_done(folder: Path) -> bool:
    """Whether a job has finished and its record says so too, so that nothing of it is to be done again."""
    if not (folder / RESULT_FILE).exists() or (folder / FAILURE_FILE).exists():
        return False
    from medx.tracking.record import read_run

    result, tracked = load_result(folder), read_run(folder)
    return result is not None and result.status == "finished" and (tracked is None or tracked.status != "running")
