"""MedX as a library: what ``import medx`` gives, the command line's runs and sweeps as functions.

They leave the process as they found it: its threads, signals, working directory and Hydra's state. What a person can
act on is raised as a ``MedxError`` of one line.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from medx.schema import CONF, ConfigError, DataError, MedxError

if TYPE_CHECKING:
    import pandas as pd
    from omegaconf import DictConfig

    from medx.experiment import Experiment
    from medx.model.export import ExportedModel
    from medx.results import ExperimentResult

SWEEP_DIR = "hydra.sweep.dir="


class SweepError(MedxError):
    """Jobs of a sweep that failed; ``results`` has those that ended."""

    def __init__(self, message: str, results: "Results") -> None:
        super().__init__(message)
        self.results = results


class Results(list["ExperimentResult"]):
    """Results of several runs, in the order of the sweep's jobs."""

    def to_frame(self, of: Literal["runs", "rounds"] = "runs") -> "pd.DataFrame":
        """As ``to_frame`` gives them."""
        return to_frame(self, of)


def run(
    *overrides: str, folder: Path | str | None = None, config_dir: Path | str | None = None, quiet: bool = False
) -> "ExperimentResult":
    """Run one experiment, as ``medx run`` does with the same overrides: ``medx.run("model=cnn", "seed=3")``.

    Its files go into ``folder``, else into ``hydra.run.dir``, by default ``outputs/DATE/TIME``; ``resume=FOLDER`` goes
    on with a run in its own. ``config_dir`` holds options of your own, such as ``model/mine.yaml``. ``quiet`` shows
    neither plan nor progress. A run that stops early gives a result too: see its ``status``. Raises ``MedxError`` where
    nothing can be run, and KeyboardInterrupt, with all files in order, where the user stops it.
    """
    config, place = composed(overrides, config_dir, folder)
    from medx.job import run_job

    with _progress(quiet):
        result = run_job(config, place, list(overrides), quiet=quiet)
    if result.status == "killed":
        raise KeyboardInterrupt
    return result


def sweep(
    *overrides: str, folder: Path | str | None = None, config_dir: Path | str | None = None, quiet: bool = False
) -> Results:
    """Run a job for every combination of values, ``medx.sweep("privacy.epsilon=1,5,10")``, several at once.

    It is the command, ``medx run ... -m``, in a process of its own, so a component's module must be one that can be
    imported. Files go into ``folder``, else into ``hydra.sweep.dir``, by default ``multirun/DATE/TIME``;
    ``resume=SWEEP`` goes on with one. Raises ``MedxError`` where it is refused, and ``SweepError``, with the other
    results, where a job failed.
    """
    arguments, place = _sweep_arguments(overrides, folder)
    if config_dir is not None:
        arguments = ["--config-dir", str(_folder_of_options(config_dir)), *arguments]
    code, errors = _command([*arguments, "-m"], None if quiet else print)
    if code == 2:
        raise ConfigError(errors.strip().splitlines()[-1].removeprefix("medx: "))
    results, missing = _results_in(place)
    if missing or not results:
        why = "; ".join(missing) or errors.strip() or "it left no result"
        raise SweepError(f"sweep {place}: {why}; {len(results)} others ended, see .results of this error", results)
    return results


def compose(*overrides: str, config_dir: Path | str | None = None) -> "Experiment":
    """The typed experiment that ``run`` would run; raises ``MedxError`` where the overrides do not describe one."""
    config, _ = composed(overrides, config_dir, None)
    from medx.configuration import resumed_config, typed

    resume = config.pop("resume")
    return typed(config if resume is None else resumed_config(Path(resume), config, list(overrides))).experiment


def load_result(path: Path | str) -> "ExperimentResult":
    """The result of a run, from its folder, its ``result.json`` or its ``released.json``; raises ``MedxError``."""
    from medx.folder import read_result

    return read_result(Path(path))


def load_results(folder: Path | str) -> Results:
    """The results of the jobs that have one in a sweep's folder, or in any folder of runs; raises ``MedxError``."""
    results, _ = _results_in(Path(folder))
    if not results:
        raise DataError(f"{folder}: no result below it; accepted: the folder of a sweep or of several runs")
    return results


def load_model(path: Path | str, kind: type[Any] | None = None) -> "ExportedModel":
    """The model of a run, from its folder or its ``model.safetensors``, in evaluation mode on the CPU.

    A file never chooses what code runs: a model of your own is read with its class as ``kind``. Raises ``MedxError``.
    """
    file = Path(path)
    file = file / "model.safetensors" if file.is_dir() else file
    if not file.exists():
        raise DataError(f"{file}: not there; accepted: a run's folder or its model.safetensors")
    from medx.model.export import load_model as load

    return load(file, kind)


def to_frame(
    results: "ExperimentResult | Iterable[ExperimentResult]", of: Literal["runs", "rounds"] = "runs"
) -> "pd.DataFrame":
    """A pandas table with a row for each run, or for each of their rounds; NaN where something is undefined.

    Runs have the columns of a report's ``results.csv``: settings, epsilon, test metrics with intervals, costs.
    Rounds have ``run`` (its row among the runs), ``epsilon`` spent so far, metrics, seconds and bytes.
    """
    import pandas as pd

    from medx.report.rows import Run, make_row
    from medx.results import ExperimentResult

    every = [results] if isinstance(results, ExperimentResult) else list(results)
    if of == "rounds":
        return pd.DataFrame([row for number, result in enumerate(every) for row in _rounds(number, result)])
    rows = [make_row(Run(number, "", (), result)) | {"status": result.status} for number, result in enumerate(every)]
    return pd.DataFrame(rows).drop(columns="roles", errors="ignore")


