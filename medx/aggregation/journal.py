"""What a client has answered: one SQLite file by which no stage of a secure sum is ever answered twice.

It holds one row for each roster and client: the last round, attempt and stage, and the SHA-256 of what the client had
to remember after it. No secret lies in it. A stage is entered before the client works on it, so a reply that may have
left is on record, whatever happens to the process; what the client remembers lies elsewhere, and where it was lost or
is an older one its hash shows it. Masked words, a confirmation and shares leave only after their entry was synced (a
power failure cannot take it back). The first two stages survive kill -9 without that: repeated, they give new keys.
"""

import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

from medx.aggregation.messages import Stage
from medx.aggregation.wire import ByClient, Ids, Message, ProtocolError, Reason
from medx.schema import MedxError

APPLICATION_ID = 0x4D65644A
SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
CREATE TABLE last (
    roster BLOB NOT NULL, client INTEGER NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL,
    stage INTEGER NOT NULL, state BLOB, PRIMARY KEY (roster, client)
) STRICT, WITHOUT ROWID;
"""
SERVER = "server"


class JournalError(MedxError):
    """A journal of a client's answers that cannot be used; without it the client answers nothing."""


@dataclass
class ParticipantState(Message):
    """All that a client remembers between messages, secrets included; ``to_bytes`` for a node that restarts.

    Never restore a state older than the last message sent: it would allow a second unmask. Wiping drops the only
    references to the secrets; Python cannot overwrite the memory itself. Its ``repr`` shows none of them.
    """

    KIND: ClassVar[bytes] = b"CLST"
    stage: int
    round: int
    attempt: int
    model_hash: bytes
    keys_message: bytes
    cipher_private: bytes = field(repr=False)
    mask_private: bytes = field(repr=False)
    seed: bytes = field(repr=False)
    mask_keys: ByClient = field(repr=False)
    receive_keys: ByClient = field(repr=False)
    shares: ByClient = field(repr=False)
    survivors: Ids
    dropped: Ids

    @classmethod
    def fresh(cls, stage: Stage, round: int, attempt: int) -> "ParticipantState":
        """A state without secrets at this position."""
        return cls(stage, round, attempt, b"", b"", b"", b"", b"", {}, {}, {}, (), ())


class Party(NamedTuple):
    """Whose row it is: the roster's digest, which names the run, and the client's number in it."""

    roster: bytes
    client: int


class Entry(NamedTuple):
    """Where a client stands; ``state`` is None while a message is being answered."""

    round: int
    attempt: int
    stage: int
    state: bytes | None


NOTHING = Entry(-1, 0, Stage.IDLE, None)


