"""A hospital's audit log: one JSON line an entry, each bound to the one before by its SHA-256.

A line is canonical JSON (keys sorted, no spaces, ASCII) with number, time (UTC), event, details, the hash of the entry
before, and its own hash over all of that. Whoever may write to the file can still rewrite all of it from some line on,
or cut off its end, so a person notes the head elsewhere from time to time, and ``verify`` looks for it.

A line that a crash cut off was never acknowledged: nothing was admitted on its account. The next write takes nothing
away, so that a file which may only be appended to will do, and no hospital waits for a person after a power cut: it
closes the bytes on their own line with an entry ``torn`` of their length and SHA-256, and the chain holds over them.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medx import files
from medx.schema import MedxError

FIRST = "0" * 64  # the hash before the first entry
TORN = "torn"
BETWEEN = b"\r"  # between torn bytes and the entry that closes them; canonical JSON has none
BLOCK = 4096  # bytes that are read at once from the end


class AuditError(MedxError):
    """An audit log that cannot be written, or that is not as it was written."""


@dataclass(frozen=True)
class Entry:
    """One entry; numbers count from 1."""

    number: int
    time: str
    event: str
    details: dict[str, Any]
    previous: str
    hash: str


class AuditLog:
    """The log in the file ``path``, which the first write makes; processes and threads may share it."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def write(self, event: str, /, **details: object) -> Entry:
        """Append an entry, which is on the disk when this returns; what JSON lacks in ``details`` is written as text.

        Raises AuditError where it cannot be written: what it would have recorded must then not happen.
        """
        try:
            with files.locked(self.path.with_name(f".{self.path.name}.lock")):
                return self._append(event, details)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise AuditError(
                f"audit log {self.path}: {event} cannot be written ({reason}), so it does not happen; accepted: a disk "
                "with space and a file that this user may write to"
            ) from error

    def _append(self, event: str, details: Mapping[str, object]) -> Entry:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            if (mode := os.fstat(handle).st_mode & 0o777) & 0o022:
                raise AuditError(f"audit log {self.path} has mode {mode:o}; accepted: 600, no other user may write")
            before, torn = _end(handle, self.path)
            last = _written(handle, before, TORN, _measured(torn), torn=True) if torn else before
            entry = _written(handle, last, event, details)
            os.fsync(handle)
            if before is None:
                files.sync(self.path.parent)
            return entry
        finally:
            os.close(handle)


def entries(path: Path) -> Iterator[Entry]:
    """Every entry, each checked before it is given out; raises AuditError that names the first line that does not fit.

    A line that is cut off, by a crash or because it is being written, is one that does not fit.
    """
    try:
        with path.open("rb") as handle:
            last = None
            for number, line in enumerate(handle, 1):
                last = _checked(line, last, f"audit log {path}: line {number}")
                yield last
    except OSError as error:
        raise _unreadable(path, error) from error


def verify(path: Path, head: tuple[int, str] | None = None) -> int:
    """How many entries the log has, all of which fit; raises AuditError that names the first that does not.

    ``head`` is a number and a hash that ``head`` once gave: the entry must be there as it was.
    """
    number, found = 0, head is None or head == (0, FIRST)
    for entry in entries(path):
        number = entry.number
        found = found or head == (entry.number, entry.hash)
    if head is not None and not found:
        raise AuditError(
            f"audit log {path}: entry {head[0]} with hash {head[1]} is not in it, though it has {number} entries that "
            "fit together; accepted: the log that this head was noted of, which was rewritten or cut off since"
        )
    return number


def head(path: Path) -> tuple[int, str]:
    """Number and hash of the last entry, to note where this machine cannot write; AuditError where there is no log."""
    try:
        with path.open("rb") as handle:
            last, _ = _end(handle.fileno(), path)
    except OSError as error:
        raise _unreadable(path, error) from error
    return (last.number, last.hash) if last else (0, FIRST)


def _written(
    handle: int, last: Entry | None, event: str, details: Mapping[str, object], *, torn: bool = False
) -> Entry:
    content: dict[str, Any] = {
        "number": last.number + 1 if last else 1,
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "event": str(event),
        "details": _plain(details),
        "previous": last.hash if last else FIRST,
    }
    entry = Entry(**content, hash=_hash(content))
    data = BETWEEN * torn + _canonical(asdict(entry)) + b"\n"
    while data:  # a disk that is nearly full takes a part
        data = data[os.write(handle, data) :]
    return entry


def _end(handle: int, path: Path) -> tuple[Entry | None, bytes]:
    """The last whole entry and the bytes after its line, by reading no more than these two lines."""
    start = os.fstat(handle).st_size
    tail = b""
    while start and tail.count(b"\n") < 2:
        size = min(start, max(BLOCK, len(tail)))
        start -= size
        tail = os.pread(handle, size, start) + tail
    *lines, torn = tail.split(b"\n")
    return (_own(lines[-1], f"audit log {path}: its last line") if lines else None), torn


def _checked(line: bytes, last: Entry | None, name: str) -> Entry:
    """The entry of a line after ``last``."""
    if not line.endswith(b"\n"):
        raise AuditError(
            f"{name} is cut off by a crash, or still being written; accepted: whole lines (the next entry closes it)"
        )
    entry = _own(line[:-1], name)
    expected = (last.number + 1, last.hash) if last else (1, FIRST)
    if (entry.number, entry.previous) != expected:
        raise AuditError(
            f"{name} is entry {entry.number} and does not follow on the line before: lines were removed, inserted or "
            f"moved; accepted: entry {expected[0]} after the hash {expected[1]}"
        )
    return entry


def _own(line: bytes, name: str) -> Entry:
    """The entry of a line without its end, checked by itself."""
    torn, closed, text = line.rpartition(BETWEEN)
    try:
        content = json.loads(text)
        entry = Entry(**content)
        stated = content.pop("hash")
        fits = stated == _hash(content) and text == _canonical(asdict(entry))
    except (ValueError, TypeError, RecursionError):
        fits = False
    if not fits or (closed and (entry.event, entry.details) != (TORN, _measured(torn))):
        raise AuditError(f"{name} is not as it was written: its hash differs; accepted: the log as MedX wrote it")
    return entry


def _measured(torn: bytes) -> dict[str, Any]:
    return {"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}


def _hash(content: object) -> str:
    return hashlib.sha256(b"medx audit v1\x00" + _canonical(content)).hexdigest()


def _canonical(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _plain(value: Any) -> Any:
    """The value as JSON has it: what it lacks, such as a path or NaN, is text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    known = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if known else str(value)


def _unreadable(path: Path, error: OSError) -> AuditError:
    return AuditError(f"audit log {path}: {error.strerror}; accepted: a log that this user may read")
