"""What a run's folder holds for tracking, and of it what may leave: the one place where the owner's part is left out.

The run writes ``tracking/run.json`` anew when it begins, after every round and when it ends. The rounds themselves and
the result are in the run's own files.
"""

import json
import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from medx import files
from medx.folder import RESULT_FILE
from medx.released import Record, released
from medx.results import ExperimentResult, RoundRecord, Status, read_rounds
from medx.tracking.store import Destination

FOLDER = Path("tracking")
RUN_FILE = FOLDER / "run.json"
SYNCED_FILE = FOLDER / "synced.json"  # what which store has
RUNNING_LOCK = FOLDER / "running.lock"  # held by the run
SYNC_LOCK = FOLDER / "sync.lock"  # held while something is brought
FOLLOW_LOCK = FOLDER / "follow.lock"  # of a run's folder or a sweep's: held by the process that follows it
ROUNDS = Path("checkpoints", "rounds.jsonl")


class TrackedRun(Record):
    """``run.json``. Times are in milliseconds since 1970; ``saved`` in nanoseconds tells one state from another.

    ``run`` is the id in its folder, by which a store knows it again; ``name``, ``tags`` and ``config`` are what it gets
    at the start. ``sweep`` is the relative path of its sweep. ``owner_view`` says that all may leave; where it may not,
    nothing here is the owner's alone. ``round`` is the last that is kept; ``error`` tells of an end without a result.
    """

    run: str
    name: str
    tags: dict[str, str]
    config: dict[str, Any]
    sweep: str | None = None
    sweep_id: str | None = None
    destination: Destination
    owner_view: bool
    begun: int
    round: int = 0
    status: Status | Literal["running"] = "running"
    error: str | None = None
    ended: int | None = None
    saved: int = 0

    def save(self, folder: Path) -> None:
        """Write it whole into the run's folder."""
        files.write_text(folder / RUN_FILE, self.model_dump_json())

    def rounds(self, folder: Path) -> list[RoundRecord]:
        """The rounds that are kept, as far as they may leave."""
        kept = [record for record in read_rounds(folder / ROUNDS) if record.round <= self.round]
        return kept if self.owner_view else [released(record) for record in kept]

    def result(self, folder: Path) -> ExperimentResult:
        """The result, as far as it may leave."""
        result = ExperimentResult.load(folder / RESULT_FILE)
        return result if self.owner_view else result.released()


class Synced(Record):
    """What a store has: its run, and up to which ``saved`` of ``run.json``; or the problem that was met with it."""

    run_id: str | None = None
    experiment_id: str | None = None
    saved: int = 0
    problem: str | None = None

    def has(self, run: TrackedRun) -> bool:
        """Whether all that the run had written has arrived."""
        return self.saved == run.saved and self.problem is None


def read_run(folder: Path) -> TrackedRun | None:
    """What ``run.json`` says now; None where there is none."""
    with suppress(FileNotFoundError):
        return TrackedRun.model_validate_json((folder / RUN_FILE).read_bytes())
    return None


def read_synced(folder: Path, destination: Destination) -> Synced:
    """What ``destination`` has of the run, as far as this folder knows."""
    return Synced.model_validate(_all_synced(folder).get(destination.key, {}))


def write_synced(folder: Path, destination: Destination, synced: Synced) -> None:
    """Remember it; the folder's sync lock must be held."""
    files.write_json(folder / SYNCED_FILE, _all_synced(folder) | {destination.key: synced.model_dump()})


def _all_synced(folder: Path) -> dict[str, Any]:
    path = folder / SYNCED_FILE
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def runs_below(root: Path) -> list[Path]:
    """The folders of tracked runs at and below ``root``."""
    found = []
    for path, folders, _ in os.walk(root):
        if (Path(path) / RUN_FILE).exists():
            found.append(Path(path))
            folders.clear()
        folders.sort()
    return found


def backlog_of(destination: Destination) -> Path:
    """Beside the store, or of a server in the working directory: runs that have not all arrived, a folder a line."""
    folder = Path.cwd() if destination.database is None else destination.database.parent
    return folder / "mlartifacts" / "undelivered.txt"


def change_backlog(path: Path, *, add: Sequence[str] = (), drop: Collection[str] = ()) -> None:
    """Remember runs and forget others; the file is there only while a run is in it."""
    with files.locked(path.with_suffix(".lock")):
        before = path.read_text().splitlines() if path.exists() else []
        folders = [folder for folder in dict.fromkeys([*before, *add]) if folder not in drop]
        if folders:
            files.write_text(path, "\n".join(folders) + "\n")
        else:
            path.unlink(missing_ok=True)


def is_held(path: Path) -> bool:
    """Whether a process has taken the lock; it ends with the process, however that ends."""
    if not path.exists():
        return False
    try:
        with files.locked(path, wait=False):
            return False
    except BlockingIOError:
        return True
