"""A hospital's own privacy ledger: one SQLite file that never shows less than was spent.

A run first reserves its whole plan in one durable transaction (fsync before it returns), under a lock on the file,
so that runs at once are serialised and together stay within the budget. Only then does it touch data, and each round
is entered before its data is touched. An open reservation counts in full, so the round entries need no fsync: in
write-ahead mode they survive kill -9, and what a power failure may take back is still covered by the reservation.
With system noise a lost entry would hide an attempt, so there the round entries are synced too.

A budget holds for the records that a run touches, over all ledgers of the folder: in a simulation another partition
deals a record to another hospital. Runs with a budget are reserved one at a time in a folder.
"""

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from medx.privacy.accounting import Event, epsilon_pld
from medx.privacy.base import NoiseSource, SampledGaussian
from medx.privacy.ledger_folder import (
    APPLICATION_ID,
    FROM_VERSION_1,
    NO_COPY,
    VERSION,
    Entry,
    RecordSet,
    check_header,
    histories,
    mixed_units,
    refuse_or_create,
    worst,
)
from medx.schema import LedgerError

LOCK_FILE = ".lock"


@dataclass(frozen=True)
class Reservation:
    """What a run asks for: all its steps on these records; without ``records`` they may be any.

    ``run_id`` must stand for one configuration and seed: with seeded noise its rounds are repeated bit by bit.
    ``unit`` is whom a step protects: a record, a patient, or a client with all its records.
    """

    run_id: str
    step: SampledGaussian
    steps: int
    noise_source: NoiseSource
    unit: Literal["record", "patient", "client"] = "record"
    records: RecordSet | None = None


