"""``tracking=mlflow`` and ``tracking=none``: what a run does for its record, which is little, and who copies it."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt
from pydantic import field_validator

from medx import files
from medx.folder import SWEEP_FILE
from medx.results import ExperimentResult, Observer, RoundRecord, RunContext, Status, released_config
from medx.schema import component
from medx.tracking.content import WITHHELD, run_name, start_tags
from medx.tracking.record import (
    FOLLOW_LOCK,
    RUNNING_LOCK,
    Synced,
    TrackedRun,
    backlog_of,
    change_backlog,
    is_held,
    read_run,
    read_synced,
)
from medx.tracking.store import SQLITE, Destination, database_path, database_uri, embedded_uri, view_url

log = logging.getLogger(__name__)
COMMAND = (sys.executable, "-m", "medx.tracking", "sync")
GLANCE = 0.05  # seconds
MOST_STARTS = 2  # of the process that copies, while the end of a run waits for it
_FOLLOWERS: dict[Path, subprocess.Popen[bytes]] = {}  # that this process has started


@component("tracking/none")
class NoTracking:
    """``tracking=none``: the output folder alone holds the run."""

    def settled(self, folder: Path) -> "NoTracking":
        """It has no store."""
        return self

    def observers(self, sweep: Path | None) -> list[Observer]:
        """Nobody."""
        return []


@component("tracking/mlflow")
class MlflowTracking:
    """``tracking=mlflow``: the embedded store where ``uri`` is None, else ``sqlite:///FILE`` or ``http(s)://HOST``.

    ``owner_view`` records also what epsilon does not cover: metrics, times, texts of errors; None: of public data only.
    """

    uri: str | None
    experiment: Annotated[str, Gt("")]
    request_timeout: Annotated[int, Gt(0)]
    final_wait: Annotated[float, Gt(0)]
    owner_view: bool | None

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, uri: str | None) -> str | None:
        if uri is not None and not uri.startswith((SQLITE, "http://", "https://")):
            raise ValueError(f"uri={uri}: accepted are null, sqlite:///FILE, http://HOST:PORT and https://HOST")
        if uri is not None and not uri.startswith(SQLITE) and "@" in uri:
            raise ValueError("uri holds a password: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead")
        return uri

    def destination(self, folder: Path) -> Destination:
        """Where runs go, seen from a working directory."""
        uri = self.uri
        if uri is None:
            uri = embedded_uri(folder)
        elif uri.startswith(SQLITE):
            uri = database_uri(folder.absolute() / database_path(uri))
        return Destination(uri=uri, experiment=self.experiment, request_timeout=self.request_timeout)

    def settled(self, folder: Path) -> "MlflowTracking":
        """The same with an address that is right in every working directory."""
        return replace(self, uri=self.destination(folder).uri)

    def observers(self, sweep: Path | None) -> list[Observer]:
        """A tracker for one run, of a sweep's job with the sweep's folder."""
        return [MlflowTracker(self, sweep)]


Tracking = MlflowTracking | NoTracking


class MlflowTracker:
    """Keeps ``tracking/run.json`` in the run's folder; another process copies the folder to MLflow as it grows.

    The methods cost the writing of that file; only the end waits, for ``final_wait`` seconds. What has not arrived by
    then goes out with the next run that reaches the store, or by ``python -m medx.tracking sync FOLDER``.
    """

    def __init__(self, tracking: MlflowTracking, sweep: Path | None) -> None:
        self._tracking = tracking
        self._sweep = sweep
        self._running = ExitStack()  # holds the lock by which others see that the run runs
        self._told: str | None = None
        self._folder: Path
        self._root: Path
        self._run: TrackedRun

    def on_start(self, context: RunContext) -> None:
        """Write down which run this is; on resume the same record is continued."""
        self._folder = context.folder.absolute()
        self._root = self._folder if self._sweep is None else self._sweep.absolute()
        self._running.enter_context(files.locked(self._folder / RUNNING_LOCK))
        self._run = self._describe(context)
        if (before := read_run(self._folder)) is not None and before.run == context.run:
            self._save(begun=before.begun, round=before.round)
        else:
            self._save()
        follow(self._root)

    def _describe(self, context: RunContext) -> TrackedRun:
        """The record of a run that begins, without what may not leave."""
        from medx.machine import environment

        whole = context.public if self._tracking.owner_view is None else self._tracking.owner_view
        config = context.config if whole else released_config(context.config)
        tags = start_tags(context, config, environment("cpu")) | {"view": "owner" if whole else "released"}
        return TrackedRun(
            run=context.run,
            name=run_name(tags),
            tags=tags,
            config=config,
            sweep=None if self._sweep is None else os.path.relpath(self._root, self._folder),
            sweep_id=None if self._sweep is None else json.loads((self._root / SWEEP_FILE).read_text())["id"],
            destination=self._tracking.destination(Path.cwd()).for_data(synthetic=context.synthetic),
            owner_view=whole,
            begun=now(),
        )

    def on_round(self, record: RoundRecord) -> None:
        """The round is on record; tell once what keeps its copy away."""
        self._save(round=record.round)
        problem = self._synced().problem
        if problem is not None and problem != self._told:
            log.warning("tracking: %s fails, records are kept: %s", self._run.destination.uri, problem)
        self._told = problem

    def on_end(self, result: ExperimentResult) -> None:
        """Wait for the copy, and note in the result where the run is recorded."""
        last = max([self._run.round, *(record.round for record in result.rounds)])
        result.tracking = self._end(result.status, last=last)

    def on_error(self, error: BaseException) -> None:
        """The record ends without a result."""
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        status: Status = "killed" if isinstance(error, KeyboardInterrupt) else "failed"
        self._end(status, error=text if self._run.owner_view else WITHHELD, last=self._run.round)

    def _end(self, status: Status, *, last: int, error: str | None = None) -> dict[str, str]:
        self._save(status=status, error=error, round=last, ended=now())
        self._running.close()
        synced = self._wait()
        uri = self._run.destination.uri
        if not synced.has(self._run):
            change_backlog(backlog_of(self._run.destination), add=[str(self._folder)])
            log.warning(
                "tracking: %s has not all of this run%s; bring it there with: python -m medx.tracking sync %s",
                uri,
                "" if synced.problem is None else f" ({synced.problem})",
                self._folder,
            )
        known = {"uri": uri, "experiment": self._run.destination.experiment}
        if synced.run_id is None or synced.experiment_id is None:
            return known
        if self._run.destination.database is None:
            known["view"] = view_url(uri, synced.experiment_id)
        return known | {"run_id": synced.run_id}

    def _wait(self) -> Synced:
        """What has arrived when all has, or cannot, or time is up."""
        last = time.monotonic() + self._tracking.final_wait
        starts = 0
        while (synced := self._synced()).saved != self._run.saved and time.monotonic() < last:
            if not is_followed(self._root):  # it was killed, or was about to end when this run began
                starts += 1
                if starts > MOST_STARTS:
                    break
                follow(self._root)
            time.sleep(GLANCE)
        return synced

    def _synced(self) -> Synced:
        return read_synced(self._folder, self._run.destination)

    def _save(self, **changes: object) -> None:
        self._run = self._run.model_copy(update=changes | {"saved": time.time_ns()})
        self._run.save(self._folder)


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def follow(root: Path) -> None:
    """Let a process of its own copy the runs at and below ``root`` as they grow, unless one does so already."""
    if not is_followed(root):
        # A session of its own: Ctrl-C in the terminal is for the run, whose end still has to be copied.
        _FOLLOWERS[root] = subprocess.Popen(
            [*COMMAND, str(root), "--follow", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def follow_early(tracking: Mapping[str, Any], root: Path) -> None:
    """Let that process get ready while a run or a sweep does; where that is refused, it ends and leaves nothing."""
    if tracking["_target_"] == f"{__name__}.{MlflowTracking.__name__}":
        follow(root.absolute())


def is_followed(root: Path) -> bool:
    """Whether a process copies what is below ``root``; one that this process has started may still be importing."""
    started = _FOLLOWERS.get(root)
    return (started is not None and started.poll() is None) or is_held(root / FOLLOW_LOCK)