class Journal:
    """The journal in the file ``path``, or in memory without one; processes and threads may share a file.

    ``create=False`` where the run had one before. ``sync=False`` only for a roster whose identities end with the
    process: after a power failure nobody could answer by it any more. Raises JournalError where the file is missing,
    locked for longer than ``timeout`` seconds, or no journal.
    """

    def __init__(
        self, path: Path | None = None, *, create: bool = True, sync: bool = True, timeout: float = 30.0
    ) -> None:
        self.path = path
        self._sync = sync
        self._lock = threading.RLock()
        if path is not None and not create and not path.exists():
            raise JournalError(f"journal {path} is missing, and this run had one; accepted: the file as it was left")
        with self._errors():
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path or ":memory:", timeout, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL").fetchone()
        with self._transaction(durable=True):
            found = self._db.execute("PRAGMA application_id").fetchone()[0]
            empty = not self._db.execute("SELECT 1 FROM sqlite_master").fetchone()
            if found != (0 if empty else APPLICATION_ID):
                raise JournalError(f"journal {path} is another kind of file; accepted: a journal, or none yet")
            if empty:
                for statement in SCHEMA.split(";"):
                    self._db.execute(statement)

    def enter(
        self, party: Party, position: tuple[int, int], stage: Stage, state: ParticipantState, *, once: bool
    ) -> None:
        """Record that ``stage`` is being answered; raises ProtocolError unless it is the next one.

        ``state`` is what the client remembers. With ``once`` a round is opened at most once: what its words hold
        beside the update is the same in every attempt. A refusal of a later stage ends the attempt.
        """
        with self._transaction(durable=stage >= Stage.MASKED):
            last = self._last(party)
            if stage == Stage.KEYS:
                fault = _fault_of_begin(last, position, once)
            else:
                fault = _fault(last, position, stage, hash_of(state))
            if fault is None:
                self._write(party, Entry(*position, stage, None))
            elif stage != Stage.KEYS and last.stage != Stage.UNMASKED:
                self._write(party, last._replace(stage=Stage.ENDED, state=None))
        if fault is not None:
            raise fault

    def leave(self, party: Party, position: tuple[int, int], stage: Stage, state: ParticipantState) -> None:
        """Record what the client remembers after ``stage``; raises ProtocolError where another message came between."""
        with self._transaction(durable=False):
            if self._last(party) != Entry(*position, stage, None):
                raise ProtocolError(Reason.STAGE, SERVER, "another message came while this one was answered")
            self._write(party, Entry(*position, stage, hash_of(state)))

    def end(self, party: Party, position: tuple[int, int], stage: Stage) -> None:
        """End the attempt in which answering ``stage`` failed, so that no reply has left."""
        with self._transaction(durable=False):
            if self._last(party) == Entry(*position, stage, None):
                self._write(party, Entry(*position, Stage.ENDED, None))

    def reached(self, party: Party) -> tuple[int, int]:
        """The last round and attempt that were begun; the round is -1 before the first."""
        with self._lock, self._errors():
            last = self._last(party)
        return last.round, last.attempt

    def close(self) -> None:
        """Close the file; what is recorded stays."""
        with self._lock:
            self._db.close()

    def _last(self, party: Party) -> Entry:
        where = "SELECT round, attempt, stage, state FROM last WHERE roster = ? AND client = ?"
        row = self._db.execute(where, party).fetchone()
        return NOTHING if row is None else Entry(*row)

    def _write(self, party: Party, entry: Entry) -> None:
        self._db.execute("INSERT OR REPLACE INTO last VALUES (?, ?, ?, ?, ?, ?)", (*party, *entry))

    @contextmanager
    def _transaction(self, *, durable: bool) -> Iterator[None]:
        with self._lock, self._errors():
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable and self._sync else 'NORMAL'}")
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
        except (sqlite3.Error, OSError) as error:
            raise JournalError(f"journal {self.path} cannot be used: {error}") from error


def hash_of(state: ParticipantState) -> bytes:
    """SHA-256 of all that a client remembers."""
    return hashlib.sha256(state.to_bytes()).digest()


def _fault_of_begin(last: Entry, position: tuple[int, int], once: bool) -> ProtocolError | None:
    if position <= (last.round, last.attempt):
        text = f"round, attempt {position} does not come after {(last.round, last.attempt)}"
        return ProtocolError(Reason.REPLAY, SERVER, text)
    if once and position[0] == last.round and last.stage == Stage.UNMASKED:
        text = f"round {last.round} is opened already, and a second sum of the same words would tell one client's"
        return ProtocolError(Reason.SECOND_UNMASK, SERVER, text)
    return None


def _fault(last: Entry, position: tuple[int, int], stage: Stage, state: bytes) -> ProtocolError | None:
    if stage == last.stage == Stage.UNMASKED:
        return ProtocolError(Reason.SECOND_UNMASK, SERVER, f"round {last.round} is already unmasked")
    if stage == last.stage == Stage.CONFIRMED:
        return ProtocolError(Reason.SURVIVOR_SETS, SERVER, "a second survivor set in one attempt")
    if position != (last.round, last.attempt) or last.stage != stage - 1:
        name = Stage(last.stage).name.lower()
        return ProtocolError(Reason.STAGE, SERVER, f"a message out of order, last stage was {name}")
    if last.state != state:
        return ProtocolError(Reason.STAGE, SERVER, "what the client remembers is not what its last answer left")
    return None
