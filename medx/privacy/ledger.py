"""A hospital's own privacy ledger: one SQLite file that never shows less than was spent.

A run first reserves its whole plan in one durable transaction (fsync before it returns), under a lock on the file,
so that runs at once are serialised and together stay within the budget. Only then does it touch data, and each round
is entered before its data is touched. An open reservation counts in full, so the round entries need no fsync: in
write-ahead mode they survive kill -9, and what a power failure may take back is still covered by the reservation.
With system noise a lost entry would hide an attempt, so there the round entries are synced too.
"""

import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from medx.privacy.accounting import Event, epsilon_pld
from medx.privacy.base import NoiseSource, SampledGaussian
from medx.schema import LedgerError

APPLICATION_ID = 0x4D656458
VERSION = 1
SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
CREATE TABLE runs (
    run_id TEXT PRIMARY KEY, data TEXT NOT NULL, step TEXT NOT NULL, steps INTEGER NOT NULL CHECK (steps >= 0),
    noise_source TEXT NOT NULL CHECK (noise_source IN ('seed', 'system')), open INTEGER NOT NULL
) STRICT;
CREATE TABLE rounds (
    run_id TEXT NOT NULL REFERENCES runs, round INTEGER NOT NULL, attempt INTEGER NOT NULL,
    steps INTEGER NOT NULL CHECK (steps >= 0), committed INTEGER NOT NULL, PRIMARY KEY (run_id, round, attempt)
) STRICT, WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Reservation:
    """What a run asks for: all its steps on ``data``, a key for content and client; ``run_id`` names run and client.

    ``run_id`` must stand for one configuration and seed: with seeded noise its rounds are repeated bit by bit.
    """

    run_id: str
    data: str
    step: SampledGaussian
    steps: int
    noise_source: NoiseSource


