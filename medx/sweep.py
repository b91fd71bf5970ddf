"""What belongs to a sweep as a whole: its folder and identity, its failures, and the table at its end."""

import json
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from medx.folder import CONFIG_FILE, load_result, read_config, refuse_used
from medx.schema import ConfigError, MedxError
from medx.sweep_folder import AGAIN, FAILURE_FILE, SWEEP_FILE, claim, go_on, is_done, jobs_of

if TYPE_CHECKING:
    from medx.crew import Crew
    from medx.results import ExperimentResult

SELECTION_FILE = "selection.json"
# What a run's releases on a record depend on: who holds it, how often it is drawn, and how much noise it gets.
RELEASES = (
    "dataset",
    "partition",
    *(f"privacy.{key}" for key in ("_target_", "epsilon", "delta", "num_runs", "spare_rounds", "noise_source")),
    *(f"trainer.{key}" for key in ("expected_batch_size", "sampling_probability", "local_steps")),
    *(f"federation.{key}" for key in ("num_clients", "num_rounds", "fraction_clients")),
)
_FAILED: list[str] = []
_KILLED: list[str] = []
_FOLDERS: list[Path] = []
_LISTED: list[list[str]] = []  # this sweep's jobs, where they are known beforehand and Hydra runs them one by one
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
            config.hydra.output_subdir = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a sweep with a job that cannot be composed; write the sweep's identity where its jobs can read it."""
        with refusals():
            refuse_chdir(config)
            resume = [part for part in config.hydra.overrides.task if part.startswith("resume=")]
            if resume:
                go_on(config, resume)
            jobs = jobs_of(config)
            refuse_overdraft(str(config.hydra.job.config_name), refuse_unknown(config, jobs), jobs)
            compose_once()
            folder = Path(config.hydra.sweep.dir)
            if not resume:
                claim(folder, config, jobs)
        _FOLDERS[:] = [folder]
        _LISTED[:] = jobs if str(config.hydra.launcher._target_).endswith("BasicLauncher") else []


