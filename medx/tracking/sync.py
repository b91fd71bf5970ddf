"""Copying run folders to MLflow. It may be done at any time and again: what is there is found and not counted twice."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medx import files
from medx.figures import run_figures
from medx.results import ExperimentResult
from medx.tracking import content
from medx.tracking.record import (
    RUN_FILE,
    RUNNING_LOCK,
    SYNC_LOCK,
    Synced,
    TrackedRun,
    is_held,
    read_run,
    read_synced,
    runs_below,
    write_synced,
)
from medx.tracking.store import Destination, Store, TrackingError, connect

if TYPE_CHECKING:
    from mlflow.entities import Metric

log = logging.getLogger(__name__)
MOST_METRICS = 990  # of the thousand things that MLflow takes at once; a few tags may come along
MOST_PARAMS = 100
PARENT = "mlflow.parentRunId"


class Copy:
    """One run's folder and one place in MLflow: by default where the run was meant to go."""

    def __init__(self, folder: Path, destination: Destination | None = None) -> None:
        self.folder = folder.absolute()
        self._given = destination
        self._store: Store | None = None
        self._open = ""  # the run that is RUNNING in the store, as far as this object knows
        self._run_id = ""
        self._last_round = 0

    def bring(self) -> TrackedRun:
        """Bring all that is new; raises what MLflow raises, after which it may be called again."""
        with files.locked(self.folder / SYNC_LOCK):
            run = self.read()
            drawn = run.tags["synthetic"] == "true"
            destination = self._given.for_data(synthetic=drawn) if self._given else run.destination
            synced = read_synced(self.folder, destination)
            try:
                self._store = self._store or connect(destination)
                if not self._complete(self._store, synced, run):
                    self._bring(self._store, run)
                    synced = Synced(run_id=self._run_id, experiment_id=self._store.experiment_id)
            except Exception as error:
                self._store, self._open = None, ""
                problem = synced.model_copy(update={"saved": run.saved, "problem": one_line(error)})
                write_synced(self.folder, destination, problem)
                raise
            write_synced(self.folder, destination, synced.model_copy(update={"saved": run.saved, "problem": None}))
            return run

    def read(self) -> TrackedRun:
        """The run as its folder tells; one that has gone without a word was killed. Raises TrackingError."""
        lock = self.folder / RUNNING_LOCK
        held = is_held(lock)
        run = read_run(self.folder)
        if run is None:
            raise TrackingError(f"{self.folder}: no {RUN_FILE} there; accepted: the folder of a tracked run")
        if run.status != "running" or held or is_held(lock):  # before and after: it may just have ended, or begun anew
            return run
        gone = {"status": "killed", "error": "its process has gone", "ended": run.saved // 1_000_000}
        return run.model_copy(update=gone)

    def _complete(self, store: Store, synced: Synced, run: TrackedRun) -> bool:
        """Whether an ended run is known to be there, and is."""
        brought = run.status != "running" and synced.has(run)
        return brought and store.status(str(synced.run_id)) == content.RUN_STATUS[run.status]

    def _bring(self, store: Store, run: TrackedRun) -> None:
        if self._open != run.run:
            self._begin(store, run)
        records = run.rounds(self.folder)
        times, ended = content.times(run, records)
        new = [record for record in records if record.round > self._last_round]
        self._send(store, [_metrics(content.round_metrics(each), times[each.round], each.round) for each in new])
        self._last_round = max([self._last_round, *(record.round for record in new)])
        if run.status != "running":
            self._finish(store, run, ended)

    def _begin(self, store: Store, run: TrackedRun) -> None:
        """Find the run in the store, or create it; what is there stays, because MLflow refuses to change it."""
        from mlflow.entities import Param

        parent = {} if run.sweep is None else {PARENT: ensure_parent(store, self.folder, run)}
        here = {"status": "running", "output_dir": str(self.folder)}
        found = store.find("run", run.run)
        if found:
            self._run_id = found[0].info.run_id
            store.client.update_run(self._run_id, status="RUNNING")
            store.tag(self._run_id, here)
        else:
            created = store.client.create_run(store.experiment_id, run.begun, run.tags | here | parent, run.name)
            self._run_id = created.info.run_id
        known = store.client.get_run(self._run_id).data.params
        params = [Param(name, value) for name, value in content.flatten(run.config) if name not in known]
        for start in range(0, len(params), MOST_PARAMS):
            store.client.log_batch(self._run_id, params=params[start : start + MOST_PARAMS])
        steps = store.client.get_metric_history(self._run_id, content.EVERY_ROUND)
        self._last_round = max((metric.step for metric in steps), default=0)
        self._open = run.run

    def _send(self, store: Store, groups: "Sequence[list[Metric]]") -> None:
        """Send metrics in few batches; each group is in the store whole or not at all."""
        batch: list[Metric] = []
        for group in groups:
            if len(batch) + len(group) > MOST_METRICS:
                store.client.log_batch(self._run_id, metrics=batch)
                batch = []
            batch += group
        if batch:
            store.client.log_batch(self._run_id, metrics=batch)

    def _finish(self, store: Store, run: TrackedRun, ended: int) -> None:
        """The result and its files, then how the run ended: a run that is not RUNNING is complete."""
        if run.error is None:
            result = run.result(self.folder)
            self._send(store, [_metrics(content.final_metrics(result), ended, run.round)])
            self._bring_files(store, result)
            store.tag(self._run_id, content.end_tags(result))
        else:
            store.tag(self._run_id, {"status": run.status, "error": run.error[:5000]})
        store.client.set_terminated(self._run_id, content.RUN_STATUS[run.status], ended)
        self._open = ""
        if (parent := store.client.get_run(self._run_id).data.tags.get(PARENT)) is not None:
            settle_parent(store, parent)

    def _bring_files(self, store: Store, result: ExperimentResult) -> None:
        """The data set as the run's input, the record as text, the figures and the model."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(**content.dataset(result.dataset))
        store.client.log_inputs(self._run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])
        for name, text in content.texts(result).items():
            store.client.log_text(self._run_id, text, name)
        for picture in run_figures(result):
            path = self.folder / "figures" / f"{picture.name}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(picture.png)
            store.client.log_artifact(self._run_id, str(path), "figures")
        if result.checkpoint is not None:
            model = self.folder / Path(result.checkpoint).name  # wherever the folder is by now
            if model.exists():
                store.client.log_artifact(self._run_id, str(model), "checkpoint")
            else:
                log.warning("%s is missing and not kept with run %s", model, self._run_id)


def _metrics(values: dict[str, float], time: int, step: int) -> "list[Metric]":
    from mlflow.entities import Metric

    return [Metric(name, value, time, step) for name, value in values.items()]


def ensure_parent(store: Store, folder: Path, run: TrackedRun) -> str:
    """The run of the sweep that holds its jobs' runs, found by the sweep's id or created; set to running."""
    sweep = Path(os.path.normpath(folder / str(run.sweep)))
    with files.locked(sweep / SYNC_LOCK):
        if found := store.find("sweep_id", str(run.sweep_id)):
            store.client.update_run(found[0].info.run_id, status="RUNNING")
            return str(found[0].info.run_id)
        tags = {"study": run.tags["study"], "sweep": "parent", "sweep_id": run.sweep_id, "output_dir": str(sweep)}
        name = " ".join([run.tags["study"], "sweep", *sweep.parts[-2:]]).strip()
        tags["status"] = "running"
        created = store.client.create_run(store.experiment_id, run.begun, tags, name)
        return str(created.info.run_id)


def settle_parent(store: Store, parent: str) -> None:
    """Once no child is running, the parent ends with the worst of their statuses; a child that starts reopens it.

    It ends when the last of them did, as they tell: the time of the copy is another, and the run's may not leave.
    """
    children = store.find(PARENT, parent)
    statuses = {child.info.status for child in children}
    if statuses & {"RUNNING", "SCHEDULED"}:
        return
    worst = next((status for status in ("FAILED", "KILLED") if status in statuses), "FINISHED")
    ended = max((child.info.end_time for child in children if child.info.end_time), default=None)
    store.client.set_terminated(parent, worst, ended)
    store.client.set_tag(parent, "status", worst.lower())


def sync(root: Path, destination: Destination | None = None) -> list[tuple[Path, str | None]]:
    """Copy every run at and below ``root``; the folders and each one's error (None: all has arrived)."""
    outcomes: list[tuple[Path, str | None]] = []
    for folder in runs_below(root):
        try:
            Copy(folder, destination).bring()
            outcomes.append((folder, None))
        except Exception as error:
            outcomes.append((folder, one_line(error)))
    return outcomes


def one_line(error: Exception) -> str:
    """An error of any library as one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