class PrivacyLedger:
    """The ledger in the file ``path``; ``create=False`` on resume, where a missing file is an error.

    Raises LedgerError if the file is missing, corrupt, of another kind, or locked for longer than ``timeout``
    seconds. Build it in the process that uses it; threads may share it.
    """

    def __init__(self, path: Path, *, create: bool, timeout: float = 30.0) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        if not self.path.exists():
            _refuse_or_create(self.path, create)
        self._check_header()
        with self._errors():
            self._db = sqlite3.connect(self.path, timeout=timeout, isolation_level=None, check_same_thread=False)
        try:
            with self._errors():
                self._open()
        except BaseException:
            self._db.close()
            raise

    def reserve(self, reservation: Reservation, *, delta: float, budget: float | None) -> None:
        """Reserve the whole run durably, if everything on this data then stays within ``budget`` (None: no limit).

        Raises LedgerError, with the ledger unchanged, where it would not, or where ``run_id`` is known with other
        parameters. Reserving the same again (a resume) changes nothing; a finished run is re-opened.
        """
        if budget is not None:  # fills the accountant's cache, so that the lock is held for milliseconds
            self._check_budget(reservation, delta, budget)
        with self._transaction(durable=True):
            self._check_known(reservation)
            if budget is not None:
                self._check_budget(reservation, delta, budget)
            step = json.dumps(asdict(reservation.step), sort_keys=True)
            self._db.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, ?, 1) ON CONFLICT (run_id) DO UPDATE SET open = 1",
                (reservation.run_id, reservation.data, step, reservation.steps, reservation.noise_source),
            )

    def begin_round(self, run_id: str, round: int, steps: int) -> int:
        """Enter a round *before* its data is touched; returns its attempt, 0 the first time.

        A round begun before is charged again with system noise and not with seeded noise, which repeats it bit by bit.
        Raises LedgerError where the run is not open or the round would exceed its reservation.
        """
        reservation, is_open = self._run(run_id)
        system = reservation.noise_source == "system"
        with self._transaction(durable=system):
            reservation, is_open = self._run(run_id)
            if not is_open:
                raise LedgerError(f"{self.path}: run {run_id} is finished; reserve it again before round {round}")
            attempts = self._db.execute(
                "SELECT steps FROM rounds WHERE run_id = ? AND round = ? ORDER BY attempt", (run_id, round)
            ).fetchall()
            if attempts and not system:
                if attempts[0][0] != steps:
                    raise LedgerError(
                        f"{self.path}: run {run_id} began round {round} with {attempts[0][0]} steps, now {steps}"
                    )
                return 0
            spent = self._charged(run_id)
            if spent + steps > reservation.steps:
                raise LedgerError(
                    f"{self.path}: round {round} of run {run_id} needs {steps} steps, but {spent} of the "
                    f"{reservation.steps} reserved are spent; it does not start"
                )
            self._db.execute("INSERT INTO rounds VALUES (?, ?, ?, ?, 0)", (run_id, round, len(attempts), steps))
            return len(attempts)

    def commit_round(self, run_id: str, round: int) -> None:
        """Mark a begun round as done; raises LedgerError if it never began."""
        with self._transaction(durable=False):
            done = self._db.execute("UPDATE rounds SET committed = 1 WHERE run_id = ? AND round = ?", (run_id, round))
            if done.rowcount == 0:
                raise LedgerError(f"{self.path}: round {round} of run {run_id} was never begun")

    def finish(self, run_id: str) -> None:
        """Release what was reserved and never begun; begun rounds stay spent. Raises LedgerError on an unknown run."""
        with self._transaction(durable=True):
            self._run(run_id)
            self._db.execute("UPDATE runs SET open = 0 WHERE run_id = ?", (run_id,))

    def knows(self, run_id: str) -> bool:
        """Whether the run ever reserved anything here."""
        with self._lock, self._errors():
            return bool(self._db.execute("SELECT 1 FROM runs WHERE run_id = ?", (run_id,)).fetchone())

    def executed(self, run_id: str) -> list[Event]:
        """What the run has begun, every charged attempt included; raises LedgerError on an unknown run."""
        with self._lock, self._errors():
            return [(self._run(run_id)[0].step, self._charged(run_id))]

    def spent(self, data: str, *, without: str | None = None) -> list[Event]:
        """Every run on ``data``: in full while its reservation is open, else what it began."""
        with self._lock, self._errors():
            runs = self._db.execute("SELECT run_id FROM runs WHERE data = ? ORDER BY run_id", (data,)).fetchall()
            events = []
            for (run_id,) in runs:
                if run_id != without:
                    reservation, is_open = self._run(run_id)
                    events.append((reservation.step, reservation.steps if is_open else self._charged(run_id)))
            return events

    def epsilon(self, data: str, delta: float) -> float:
        """Composed epsilon of everything spent or reserved on ``data``, by PLD: an upper bound, fast on many runs."""
        return epsilon_pld(self.spent(data), delta)

    def close(self) -> None:
        """Close the file; entries stay. Another thread's use of it ends first, or meets a closed ledger."""
        with self._lock:
            self._db.close()

    def _check_known(self, reservation: Reservation) -> None:
        known = self._db.execute("SELECT 1 FROM runs WHERE run_id = ?", (reservation.run_id,)).fetchone()
        if known and (before := self._run(reservation.run_id)[0]) != reservation:
            raise LedgerError(f"{self.path}: run {reservation.run_id} was reserved as {before}, not {reservation}")

    def _check_budget(self, reservation: Reservation, delta: float, budget: float) -> None:
        others = self.spent(reservation.data, without=reservation.run_id)
        epsilon = epsilon_pld([*others, (reservation.step, reservation.steps)], delta)
        if epsilon > budget:
            before = epsilon_pld(others, delta)
            raise LedgerError(
                f"{self.path}: budget={budget:g} at delta={delta:g} would be exceeded: {before:.4g} is spent or "
                f"reserved by {len(others)} run(s) on this data, and with this run it would be {epsilon:.4g}"
            )

    def _run(self, run_id: str) -> tuple[Reservation, bool]:
        with self._lock, self._errors():
            row = self._db.execute("SELECT * FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        if row is None:
            raise LedgerError(f"{self.path}: run {run_id} has no reservation in this ledger")
        try:
            step = SampledGaussian(**json.loads(row[2]))
        except (ValueError, TypeError) as error:
            raise LedgerError(f"ledger {self.path}: run {run_id} is unreadable ({error}); restore a copy") from error
        return Reservation(row[0], row[1], step, row[3], row[4]), bool(row[5])

    def _charged(self, run_id: str) -> int:
        return int(self._db.execute("SELECT total(steps) FROM rounds WHERE run_id = ?", (run_id,)).fetchone()[0])

    def _check_header(self) -> None:
        try:
            with self.path.open("rb") as file:
                header = file.read(16)
        except OSError as error:
            raise LedgerError(f"ledger {self.path} cannot be read: {error.strerror}") from error
        if header != b"SQLite format 3\x00":
            raise LedgerError(f"ledger {self.path} is not a privacy ledger; restore it from a copy")

    def _open(self) -> None:
        found = tuple(self._db.execute(f"PRAGMA {key}").fetchone()[0] for key in ("application_id", "user_version"))
        if found != (APPLICATION_ID, VERSION):
            raise LedgerError(f"ledger {self.path} is not a MedX ledger of version {VERSION}: {found}")
        if (state := self._db.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            raise LedgerError(f"ledger {self.path} is corrupt ({state.splitlines()[0]}); restore it from a copy")
        self._db.execute("PRAGMA journal_mode = WAL").fetchone()
        self._db.execute("PRAGMA foreign_keys = ON")

    @contextmanager
    def _transaction(self, *, durable: bool) -> Iterator[None]:
        with self._lock, self._errors():
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise LedgerError(f"ledger {self.path} cannot be used: {error}; is another run holding it?") from error
        except sqlite3.ProgrammingError as error:
            raise LedgerError(f"ledger {self.path} cannot be used: {error}") from error
        except sqlite3.Error as error:
            raise LedgerError(f"ledger {self.path} is corrupt ({error}); restore it from a copy") from error


def _refuse_or_create(path: Path, create: bool) -> None:
    if not create:
        raise LedgerError(f"ledger {path} is missing, and this run had one; restore it before resuming")
    if (wal := path.with_name(path.name + "-wal")).exists():
        raise LedgerError(f"ledger {path} is missing, but its journal {wal.name} is there; restore the ledger")
    path.parent.mkdir(parents=True, exist_ok=True)
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
