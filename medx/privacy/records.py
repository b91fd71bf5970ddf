"""Which training records a run touches: a budget follows the records, whatever they are dealt, split or labelled as.

A ledger keeps keyed digests of a run's images; the key lies beside the ledgers, at the hospital, so that a digest
alone says nothing about an image. Labels are left out: a record with another label is the same record.
"""

import hashlib
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medx.privacy.accountants import Event, Release, merge_events
from medx.schema import LedgerError

KEY_FILE = "records.key"
KEY_BYTES = 32
DIGEST_BYTES = 8  # two of 10^6 records share a digest with a chance of 1 in 30 million, and are then counted as one


@dataclass(frozen=True)
class RecordSet:
    """Digests ``uint64``, little-endian, sorted and each once, under the key that ``key`` names."""

    key: str
    digests: bytes = field(repr=False)

    @property
    def values(self) -> np.ndarray:
        """The digests ``uint64 [records]``."""
        return np.frombuffer(self.digests, "<u8")


@dataclass(frozen=True)
class Entry:
    """A run in a ledger: what it spent or may still spend, and on which records (None: not known)."""

    run_id: str
    unit: str
    records: RecordSet | None
    event: Event


def record_set(images: np.ndarray, folder: Path) -> RecordSet:
    """The set of ``images uint8 [n, ...]`` under the key of the ledgers in ``folder``, which is made at first."""
    key = _key_of(folder)
    digests = {hashlib.blake2b(image.tobytes(), key=key, digest_size=DIGEST_BYTES).digest() for image in images}
    values = np.sort(np.frombuffer(b"".join(digests), "<u8"))
    return RecordSet(hashlib.blake2b(key, digest_size=8).hexdigest(), values.tobytes())


def overlaps(mine: RecordSet | None, other: RecordSet | None) -> np.ndarray:
    """Which of my records, ``bool [records]``, are in the other set: all of them where that cannot be known.

    Without a set of my own there is one value, for whatever record is touched.
    """
    if mine is None:
        return np.ones(1, bool)
    if other is None or other.key != mine.key:
        return np.ones(len(mine.values), bool)
    return np.isin(mine.values, other.values, assume_unique=True)


def histories(mine: RecordSet | None, unit: str, entries: Sequence[Entry]) -> list[list[Entry]]:
    """What was spent on my records by ``entries`` of this unit: one list for each kind of record, none for no record.

    The unit ``client`` is a hospital, known by any record that it shares; it spends once where several ledgers show
    one run.
    """
    entries = [entry for entry in entries if entry.unit == unit]
    touched = [overlaps(mine, entry.records) for entry in entries]
    if unit == "client":
        runs: dict[str, Entry] = {}
        for entry, mask in zip(entries, touched, strict=True):
            most = runs.get(entry.run_id)
            if mask.any() and (most is None or most.event[1] < entry.event[1]):
                runs[entry.run_id] = entry
        return [list(runs.values())]
    size = 1 if mine is None else len(mine.values)
    if size == 0 or not entries:
        return [[]] * bool(size)
    kinds = np.unique(np.array(touched, bool).reshape(len(entries), size), axis=1)
    return [[entry for entry, inside in zip(entries, kind, strict=True) if inside] for kind in kinds.T]


def worst(spent: Sequence[Sequence[Entry]]) -> list[list[Entry]]:
    """The histories that no other contains: epsilon is the largest of theirs."""
    kept: dict[tuple[Release, ...], list[Entry]] = {}
    for history in sorted(spent, key=lambda history: -sum(entry.event[1] for entry in history)):
        merged = merge_events([entry.event for entry in history])
        if not any(_contains(other, merged) for other in kept):
            kept[merged] = list(history)
    return list(kept.values())


def _contains(whole: tuple[Release, ...], part: tuple[Release, ...]) -> bool:
    steps = {(q, sigma): count for q, sigma, count in whole}
    return all(steps.get((q, sigma), 0) >= count for q, sigma, count in part)


def _key_of(folder: Path) -> bytes:
    path = folder / KEY_FILE
    try:
        if not path.exists():
            _make_key(path)
        key = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"{path}: the key of the ledgers' records cannot be used: {error.strerror}") from error
    if len(key) != KEY_BYTES:
        raise LedgerError(
            f"{path}: {len(key)} bytes; accepted is the key of {KEY_BYTES} that was made with the ledgers"
        )
    return key


def _make_key(path: Path) -> None:
    """Made aside and linked into place, so that all who start at once read one key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