def callable_module(module: ModuleType) -> None:
    """Let ``medx.run`` be called where ``import medx.run`` has put the command's module in the function's place."""

    class Run(ModuleType):
        __call__ = staticmethod(run)

    module.__class__ = Run


def _rounds(number: int, result: "ExperimentResult") -> Iterator[dict[str, Any]]:
    from medx.report.rows import Run, make_row

    kept = ("run", "dataset", "model", "mode", "seed", "target_epsilon")
    row = make_row(Run(number, "", (), result))
    for record in result.rounds:
        own = record.model_dump(exclude={"metrics", "seconds"})
        seconds = {f"seconds/{phase}": value for phase, value in record.seconds.items()}
        yield {name: row[name] for name in kept} | own | record.metrics | seconds


def composed(
    overrides: Sequence[str], config_dir: Path | str | None, folder: Path | str | None
) -> tuple[dict[str, Any], Path]:
    """The composed configuration without Hydra's own as plain containers, and the run's folder."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.singleton import Singleton
    from hydra.errors import HydraException
    from omegaconf import open_dict
    from omegaconf.errors import OmegaConfBaseException

    from medx.configuration import plain, refuse_lists
    from medx.hints import explain

    refuse_lists(overrides)
    more = [] if config_dir is None else [f"hydra.searchpath=[{_quoted(f'file://{_folder_of_options(config_dir)}')}]"]
    before = Singleton.get_state()  # of a program that is itself Hydra's
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF), job_name="medx"):
            cfg = compose("config", [*overrides, *more], return_hydra_config=True)
            if cfg.hydra.sweeper.params:  # of an experiment that is a sweep
                raise ConfigError(f"{' '.join(overrides)}: this is a sweep; accepted: medx.sweep with these overrides")
            place = _place(cfg, folder)
            with open_dict(cfg):
                del cfg["hydra"]
            return plain(cfg), place
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        line = explain(error, list(overrides))
        raise ConfigError(line.replace("add -m at the end", "call medx.sweep")) from None
    finally:
        Singleton.set_state(before)


def _place(cfg: "DictConfig", folder: Path | str | None) -> Path:
    if cfg.resume is None:
        return Path(folder or cfg.hydra.run.dir).absolute()
    if folder is not None:
        raise ConfigError(
            f"folder={folder}: resume={cfg.resume} goes on in its own folder; accepted: either of the two"
        )
    place = Path(cfg.resume).resolve()
    from medx.folder import CONFIG_FILE, SWEEP_FILE

    if (place / SWEEP_FILE).exists() and not (place / CONFIG_FILE).exists():
        raise ConfigError(
            f"resume={cfg.resume}: this is the folder of a sweep; accepted: medx.sweep with it, or a job's"
        )
    return place


def _folder_of_options(config_dir: Path | str) -> Path:
    place = Path(config_dir).expanduser().absolute()
    if not place.is_dir():
        raise ConfigError(f"config_dir={config_dir}: no such folder; accepted: one with GROUP/OPTION.yaml in it")
    return place


def _quoted(text: str) -> str:
    """For Hydra, which reads other letters in its own way."""
    return "'" + text.replace("'", r"\'") + "'"


@contextmanager
def _progress(quiet: bool) -> Iterator[None]:
    """Show slow steps that are no round; on a terminal how far each is, elsewhere each once."""
    from medx import output

    line = output.Line()

    def show(text: str) -> None:
        line(text if sys.stdout.isatty() else re.sub(r": \d+ of \d+$", "", text))

    before = output.shown_by(*([] if quiet else [show]))
    try:
        yield
    finally:
        output.say("")
        output.shown_by(*before)


def _sweep_arguments(overrides: Sequence[str], folder: Path | str | None) -> tuple[list[str], Path]:
    """The command's overrides and the sweep's folder, which is fixed here, to find the jobs afterwards."""
    given = {key: part for part in overrides for key in ("resume=", SWEEP_DIR) if part.startswith(key)}
    if given and folder is not None:
        raise ConfigError(f"folder={folder}: {', '.join(given.values())} names it too; accepted: either of the two")
    if given:
        (key, part), *_ = given.items()
        return list(overrides), Path(part.removeprefix(key).strip("'\"")).expanduser().absolute()
    place = Path(folder or time.strftime("multirun/%Y-%m-%d/%H-%M-%S") + f"-{time.time_ns() % 10**9:09}").absolute()
    return [*overrides, SWEEP_DIR + _quoted(str(place))], place


def _command(arguments: list[str], show: Callable[[str], None] | None) -> tuple[int, str]:
    """Run ``python -m medx.run``, its lines through ``show``; gives its code and what it said of errors."""
    path = os.pathsep.join(part for part in sys.path if part)
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "medx.run", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            env=os.environ | {"PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
            encoding="utf-8", errors="replace",
            start_new_session=True,  # Ctrl-C reaches it once, from here
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if show is not None:
                    show(line.rstrip("\n"))
            process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)  # its jobs end in order
            process.communicate()
            raise
        errors.seek(0)
        return process.returncode, errors.read()


def _results_in(folder: Path) -> tuple[Results, list[str]]:
    """The results below a folder in the order of its jobs, and a line for each job without one."""
    from medx.launcher.outcomes import ended, jobs_in

    results, missing = Results(), []
    for job in jobs_in(folder):
        result = ended(job)
        if isinstance(result, str):
            missing.append(f"job {job.name}: {result}")
        else:
            results.append(result)
    return results, missing
