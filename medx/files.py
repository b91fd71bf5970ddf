"""Files that others may read at any moment: whole or not at all, made once, one writer at a time."""

import errno
import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of ``path`` when the block ends, and is gone where it raises."""
    aside = _aside(path)
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def created(path: Path, *, private: bool = False) -> Iterator[Path]:
    """The same for a file that is made once, durably; raises FileExistsError where ``path`` is there by then.

    What is written appears in one step that one process can win, whatever process dies meanwhile. ``private``: no
    other user may read it.
    """
    aside = _aside(path)
    try:
        aside.touch(mode=0o600 if private else 0o666, exist_ok=False)
        yield aside
        sync(aside)
        os.link(aside, path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``path`` whole or not at all."""
    with replaced(path) as aside:
        aside.write_text(text)


def write_json(path: Path, content: object) -> None:
    """Write ``content`` as JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=1))


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of the file ``path`` against processes and threads; without ``wait``, BlockingIOError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def make_folder(path: Path) -> None:
    """A folder in which this user can make files; raises OSError where there can be none."""
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def sync(path: Path) -> None:
    """Return when a file's content, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
