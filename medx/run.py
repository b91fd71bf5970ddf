"""``python -m medx.run``: compose the configuration, run the experiment, or a sweep of them with ``-m``."""

import atexit
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import medx.outcomes
import medx.sweep
from medx import api, output, preparing
from medx.folder import CONFIG_FILE
from medx.hints import explain
from medx.imports import quickly
from medx.schema import CONF, GROUPS, ConfigError, MedxError, one_line
from medx.sweep_checks import reason_to_queue
from medx.sweep_folder import AGAIN, FAILURE_FILE, is_done
from medx.sweeper import written
from medx.tracking import courier

log = logging.getLogger(__name__)
_RAISED: list[Exception] = []


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(cfg: DictConfig) -> float | None:
    """One job. In a sweep a job that fails is written down and the others go on."""
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    if "sweep" not in (settings.callbacks or {}):  # then no table, and a run could write into another's folder
        _RAISED.append(ConfigError("hydra.callbacks: MedX's own, sweep, is missing; accepted: others beside it"))
        remove_empty(folder)
        return None
    given = written(settings.overrides.task)
    overrides = [part for part in given if part != AGAIN]
    crew = None
    if AGAIN in given:  # a job of a sweep that is gone on with
        if is_done(folder):
            return None
        cfg.resume = str(folder) if (folder / CONFIG_FILE).exists() else None
    with told(folder, overrides, in_sweep=settings.mode == RunMode.MULTIRUN):
        if OmegaConf.is_dict(tracking := cfg.get("tracking")):
            courier.warm_up(OmegaConf.to_container(tracking))  # MLflow on another core, while this one imports torch
        if "medx.job" not in sys.modules:
            preparing.say("preparing: libraries")
        with quickly():
            import medx.job

        (folder / FAILURE_FILE).unlink(missing_ok=True)  # of an earlier attempt in this folder
        crew = medx.sweep.crew(cfg)
        if crew is None:
            return job(cfg, folder, overrides)
        with quickly():
            import medx.trainer.module  # here, once, and not in every fork
    if crew is not None:
        work = partial(forked_job, cfg, folder, overrides)
        title = medx.outcomes.title(overrides, medx.sweep.known_jobs())
        crew.start(title, folder, work, alone=reason_to_queue(cfg) is not None)
    elif settings.mode != RunMode.MULTIRUN:
        remove_empty(folder)
    return None


def remove_empty(folder: Path) -> None:
    """Remove the folder that Hydra made for a run that was refused, and those above it in the working directory."""
    with suppress(OSError):  # the first that holds anything, or is not ours to remove
        folder.rmdir()
        for parent in folder.parents:
            if Path.cwd() not in parent.parents:
                return
            parent.rmdir()


def job(
    cfg: DictConfig, folder: Path, overrides: list[str], measured: Callable[[], None] = lambda: None
) -> float | None:
    """Run it here; ``measured`` is called when all is computed, and only the records are still on their way."""
    from medx.job import run_job

    value = run_job(OmegaConf.create(cfg), folder, overrides, measured)
    if medx.outcomes.interrupted():
        raise KeyboardInterrupt  # the run has ended in order; the jobs after it must not start
    return value


def forked_job(cfg: DictConfig, folder: Path, overrides: list[str], measured: Callable[[], None]) -> None:
    """Run it as one of a sweep's jobs at once: its files tell the parent how it ended."""
    with told(folder, overrides, in_sweep=True):
        job(cfg, folder, overrides, measured)


@contextmanager
def told(folder: Path, overrides: list[str], *, in_sweep: bool) -> Iterator[None]:
    """Keep an error for ``main``, or in a sweep write it down in the job's folder; nothing is raised."""
    try:
        yield
    except Exception as error:
        if not in_sweep:
            _RAISED.append(error)  # main() tells of it in one line; Hydra would print two of its own first
            return
        if not isinstance(error, MedxError):
            log.error("job %s failed", overrides, exc_info=True)
            (folder / "error.log").write_text(traceback.format_exc())
        medx.outcomes.record_failure(folder, overrides, error)


def main() -> None:
    """Run Hydra with errors of one line; exit code 2 for a refusal, 1 where a job of a sweep failed."""
    preparing.shown_by(preparing.Line())
    if "--version" in sys.argv[1:]:
        print(f"medx {medx.__version__}")
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, and the lines below say what a person can do
    # Hydra takes no overrides on both sides of an option.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda part: part not in ("-m", "--multirun"))
    try:
        refuse_misuse()
        run()
        medx.sweep.conclude()
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # composing: a job's own are in _RAISED
        sys.exit(refuse(explain(error, sys.argv[1:])))
    except KeyboardInterrupt:
        medx.sweep.show_interrupted()
        sys.exit(130)
    except (OSError, MedxError) as error:
        tell(error)
    finally:
        medx.sweep.stop()  # there is none left, but where this process itself met an error
        dismiss_workers()
    for raised in _RAISED:
        tell(raised)
    sys.exit(medx.outcomes.exit_code())


def refuse_misuse() -> None:
    """End with one line for what Hydra answers with a page of usage, or takes without a word.

    A name that is not UTF-8 can stand in no record: neither in JSON nor in MLflow.
    """
    for name in (os.getcwd(), *sys.argv[1:]):
        if "\udc80" <= max(name, default="") <= "\udcff":
            shown = name.encode(errors="surrogateescape").decode(errors="replace")
            sys.exit(refuse(f"{shown}: this name is not UTF-8; accepted: a folder and arguments that are"))

    def refused(message: str) -> NoReturn:
        sys.exit(refuse(f"{message}; accepted: key=value, -m for a sweep, --help for all of it"))

    parser = get_args_parser()
    parser.error = refused  # type: ignore[method-assign,assignment]
    for part in parser.parse_args().overrides:
        group, _, value = part.partition("=")
        if group in GROUPS and value.startswith("["):  # Hydra would lay one option over the other
            sys.exit(refuse(f"{part}: a group takes one option, or with -m several by commas, without brackets"))


def dismiss_workers() -> None:
    """End joblib's workers, which would wait for more work for five minutes, and this process for them."""
    if loky := sys.modules.get("joblib.externals.loky"):
        loky.get_reusable_executor().shutdown(kill_workers=True)


def tell(error: Exception) -> NoReturn:
    """End with one line where a person can act on the error; any other is a fault of the program, shown in full."""
    if (line := one_line(error)) is not None:
        sys.exit(refuse(line))
    raise error


def refuse(message: str) -> int:
    """Print the one line and give the exit code."""
    preparing.say("")
    print(f"medx: {' '.join(message.split())}", file=sys.stderr)
    return 2


def leave(ended: SystemExit) -> NoReturn:
    """End the process as Python would, but for taking apart what torch has loaded, which takes .3 s."""
    if ended.code is not None and not isinstance(ended.code, int):
        raise ended
    atexit._run_exitfuncs()
    with suppress(OSError):  # nobody reads it any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(ended.code or 0)


api.callable_module(sys.modules[__name__])  # medx.run("seed=1") works whether or not this has been imported
if __name__ == "__main__":
    output.take_all()
    try:
        main()
    except SystemExit as ended:
        leave(ended)
