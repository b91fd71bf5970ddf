"""From the spool to MLflow. Every step may be repeated: what has arrived is not sent or counted twice."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medx.results import ExperimentResult, RoundRecord, Status
from medx.tracking.base import TrackedRun
from medx.tracking.content import RUN_STATUS, end_tags, final_metrics, flatten, round_metrics, start_tags
from medx.tracking.parent import PARENT, ensure_parent, settle_parent
from medx.tracking.spool import Entry, Progress, Spool
from medx.tracking.store import Destination, Store, TrackingError, connect

if TYPE_CHECKING:
    from mlflow.entities import Metric, RunTag

log = logging.getLogger(__name__)
MOST_METRICS = 990  # of the thousand things that MLflow takes at once; a few tags may come along
MOST_PARAMS = 100


class Delivery:
    """Brings one spool to one destination, a piece at a time."""

    def __init__(self, spool: Spool, destination: Destination) -> None:
        self.spool = spool
        self.destination = destination
        self.run_id: str | None = None
        self.experiment_id: str | None = None
        self._store: Store | None = None

    def push(self) -> None:
        """Deliver all that is spooled; raises what MLflow raises, after which it may be called again."""
        with self.spool.lock():
            progress = self.spool.progress(self.destination.key)
            entries = self.spool.read(progress.entries)
            if not entries:
                return
            self._store = self._store or connect(self.destination)
            self.experiment_id = self._store.experiment_id
            if progress.run_id is not None and self.run_id is None and not self._store.exists(progress.run_id):
                log.warning("run %s is gone from %s; recording it anew", progress.run_id, self.destination.uri)
                progress = Progress()
                entries = self.spool.read()
            self.run_id = progress.run_id
            while entries:
                taken = self._deliver(self._store, progress, entries)
                entries = entries[taken:]
                progress = progress.model_copy(update={"entries": progress.entries + taken, "run_id": self.run_id})
                self.spool.save_progress(self.destination.key, progress)

    @property
    def _run(self) -> str:
        if self.run_id is None:
            raise TrackingError(f"{self.spool.path}: the line that starts the run is missing")
        return self.run_id

    def _deliver(self, store: Store, progress: Progress, entries: Sequence[Entry | None]) -> int:
        """Deliver the first entry, and with a round all rounds that follow it; answers how many were taken."""
        first = entries[0]
        if first is None:
            return 1
        if first.kind == "start":
            self._start(store, first)
        elif first.kind == "finish":
            self._finish(store, first, progress.last_round)
        elif first.kind == "abort":
            self._abort(store, first)
        else:
            return self._rounds(store, progress, entries)
        return 1

    def _start(self, store: Store, entry: Entry) -> None:
        run = self._where_it_is(TrackedRun.model_validate(entry.body["run"]))
        parent = None if run.sweep_dir is None else ensure_parent(store, self.destination.key, run.sweep_dir, run)
        if self.run_id is None and (found := store.find("job", run.run)):
            self.run_id = found[0].info.run_id  # recorded before, though the answer or this folder's note was lost
        if self.run_id is None:
            self.run_id = self._create(store, entry, run, parent)
            known: dict[str, str] = {}
        else:
            known = store.client.get_run(self._run).data.params
            store.client.update_run(self._run, status="RUNNING")
            for name, value in {"status": "running", "output_dir": str(run.output_dir)}.items():
                store.client.set_tag(self._run, name, value)
        self._log_params(store, run, known)

    def _where_it_is(self, run: TrackedRun) -> TrackedRun:
        """The run with its folders where they are now: they may have moved together since it was spooled."""
        here, sweep = self.spool.output_dir.absolute(), run.sweep_dir
        if sweep is not None:
            sweep = Path(os.path.normpath(here / os.path.relpath(sweep, run.output_dir)))
        return run.model_copy(update={"output_dir": here, "sweep_dir": sweep})

    def _create(self, store: Store, entry: Entry, run: TrackedRun, parent: str | None) -> str:
        tags = start_tags(run) | {"job": run.run} | ({PARENT: parent} if parent else {})
        created = store.client.create_run(store.experiment_id, start_time=entry.time, tags=tags, run_name=run.title)
        return str(created.info.run_id)

    def _log_params(self, store: Store, run: TrackedRun, known: dict[str, str]) -> None:
        """Log the configuration; what is there stays, because MLflow refuses to change it (``resume=`` differs)."""
        from mlflow.entities import Param

        params = [Param(key, value) for key, value in flatten(run.config) if key not in known]
        for start in range(0, len(params), MOST_PARAMS):
            store.client.log_batch(self._run, params=params[start : start + MOST_PARAMS])

    def _rounds(self, store: Store, progress: Progress, entries: Sequence[Entry | None]) -> int:
        metrics: list[Metric] = []
        taken = 0
        for entry in entries:
            if entry is not None and entry.kind != "round":
                break
            taken += 1
            if entry is None:
                continue
            record = RoundRecord.model_validate(entry.body)
            if record.round > progress.last_round:
                progress.last_round = record.round
                metrics += self._metrics(round_metrics(record), entry.time, record.round)
        self._send(store, metrics)
        return taken

    def _finish(self, store: Store, entry: Entry, last_round: int) -> None:
        from mlflow.entities import RunTag

        from medx.tracking.files import run_files

        result = ExperimentResult.model_validate(entry.body["result"])
        tags = [RunTag(name, value) for name, value in end_tags(result).items()]
        self._send(store, self._metrics(final_metrics(result), entry.time, last_round), tags)
        given = [self.spool.output_dir / name for name in entry.body["files"]]
        for path, folder in run_files(result, self.spool.output_dir, given):
            if path.exists():
                store.client.log_artifact(self._run, str(path), folder)
            else:
                log.warning("%s is missing and not kept with run %s", path, self.run_id)
        self._end(store, entry, result.status)

    def _abort(self, store: Store, entry: Entry) -> None:
        status: Status = entry.body["status"]
        for name, value in {"status": status, "error": str(entry.body["error"])[:5000]}.items():
            store.client.set_tag(self._run, name, value)
        self._end(store, entry, status)

    def _end(self, store: Store, entry: Entry, status: Status) -> None:
        store.client.set_terminated(self._run, RUN_STATUS[status], entry.time)
        parent = store.client.get_run(self._run).data.tags.get(PARENT)
        if parent is not None:
            settle_parent(store, parent)

    def _metrics(self, values: dict[str, float], time: int, step: int) -> "list[Metric]":
        from mlflow.entities import Metric

        return [Metric(name, value, time, step) for name, value in values.items()]

    def _send(self, store: Store, metrics: "Sequence[Metric]", tags: "Sequence[RunTag]" = ()) -> None:
        for start in range(0, len(metrics), MOST_METRICS):
            store.client.log_batch(self._run, metrics=metrics[start : start + MOST_METRICS], tags=tags)


def deliver(folder: Path, destination: Destination | None = None) -> list[tuple[Path, str | None]]:
    """Deliver every spool below ``folder``; the output folders and each one's error (None: all has arrived).

    Without ``destination`` each goes where its run was meant to go.
    """
    outcomes: list[tuple[Path, str | None]] = []
    for path in sorted(folder.rglob("tracking/spool.jsonl")):
        spool = Spool(path.parent.parent)
        try:
            given = destination and destination.for_data(synthetic=last_start(spool)["run"]["synthetic"])
            Delivery(spool, given or intended(spool)).push()
            outcomes.append((spool.output_dir, None))
        except Exception as error:
            outcomes.append((spool.output_dir, one_line(error)))
    return outcomes


def intended(spool: Spool) -> Destination:
    """Where the spool's run was meant to go when it last started."""
    return Destination.model_validate(last_start(spool)["destination"])


def last_start(spool: Spool) -> dict[str, Any]:
    """What the spool's run told when it last started: the run, and where it was meant to go."""
    return [entry for entry in spool.read() if entry is not None and entry.kind == "start"][-1].body


def one_line(error: Exception) -> str:
    """An error of any library as one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