class PrivacyLedger:
    """The ledger in the file ``path``; ``create=False`` on resume, where a missing file is an error.

    Raises LedgerError if the file is missing, corrupt, of another kind, or locked for longer than ``timeout``
    seconds. Build it in the process that uses it; threads may share it.
    """

    def __init__(self, path: Path, *, create: bool, timeout: float = 30.0) -> None:
        self.path = Path(path)
        self._timeout = timeout
        self._lock = threading.RLock()
        if not self.path.exists():
            refuse_or_create(self.path, create)
        check_header(self.path)
        with self._errors():
            self._db = sqlite3.connect(self.path, timeout=timeout, isolation_level=None, check_same_thread=False)
        try:
            with self._errors():
                self._open()
        except BaseException:
            self._db.close()
            raise

    def reserve(self, reservation: Reservation, *, delta: float, budget: float | None) -> None:
        """Reserve the whole run durably, if all that was spent on any of its records then stays within ``budget``.

        None is no limit. Raises LedgerError, with the ledger unchanged, where it would not, or where ``run_id`` is
        known with other parameters. Reserving the same again (a resume) changes nothing; a finished run is re-opened.
        """
        if budget is None:
            self._enter(reservation)
            return
        with self._folder_lock():
            self._check_budget(reservation, delta, budget)
            self._enter(reservation)

    def begin_round(self, run_id: str, round: int, steps: int, *, release: bytes) -> int:
        """Enter a round *before* its data is touched; returns its attempt, 0 the first time.

        ``release`` is the hash of all that its numbers follow from: the model as it was received, data, versions. A
        round begun before with the same repeats it bit by bit where the noise is seeded, and is free; with another, or
        with system noise, it is a release of its own. Raises LedgerError where the run is not open or the round would
        exceed its reservation.
        """
        reservation, is_open = self._run(run_id)
        system = reservation.noise_source == "system"
        with self._transaction(durable=system):
            reservation, is_open = self._run(run_id)
            if not is_open:
                raise LedgerError(f"{self.path}: run {run_id} is finished; reserve it again before round {round}")
            attempts = self._db.execute(
                "SELECT attempt, steps, model FROM rounds WHERE run_id = ? AND round = ?", (run_id, round)
            ).fetchall()
            for attempt, before, known in attempts:
                if not system and known == release:
                    if before != steps:
                        raise LedgerError(
                            f"{self.path}: run {run_id} began round {round} with {before} steps, now {steps}"
                        )
                    return int(attempt)
            spent = self._charged(run_id)
            if spent + steps > reservation.steps:
                raise LedgerError(
                    f"{self.path}: round {round} of run {run_id} needs {steps} steps, but {spent} of the "
                    f"{reservation.steps} reserved are spent; it does not start (privacy.spare_rounds reserves more)"
                )
            self._db.execute(
                "INSERT INTO rounds (run_id, round, attempt, steps, committed, model) VALUES (?, ?, ?, ?, 0, ?)",
                (run_id, round, len(attempts), steps, release),
            )
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

    def entries(self) -> list[Entry]:
        """Every run of this ledger: in full while its reservation is open, else what it began."""
        with self._lock, self._errors():
            runs = [self._run(run_id) for (run_id,) in self._db.execute("SELECT run_id FROM runs ORDER BY run_id")]
            return [
                Entry(
                    run.run_id, run.unit, run.records, (run.step, run.steps if is_open else self._charged(run.run_id))
                )
                for run, is_open in runs
            ]

    def spent(self, reservation: Reservation) -> list[list[Entry]]:
        """What all other runs in the folder's ledgers spent on each kind of the records of this one."""
        entries = self.entries()
        for path in sorted(self.path.parent.glob("*.sqlite")):
            if path.name != self.path.name:
                with closing(PrivacyLedger(path, create=False)) as other:
                    entries += other.entries()
        others = [entry for entry in entries if entry.run_id != reservation.run_id]
        if mixed_units(reservation.records, reservation.unit, others):
            raise LedgerError(
                f"{self.path.parent}: runs whose unit is another have touched these records, and what a "
                f"{reservation.unit} spent in them is not known; accepted: the unit of the runs before (privacy.unit), "
                "or another folder of ledgers"
            )
        return worst(histories(reservation.records, reservation.unit, others))

    def close(self) -> None:
        """Close the file; entries stay. Another thread's use of it ends first, or meets a closed ledger."""
        with self._lock:
            self._db.close()

    def _enter(self, reservation: Reservation) -> None:
        with self._transaction(durable=True):
            self._check_known(reservation)
            step = json.dumps(asdict(reservation.step), sort_keys=True)
            records = reservation.records
            self._db.execute(
                "INSERT INTO runs (run_id, step, steps, noise_source, unit, records_key, records, open)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, 1) ON CONFLICT (run_id) DO UPDATE SET open = 1",
                (
                    reservation.run_id,
                    step,
                    reservation.steps,
                    reservation.noise_source,
                    reservation.unit,
                    records.key if records else None,
                    records.digests if records else None,
                ),
            )

    def _check_known(self, reservation: Reservation) -> None:
        known = self._db.execute("SELECT 1 FROM runs WHERE run_id = ?", (reservation.run_id,)).fetchone()
        if not known:
            return
        before = self._run(reservation.run_id)[0]
        for name in (each.name for each in fields(Reservation)):
            if (old := getattr(before, name)) != (new := getattr(reservation, name)):
                raise LedgerError(
                    f"{self.path}: run {reservation.run_id} was reserved as {name}={old}, now {name}={new}; accepted "
                    "is the same run on the same records"
                )

    def _check_budget(self, reservation: Reservation, delta: float, budget: float) -> None:
        own = (reservation.step, reservation.steps)
        for others in self.spent(reservation):
            events = [entry.event for entry in others]
            epsilon = epsilon_pld([*events, own], delta)
            if epsilon > budget:
                raise LedgerError(
                    f"{self.path}: budget={budget:g} at delta={delta:g} would be exceeded: "
                    f"{epsilon_pld(events, delta):.4g} is spent or reserved by {len(others)} run(s) on a "
                    f"{reservation.unit} of this run, and with this run it would be {epsilon:.4g}"
                )

    @contextmanager
    def _folder_lock(self) -> Iterator[None]:
        """One reservation at a time in this folder, by a lock that ends with the process that holds it."""
        with self._errors():
            lock = sqlite3.connect(self.path.with_name(LOCK_FILE), timeout=self._timeout, isolation_level=None)
        with closing(lock):
            with self._errors():
                lock.execute("BEGIN EXCLUSIVE")
            yield

    def _run(self, run_id: str) -> tuple[Reservation, bool]:
        with self._lock, self._errors():
            row = self._db.execute(
                "SELECT run_id, step, steps, noise_source, unit, records_key, records, open FROM runs WHERE run_id = ?",
                (run_id,),
            ).fetchone()
        if row is None:
            raise LedgerError(f"{self.path}: run {run_id} has no reservation in this ledger")
        try:
            step = SampledGaussian(**json.loads(row[1]))
        except (ValueError, TypeError) as error:
            raise LedgerError(f"ledger {self.path}: run {run_id} is unreadable ({error}); {NO_COPY}") from error
        records = None if row[6] is None else RecordSet(row[5], row[6])
        return Reservation(row[0], step, row[2], row[3], row[4], records), bool(row[7])

    def _charged(self, run_id: str) -> int:
        return int(self._db.execute("SELECT total(steps) FROM rounds WHERE run_id = ?", (run_id,)).fetchone()[0])

    def _open(self) -> None:
        found = tuple(self._db.execute(f"PRAGMA {key}").fetchone()[0] for key in ("application_id", "user_version"))
        if found not in ((APPLICATION_ID, 1), (APPLICATION_ID, VERSION)):
            raise LedgerError(f"ledger {self.path} is not a MedX ledger of version {VERSION}: {found}")
        if (state := self._db.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            raise LedgerError(f"ledger {self.path} is corrupt ({state.splitlines()[0]}); {NO_COPY}")
        if found[1] == 1:
            self._migrate()
        self._db.execute("PRAGMA journal_mode = WAL").fetchone()
        self._db.execute("PRAGMA foreign_keys = ON")

    def _migrate(self) -> None:
        with self._transaction(durable=True):
            if self._db.execute("PRAGMA user_version").fetchone()[0] == 1:  # another process may have been faster
                for statement in FROM_VERSION_1:
                    self._db.execute(statement)

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
            held = "; is another run holding it?" if "locked" in str(error) else ""
            raise LedgerError(f"ledger {self.path} cannot be used: {error}{held}") from error
        except sqlite3.ProgrammingError as error:
            raise LedgerError(f"ledger {self.path} cannot be used: {error}") from error
        except sqlite3.Error as error:
            raise LedgerError(f"ledger {self.path} is corrupt ({error}); {NO_COPY}") from error
