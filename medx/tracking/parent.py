"""The parent run of a sweep: found or created once, whichever jobs, threads or processes ask."""

import json
from pathlib import Path

from medx.tracking.base import TrackedRun
from medx.tracking.spool import file_lock, write_json
from medx.tracking.store import Store

PARENT = "mlflow.parentRunId"
FILE = "mlflow_parent.json"


def ensure_parent(store: Store, destination: str, sweep_dir: Path, run: TrackedRun) -> str:
    """The parent's run id, from a small file in the sweep's folder; set to running."""
    path = sweep_dir / FILE
    with file_lock(path.with_suffix(".lock")):
        known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        parent = known.get(destination)
        if parent is not None and store.exists(parent):
            store.client.update_run(parent, status="RUNNING")
            return parent
        created = store.client.create_run(
            store.experiment_id,
            run_name=" ".join([run.study, "sweep", *sweep_dir.absolute().parts[-2:]]).strip(),
            tags={"study": run.study, "sweep": "parent", "output_dir": str(sweep_dir), "status": "running"},
        )
        write_json(path, known | {destination: created.info.run_id})
        return str(created.info.run_id)


def settle_parent(store: Store, parent: str) -> None:
    """Once no child is running, the parent ends with the worst of their statuses; a child that starts reopens it."""
    statuses = {child.info.status for child in store.find(PARENT, parent)}
    if statuses & {"RUNNING", "SCHEDULED"}:
        return
    worst = next((status for status in ("FAILED", "KILLED") if status in statuses), "FINISHED")
    store.client.set_terminated(parent, worst)
    store.client.set_tag(parent, "status", worst.lower())
