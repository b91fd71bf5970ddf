"""``python -m medx.run``: compose the configuration, run the experiment, or a sweep of them with ``-m``."""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from string import Template
from typing import NoReturn

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

import medx
from medx import api
from medx.configuration import plain, refuse_lists
from medx.folder import CONFIG_FILE, sweep_of
from medx.hints import explain, options_of
from medx.launcher.jobs import AGAIN, has_callback, refuse_jobs, refuse_without_callback, written
from medx.launcher.outcomes import FAILURE_FILE, failures_kept, is_done
from medx.launcher.sweep import conclude
from medx.output import Line, as_called, say, shown_by, take_all
from medx.schema import CONF, MedxError, one_line
from medx.tracking.tracker import follow_early

_RAISED: list[Exception] = []
_UNFINISHED: list[Path] = []


def task(cfg: DictConfig) -> float | None:
    """One job; gives the validation AUC, which an optimising sweeper maximises.

    In a sweep a job that fails is written down and the others go on. Raises KeyboardInterrupt where the user stopped
    it: it has ended in order, and those after it must not start.
    """
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    given = written(settings.overrides.task)
    overrides = [part for part in given if part != AGAIN]
    in_sweep = settings.mode == RunMode.MULTIRUN and has_callback(settings)
    result = None
    with failures_kept(folder, overrides) if in_sweep else raised_later(folder):
        refuse_without_callback(settings)
        if AGAIN in given:  # a job of a sweep that is gone on with
            if is_done(folder):
                return None
            cfg.resume = str(folder) if (folder / CONFIG_FILE).exists() else None
        if "medx.job" not in sys.modules:
            say("preparing: libraries")
            follow_early(cfg.tracking, sweep_of(folder) or folder)
            import_all()
        import medx.job
        from medx.machine import keep_freed_memory

        (folder / FAILURE_FILE).unlink(missing_ok=True)  # of an earlier attempt in this folder
        refuse_jobs(cfg)
        keep_freed_memory()
        result = medx.job.run_job(plain(cfg), folder, overrides)
    if result is None:
        return None
    if result.status == "killed":
        raise KeyboardInterrupt
    if result.status != "finished":
        _UNFINISHED.append(folder)
    return result.validation["auc"].value


def import_all() -> None:
    """Import what a run needs; thousands of modules leave the collector of cycles nothing to find, now or at the end.

    Looking through them takes a tenth of the time that the imports take, and a second when the process ends.
    """
    gc.disable()
    import medx.job
    import medx.trainer.module  # noqa: F401

    gc.enable()
    gc.freeze()


run = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)


@contextmanager
def raised_later(folder: Path) -> Iterator[None]:
    """Keep an error for ``main``, to be told in one line: Hydra would print two of its own first."""
    try:
        yield
    except Exception as error:
        _RAISED.append(error)
        remove_empty(folder)


def remove_empty(folder: Path) -> None:
    """Remove the folder that Hydra made for a run that was refused, and those above it in the working directory."""
    with suppress(OSError):  # the first that holds anything, or is not ours to remove
        folder.rmdir()
        for parent in folder.parents:
            if Path.cwd() not in parent.parents:
                return
            parent.rmdir()


def main() -> None:
    """Run Hydra with errors of one line; exit code 2 for a refusal, 1 where a job of a sweep failed."""
    shown_by(Line())
    if "--version" in sys.argv[1:]:
        print(f"medx {medx.__version__}")
        return
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(as_called(help_text()), end="")
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, and the lines below say what a person can do
    # Hydra takes no overrides on both sides of an option.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda part: part not in ("-m", "--multirun"))
    try:
        refuse_misuse()
        run()
        finished = conclude()
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # composing: a job's own are in _RAISED
        sys.exit(refuse(explain(error, sys.argv[1:])))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all has ended in order, and so shall this process
        conclude(stopped=True)
        sys.exit(130)
    except (OSError, MedxError) as error:
        tell(error)
    finally:
        dismiss_workers()
    for raised in _RAISED:
        tell(raised)
    sys.exit(0 if finished and not _UNFINISHED else 1)


def help_text() -> str:
    """Of ``--help``: Hydra's own answer to it is the same text, but takes seconds to list the options of the groups."""
    folders = {str(path.parent.relative_to(CONF)) for path in CONF.rglob("*.yaml")}
    groups = sorted(group for group in folders if group != "." and not group.startswith("hydra"))
    words = yaml.safe_load((CONF / "hydra" / "help" / "medx.yaml").read_text())
    return Template(words["template"]).substitute(GROUPS="\n".join(f"{g}: {', '.join(options_of(g))}" for g in groups))


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
    refuse_lists(parser.parse_args().overrides)


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
    say("")
    print(f"medx: {' '.join(message.split())}", file=sys.stderr)
    return 2


api.callable_module(sys.modules[__name__])  # medx.run("seed=1") works whether or not this has been imported
if __name__ == "__main__":
    take_all()
    main()
