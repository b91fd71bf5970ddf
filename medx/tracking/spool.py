"""The spool: everything to be tracked, first written down in the run's own folder, then delivered from there.

So a server that is down, a crash and a resume all take the same path, and nothing that was logged is lost.
"""

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from medx.released import Record

log = logging.getLogger(__name__)
Kind = Literal["start", "round", "finish", "abort"]


class Entry(Record):
    """One line of the spool; ``time`` in milliseconds since 1970, fixed here so that redelivery changes nothing."""

    kind: Kind
    time: int
    body: dict[str, Any]


class Progress(Record):
    """What a destination has: the MLflow run, how many entries, and the last round."""

    run_id: str | None = None
    entries: int = 0
    last_round: int = 0


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Exclude other processes and threads while the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def write_json(path: Path, content: object) -> None:
    """Write beside the target and move into place, so that a reader never sees half a file."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(path)


class Spool:
    """``tracking/`` in a run's output folder: ``spool.jsonl``, ``delivered.json`` and a lock."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.folder = output_dir / "tracking"
        self.path = self.folder / "spool.jsonl"

    def append(self, kind: Kind, body: dict[str, Any]) -> None:
        """Write one entry; after a crash in the middle of a line, on a line of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        line = Entry(kind=kind, time=time.time_ns() // 1_000_000, body=body).model_dump_json().encode()
        with open(self.path, "ab+") as file:
            if file.seek(0, os.SEEK_END) > 0:
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line + b"\n")

    def read(self, skip: int = 0) -> list[Entry | None]:
        """Entries from number ``skip``; None for a line that a crash cut off. A line still being written waits."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]
        return [self._parse(line) for line in lines[skip:]]

    def _parse(self, line: bytes) -> Entry | None:
        try:
            return Entry.model_validate_json(line)
        except ValidationError:
            log.warning("%s: a line that was cut off is left out: %r", self.path, line[:60])
            return None

    def lock(self) -> Any:
        """Only one delivery of this spool at a time."""
        return file_lock(self.folder / "lock")

    def progress(self, destination: str) -> Progress:
        """What ``destination`` has so far."""
        return Progress.model_validate(self._all_progress().get(destination, {}))

    def save_progress(self, destination: str, progress: Progress) -> None:
        """Remember what ``destination`` has; the lock must be held."""
        write_json(self.folder / "delivered.json", self._all_progress() | {destination: progress.model_dump()})

    def _all_progress(self) -> dict[str, Any]:
        path = self.folder / "delivered.json"
        content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return content
