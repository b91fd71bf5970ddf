"""A folder of ledgers: its files, and which training records the runs in them touch.

A budget follows the records, whatever they are dealt, split or labelled as. A ledger keeps keyed digests of a run's
images; the key lies beside the ledgers, at the hospital, so that a digest alone says nothing about an image. Labels are
left out: a record with another label is the same record.
"""

import errno
import hashlib
import os
import secrets
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from medx import files
from medx.privacy.accountants import Event, Release, merge_events
from medx.schema import LedgerError

KEY_FILE = "records.key"
KEY_BYTES = 32
DIGEST_BYTES = 8  # two of 10^6 records share a digest with a chance of 1 in 30 million, and are then counted as one
APPLICATION_ID = 0x4D656458
VERSION = 2
SCHEMA = f"""
PRAGMA journal_mode = WAL;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
CREATE TABLE runs (
    run_id TEXT PRIMARY KEY, step TEXT NOT NULL, steps INTEGER NOT NULL CHECK (steps >= 0),
    noise_source TEXT NOT NULL CHECK (noise_source IN ('seed', 'system')), open INTEGER NOT NULL,
    unit TEXT NOT NULL DEFAULT 'record', records_key TEXT, records BLOB
) STRICT;
CREATE TABLE rounds (
    run_id TEXT NOT NULL REFERENCES runs, round INTEGER NOT NULL, attempt INTEGER NOT NULL,
    steps INTEGER NOT NULL CHECK (steps >= 0), committed INTEGER NOT NULL, model BLOB NOT NULL DEFAULT x'',
    PRIMARY KEY (run_id, round, attempt)
) STRICT, WITHOUT ROWID;
"""
# Version 1 knew neither records nor models: its runs count for every record, and no round of them repeats another.
FROM_VERSION_1 = (
    "ALTER TABLE runs ADD COLUMN unit TEXT NOT NULL DEFAULT 'record'",
    "UPDATE runs SET unit = 'client' WHERE data LIKE '% clients'",
    "ALTER TABLE runs DROP COLUMN data",
    "ALTER TABLE runs ADD COLUMN records_key TEXT",
    "ALTER TABLE runs ADD COLUMN records BLOB",
    "ALTER TABLE rounds ADD COLUMN model BLOB NOT NULL DEFAULT x''",
    f"PRAGMA user_version = {VERSION}",
)
NO_COPY = "an older copy in its place would forget what was spent since: count the budget of its records as used up"


def check_header(path: Path) -> None:
    """Refuse what is no SQLite file before it is used: SQLite would take an empty file for a new database.

    SQLite itself reads it. Whoever closes a descriptor of a file drops all locks that this process has on it (POSIX),
    and with them what keeps another process that looks at the ledger from taking away the journal that is being written
    to: what is entered after that is lost (SQLite, "How to corrupt", 2.2).
    """
    try:
        empty = path.stat().st_size == 0
        if not os.access(path, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=0)) as database:
            database.execute("PRAGMA schema_version")
    except OSError as error:
        raise LedgerError(f"ledger {path} cannot be read: {error.strerror}") from error
    except sqlite3.Error as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_CANTOPEN:
            raise LedgerError(f"ledger {path} cannot be read: {error}") from error
        empty = error.sqlite_errorcode == sqlite3.SQLITE_NOTADB  # others are for whoever uses it: locked, or damaged
    if empty:
        raise LedgerError(f"ledger {path} is not a privacy ledger; {NO_COPY}")


def make_folder(folder: Path) -> None:
    """A folder for ledgers in which files can be made; raises LedgerError where there can be none."""
    try:
        files.make_folder(folder)
    except OSError as error:
        raise LedgerError(
            f"privacy.ledger={folder}: {error.strerror}; accepted: a folder in which this user may write"
        ) from error


def refuse_or_create(path: Path, create: bool) -> None:
    """Make an empty ledger, or refuse a path without one: where it should be there, or where its journal is."""
    if not create:
        raise LedgerError(f"ledger {path} is missing, and this run had one; find the very file: {NO_COPY}")
    if (wal := path.with_name(path.name + "-wal")).exists():
        raise LedgerError(
            f"ledger {path} is missing, but its journal {wal.name} is there; find the very file: {NO_COPY}"
        )
    make_folder(path.parent)
    try:
        with suppress(FileExistsError), files.created(path) as aside:  # one that appears meanwhile is kept
            database = sqlite3.connect(aside, isolation_level=None)
            database.executescript(SCHEMA)
            database.close()
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(f"ledger {path} cannot be created: {error}") from error


def key_of(folder: Path) -> bytes:
    """The key of the ledgers in ``folder``, made at first; all who start at once read one key."""
    path = folder / KEY_FILE
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError), files.created(path, private=True) as aside:
                aside.write_bytes(secrets.token_bytes(KEY_BYTES))
        key = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"{path}: the key of the ledgers' records cannot be used: {error.strerror}") from error
    if len(key) != KEY_BYTES:
        raise LedgerError(
            f"{path}: {len(key)} bytes; accepted is the key of {KEY_BYTES} that was made with the ledgers"
        )
    return key


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
    key = key_of(folder)
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

    The unit ``client`` is a hospital, and ``patient`` a patient, known by any record that is shared; it spends once
    where several ledgers show one run, in which it is at one hospital: at which is not known, so it counts as the most
    that any of them could have spent.
    """
    entries = [entry for entry in entries if entry.unit == unit]
    touched = [overlaps(mine, entry.records) for entry in entries]
    if unit in ("client", "patient"):
        runs: dict[str, Entry] = {}
        for entry, mask in zip(entries, touched, strict=True):
            if mask.any():
                most = runs.get(entry.run_id)
                runs[entry.run_id] = entry if most is None else replace(most, event=no_less(most.event, entry.event))
        return [list(runs.values())]
    size = 1 if mine is None else len(mine.values)
    if size == 0 or not entries:
        return [[]] * bool(size)
    kinds = np.unique(np.array(touched, bool).reshape(len(entries), size), axis=1)
    return [[entry for entry, inside in zip(entries, kind, strict=True) if inside] for kind in kinds.T]


def no_less(one: Event, other: Event) -> Event:
    """An event that spends at least as much as either: drawn as often, as little noise, as many steps."""
    step = replace(
        one[0],
        sampling_probability=max(one[0].sampling_probability, other[0].sampling_probability),
        noise_multiplier=min(one[0].noise_multiplier, other[0].noise_multiplier),
    )
    return step, max(one[1], other[1])


def mixed_units(mine: RecordSet | None, unit: str, entries: Sequence[Entry]) -> bool:
    """Whether any of my records was touched with a record as the unit where mine is a patient, or the reverse."""
    other = {"record": "patient", "patient": "record"}.get(unit)
    spent = [entry for entry in entries if entry.unit == other and entry.event[1]]
    return any(overlaps(mine, entry.records).any() for entry in spent)


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
