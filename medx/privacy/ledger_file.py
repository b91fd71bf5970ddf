"""The file of a privacy ledger: its tables, how it is made, and what is told of one that cannot be used."""

import errno
import os
import secrets
import sqlite3
from contextlib import suppress
from pathlib import Path

from medx.schema import LedgerError

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
    """Refuse what is no SQLite file before SQLite sees it, which would take an empty file for a new database."""
    try:
        with path.open("rb") as file:
            header = file.read(16)
    except OSError as error:
        raise LedgerError(f"ledger {path} cannot be read: {error.strerror}") from error
    if header != b"SQLite format 3\x00":
        raise LedgerError(f"ledger {path} is not a privacy ledger; {NO_COPY}")


def make_folder(folder: Path) -> None:
    """A folder for ledgers in which files can be made; raises LedgerError where there can be none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
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
    # Built aside and linked into place: a half-made ledger is never seen, and one that appears meanwhile is kept.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        database = sqlite3.connect(temporary, isolation_level=None)
        database.executescript(SCHEMA)
        database.close()
        with suppress(FileExistsError):
            os.link(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(f"ledger {path} cannot be created: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