@contextmanager
def refusals() -> Iterator[None]:
    """End the program with one line where the block refuses; Hydra would warn of an error in a callback, and go on."""
    try:
        yield
    except MedxError as error:
        print(f"medx: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def refuse_chdir(config: DictConfig) -> None:
    """Each job would find a ledger, and so a budget, of its own behind one relative path."""
    if config.hydra.job.chdir:
        raise ConfigError(
            "hydra.job.chdir=true: ledgers, data and the tracking store are found from the directory in which the "
            "program is started; accepted: false"
        )


def conclude() -> None:
    """Wait for a sweep's last jobs, print its table, and remember which jobs failed; nothing after a single run."""
    for crew in filter(None, _CREW):
        crew.finish()
    for folder in _FOLDERS:
        show(folder)


def refuse_unknown(config: DictConfig, jobs: list[list[str]]) -> DictConfig | None:
    """End the program with one line, before the first job, where a key or option of any job is unknown.

    Hydra composes each job when its turn comes: a misspelt third option would end the sweep after two runs. Gives the
    first job's configuration.
    """
    from hydra import compose
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from medx.configuration import explain

    first = None
    for job in distinct([[part for part in job if part != AGAIN] for job in jobs]):
        try:
            composed = compose(config.hydra.job.config_name, overrides=job)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            print(f"medx: {explain(error, job)}", file=sys.stderr)
            sys.exit(2)
        first = first or composed
    return first


def compose_once() -> None:
    """Keep Hydra from composing every job before the first, a tenth of a second each: ``refuse_unknown`` has done it.

    Each is composed at its turn in any case.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    BasicSweeper.validate_batch_is_legal = lambda self, batch: None  # type: ignore[method-assign]


def refuse_overdraft(name: str, first: DictConfig | None, jobs: list[list[str]]) -> None:
    """End the program with one line where a sweep selects among more runs of one seed than share its epsilon."""
    if first is None or first.get("select") is None or first.privacy.get("num_runs") is None:
        return
    allowed = first.privacy.num_runs
    seeds = Counter(next((part for part in reversed(job) if part.startswith("seed=")), "seed") for job in jobs)
    count = max(seeds.values())
    if count > allowed:
        print(
            f"medx: privacy.num_runs={allowed}: this sweep has {count} runs of one seed that would share the epsilon; "
            f"accepted is {count} or more, or fewer runs",
            file=sys.stderr,
        )
        sys.exit(2)
    refuse_unlike(name, first, jobs)


def refuse_unlike(name: str, first: DictConfig, jobs: list[list[str]]) -> None:
    """End the program with one line where jobs that share an epsilon would not make the same releases.

    The noise of each is calibrated as if all others were like it; unlike ones together exceed the target.
    """
    from hydra import compose

    for composed in (compose(name, overrides=job) for job in jobs):
        for key in RELEASES:
            values = [OmegaConf.select(each, key) for each in (first, composed)]
            if values[0] != values[1]:
                print(
                    f"medx: select: {key} differs between the jobs of this sweep; accepted is one value, as runs that "
                    "share an epsilon (privacy.num_runs) must make the same releases",
                    file=sys.stderr,
                )
                sys.exit(2)


def distinct(jobs: list[list[str]]) -> list[list[str]]:
    """One job for each choice of options: other values do not change what is known."""
    found: dict[tuple[str, ...], list[str]] = {}
    for job in jobs:
        found.setdefault(tuple(part for part in job if chooses(part)), job)
    return list(found.values())


def chooses(override: str) -> bool:
    """Whether it takes an option of a group, or anything else than a value of a key."""
    from hydra.core.global_hydra import GlobalHydra

    key = override.split("=", 1)[0]
    group = key.lstrip("+~").split("@", 1)[0]
    return key != group or bool(GlobalHydra.instance().config_loader().get_group_options(group))


def crew(config: DictConfig) -> "Crew | None":
    """Who runs the jobs of this sweep side by side; None where they run here, one after another.

    The first job decides: once this process has computed, it must not fork. Raises ConfigError where ``jobs`` is wrong.
    """
    from medx.crew import Crew, jobs_at_once

    at_once = jobs_at_once(config.get("jobs"), len(_LISTED), reason_to_queue(config))
    if not _CREW:
        done = sum(is_done(path.parent) for folder in _FOLDERS for path in folder.glob("**/.hydra"))
        _CREW.append(Crew(at_once, outcome, len(_LISTED) - done) if at_once > 1 else None)
    return _CREW[0]


def reason_to_queue(config: DictConfig) -> str | None:
    """Why this job takes no other beside it, if there is a reason."""
    if OmegaConf.select(config, "privacy.ledger") is not None:
        return "privacy.ledger"  # which job the budget still admits must not depend on who was faster
    if str(OmegaConf.select(config, "runtime._target_")).startswith("medx.runtime.ray."):
        return "runtime=ray"  # which takes all cores
    return None


def title(overrides: list[str]) -> str:
    """What tells this job from the others of the sweep."""
    shared = set.intersection(*map(set, _LISTED)) if _LISTED else set()
    return " ".join([part for part in overrides if part not in shared] or overrides)


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


def show(folder: Path, stopped: bool = False) -> None:
    """Print the table of a sweep's jobs as far as they are, and remember those that failed.

    Of a sweep that was ``stopped`` a job whose turn had not come is left out, though Hydra made its folder.
    """
    jobs = sorted((path.parent for path in folder.glob("**/.hydra")), key=_job_order)
    if stopped:
        jobs = [job for job in jobs if [path.name for path in job.iterdir()] != [".hydra"]]
    if not jobs:
        return
    from medx.screen import sweep_table, where

    results: list[tuple[str, ExperimentResult | str]] = []
    for job in jobs:
        name = str(job.relative_to(folder))
        if (job / FAILURE_FILE).exists():
            failure = json.loads((job / FAILURE_FILE).read_text())
            results.append((name, f"{' '.join(failure['overrides'])}: {failure['error']}"))
            _FAILED.append(name)
            continue
        result = result_or_why_not(job)
        results.append((name, result))
        if isinstance(result, str) or result.status != "finished":
            _FAILED.append(name)
    ended = not stopped and all(not isinstance(result, str) and result.status == "finished" for _, result in results)
    listed = json.loads((folder / SWEEP_FILE).read_text())["jobs"]  # without them no sweep can be gone on with
    place = where(folder, finished=ended or not listed, sweep=True)
    sweep_table(results, notes=[*selections(folder, results), *place])


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


def show_interrupted() -> None:
    """Stop the jobs of a sweep that the user stopped, and show its table; nothing where there is no sweep."""
    stop()
    for folder in _FOLDERS:
        show(folder, stopped=True)


def stop() -> None:
    """Let the jobs that still run end in order, as after Ctrl-C."""
    for crew in filter(None, _CREW):
        crew.interrupt()


def exit_code() -> int:
    """1 where a job failed or stopped early, else 0."""
    return 1 if _FAILED else 0
