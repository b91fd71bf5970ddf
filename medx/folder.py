"""A run's output folder: it belongs to one run, whose id is made once and moves with the folder."""

import json
import uuid
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from medx import files
from medx.schema import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from medx.results import ExperimentResult

CONFIG_FILE = "config.json"
RESULT_FILE = "result.json"
LOCK_FILE = ".lock"
STARTED = "started"  # in the configuration's file, beside the run's id
SWEEP_FILE = "sweep.json"  # in the folder of a sweep, above those of its runs
LEFT_BY_A_RUN = (CONFIG_FILE, RESULT_FILE, "checkpoints", "ledger", "tracking", "baselines", "model.safetensors")


class RunFolder:
    """The folder of the run ``run`` (32 hexadecimal digits), held against other processes while it is entered.

    ``started`` is when the run first began (``moment``); None of one that an earlier version began. Nothing is written
    before ``occupy``, so that a run that is refused leaves an empty folder. The id, the configuration, its hash and the
    start appear there in one step, as ``config.json``, whatever process dies meanwhile.
    """

    def __init__(self, path: Path, run: str, config_hash: str, *, resumed: bool, started: str | None) -> None:
        self.path = path
        self.run = run
        self.config_hash = config_hash
        self.started = started
        self.resumed = resumed
        self._lock = ExitStack()

    @classmethod
    def new(cls, path: Path, config_hash: str) -> "RunFolder":
        """The folder of a run that is to begin; raises ConfigError where another run has used it."""
        refuse_used(path)
        return cls(path.absolute(), uuid.uuid4().hex, config_hash, resumed=False, started=moment())

    @classmethod
    def of(cls, path: Path, config_hash: str) -> "RunFolder":
        """The folder of a run to go on with.

        Raises CheckpointError where its files are of several runs, and ConfigError where the run still runs.
        """
        run, known, _ = read_config(path)
        if known != config_hash:
            raise CheckpointError(
                f"resume={path}: {CONFIG_FILE} is not what run {run} began with: configuration {config_hash}, "
                f"then {known}; accepted: the file as the run wrote it, with the version that wrote it"
            )
        load_result(path)
        place = cls(path, run, config_hash, resumed=True, started=_content(path).get(STARTED))
        place._hold()
        return place

    def occupy(self, config: dict[str, Any]) -> None:
        """Write the id and the configuration, for a new run exclusively; raises ConfigError where one was faster."""
        self.path.mkdir(parents=True, exist_ok=True)
        content = {"run": self.run, "config_hash": self.config_hash, STARTED: self.started, **config}
        if self.resumed:
            files.write_json(self.path / CONFIG_FILE, content)
            return
        try:
            with files.created(self.path / CONFIG_FILE) as aside:
                aside.write_text(json.dumps(content, indent=1))
        except FileExistsError:
            raise used(self.path) from None
        self._hold()

    def release(self) -> None:
        """Let go of the folder; safe to call again."""
        self._lock.close()

    def _hold(self) -> None:
        self._lock = locked(self.path)


def moment() -> str:
    """Now, in UTC by ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def sweep_of(folder: Path) -> Path | None:
    """The folder of the sweep that the run in ``folder`` belongs to; None of a run alone."""
    return next((parent for parent in folder.parents if (parent / SWEEP_FILE).exists()), None)


def locked(path: Path) -> ExitStack:
    """The folder's lock, which ends with the process at the latest; raises ConfigError where a run holds it."""
    lock = ExitStack()
    try:
        lock.enter_context(files.locked(path / LOCK_FILE, wait=False))
    except BlockingIOError:
        raise ConfigError(f"{path}: its run is running there; accepted: to wait for its end, or to stop it") from None
    return lock


def refuse_running(path: Path) -> None:
    """Raise ConfigError where the folder's run is running."""
    if (path / LOCK_FILE).exists():
        locked(path).close()


def refuse_used(path: Path) -> None:
    """Raise ConfigError where a run has written into the folder, whether or not it was this version's."""
    if any((path / name).exists() for name in LEFT_BY_A_RUN):
        raise used(path)


def used(path: Path) -> ConfigError:
    """What to say of a folder that another run has used."""
    run = None
    with suppress(OSError, ValueError):
        run = json.loads((path / CONFIG_FILE).read_text()).get("run")
    return ConfigError(
        f"hydra.run.dir={path}: {f'run {run}' if run else 'another run'} has used this folder; accepted: another "
        f"folder, or resume={path} to go on with that run"
    )


def read_config(path: Path) -> tuple[str, str, dict[str, Any]]:
    """The run's id, its configuration's hash as it began, and the configuration; raises CheckpointError."""
    if not (path / CONFIG_FILE).exists():
        raise CheckpointError(f"resume={path}: no {CONFIG_FILE} there; give the output folder of a run")
    try:
        content = _content(path)
        content.pop(STARTED, None)
        return content.pop("run"), content.pop("config_hash"), content
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"resume={path}: {CONFIG_FILE} does not say which run this is ({type(error).__name__}: {error}); "
            "accepted: the folder of a run of this version"
        ) from error


def _content(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((path / CONFIG_FILE).read_text())
    return content


def read_result(path: Path) -> "ExperimentResult":
    """The result in a run's folder, or in a file; raises DataError with one line."""
    from medx.results import ExperimentResult

    file = path / RESULT_FILE if path.is_dir() else path
    try:
        return ExperimentResult.load(file)
    except ValidationError as error:
        why = f"not a result of this version of medx ({error.error_count()} fields differ)"
    except (OSError, UnicodeDecodeError) as error:
        why = f"cannot be read ({getattr(error, 'strerror', None) or error})"
    raise DataError(f"{file}: {why}; accepted: a run's output folder, or its {RESULT_FILE}")


def load_result(path: Path) -> "ExperimentResult | None":
    """The result in a run's folder, if there is one; raises CheckpointError where it is another run's."""
    if not (path / RESULT_FILE).exists():
        return None
    from medx.results import ExperimentResult

    try:
        result = ExperimentResult.load(path / RESULT_FILE)
    except ValueError as error:
        raise CheckpointError(
            f"{path / RESULT_FILE}: not a result of this version; accepted: the folder of one"
        ) from error
    run, _, _ = read_config(path)
    if result.run != run:
        raise CheckpointError(f"{path / RESULT_FILE} is of run {result.run}, and the folder of run {run}")
    return result
