"""No stage is answered twice: not by a client whose memory was lost or is an old one, nor by two at once."""

import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from medx.aggregation.coordinator import Coordinator
from medx.aggregation.journal import Journal, JournalError, ParticipantState, Party
from medx.aggregation.messages import Stage, UnmaskRequest
from medx.aggregation.participant import Participant
from medx.aggregation.roster import Roster
from medx.aggregation.wire import ProtocolError, Reason

from .conftest import MODEL

STEPS = ("begin", "share", "mask", "confirm", "unmask")


class Hospital:
    """Client 0 as a process that starts anew for every message; ``memory`` is what a node keeps for it."""

    def __init__(self, parties, path) -> None:
        self.parties, self.path = parties, path
        self.memory: list[bytes] = []

    def answer(self, step: str, *arguments, memory: bytes | None = None) -> bytes:
        kept = ParticipantState.from_bytes(memory, "disk") if memory else None
        journal = Journal(self.path)
        client = Participant(self.parties.roster, 0, self.parties.identities[0], journal=journal, state=kept)
        try:
            return getattr(client, step)(*arguments)
        finally:
            self.memory.append(client.state.to_bytes())
            journal.close()

    def reason(self, step: str, *arguments, memory: bytes | None = None) -> Reason:
        with pytest.raises(ProtocolError) as caught:
            self.answer(step, *arguments, memory=memory)
        return caught.value.reason


class Played:
    """An honest attempt in which client 0 is a ``Hospital``; ``said[step]`` is what it was asked."""

    def __init__(self, parties, path, until: int = 5) -> None:
        self.hospital, self.said = Hospital(parties, path), {}
        server, others = parties.server(), parties.clients[1:]
        self.server, words = server, parties.words
        take = (server.receive_keys, server.receive_shares, server.receive_masked, server.receive_confirm)
        close = (server.close_keys, server.close_shares, server.close_masked, server.close_confirm)
        asked = server.begin()
        for place, step in enumerate(STEPS[:until]):
            own = asked[0] if isinstance(asked, dict) else asked
            more = {"begin": (MODEL,), "mask": (words[0].copy(),)}.get(step, ())
            self.said[step] = (own, *more)
            memory = self.hospital.memory[-1] if self.hospital.memory else None
            replies = {0: self.hospital.answer(step, *self.said[step], memory=memory)}
            for client in others:
                data = asked[client.number] if isinstance(asked, dict) else asked
                given = {"begin": (MODEL,), "mask": (words[client.number].copy(),)}.get(step, ())
                replies[client.number] = getattr(client, step)(data, *given)
            if place < 4:
                for number, reply in replies.items():
                    take[place](number, reply)
                asked = close[place]()
        self.next = asked

    def begin(self, attempt: int) -> bytes:
        """The message that starts this round once more."""
        return Coordinator(self.server.roster, self.server.context.round, attempt, MODEL).begin()


@pytest.mark.parametrize("until", range(1, 5))
def test_the_next_message_too_needs_the_memory_of_the_last_answer(make_parties, tmp_path, until) -> None:
    for memory in range(-1, until - 1):
        parties = make_parties(3)
        played = Played(parties, tmp_path / f"{memory}.journal", until)
        asked = played.next[0] if isinstance(played.next, dict) else played.next
        more = (parties.words[0].copy(),) if STEPS[until] == "mask" else ()
        found = None if memory < 0 else played.hospital.memory[memory]
        assert played.hospital.reason(STEPS[until], asked, *more, memory=found) == Reason.STAGE
        # And the attempt is over, also for the right memory.
        right = played.hospital.memory[until - 1]
        assert played.hospital.reason(STEPS[until], asked, *more, memory=right) == Reason.STAGE


@pytest.mark.parametrize("until", range(1, 6))
def test_a_memory_that_was_lost_or_is_an_old_one_answers_nothing(make_parties, tmp_path, until) -> None:
    """Whatever a node finds again, each message that was answered, and the next one, is refused."""
    for memory in range(-1, until):
        parties = make_parties(3)
        played = Played(parties, tmp_path / f"{memory}.journal", until)
        found = None if memory < 0 else played.hospital.memory[memory]
        for step in STEPS[:until]:
            asked = played.said[step]
            if step == "mask":
                asked = (asked[0], parties.words[0].copy())
            assert played.hospital.reason(step, *asked, memory=found) in (
                Reason.REPLAY,
                Reason.STAGE,
                Reason.SECOND_UNMASK,
                Reason.SURVIVOR_SETS,
            ), (memory, step)


def test_a_second_vector_and_a_second_unmask_are_refused_with_the_memory_of_just_before(make_parties, tmp_path) -> None:
    parties = make_parties(5)
    played = Played(parties, tmp_path / "j")
    hospital, before = played.hospital, played.hospital.memory
    inbox = played.said["mask"][0]
    assert hospital.reason("unmask", *played.said["unmask"], memory=before[3]) == Reason.SECOND_UNMASK
    request = replace(UnmaskRequest.from_bytes(played.said["unmask"][0], "s"), survivors=(0, 1, 2, 3), dropped=(4,))
    assert hospital.reason("unmask", request.to_bytes(), memory=before[3]) == Reason.SECOND_UNMASK
    assert hospital.reason("mask", inbox, parties.words[0].copy(), memory=before[1]) == Reason.STAGE
    # Without noise of the attempt's own, the round is over for this client, whatever came after.
    assert hospital.reason("begin", played.begin(attempt=1), MODEL) == Reason.SECOND_UNMASK


def test_another_run_on_the_same_node_starts(make_parties, tmp_path) -> None:
    parties = make_parties(3)
    Played(parties, tmp_path / "j")
    other = Roster(**(parties.roster.model_dump() | {"run_id": "another"}))
    client = Participant(other, 0, parties.identities[0], journal=Journal(tmp_path / "j"))
    assert client.begin(Coordinator(other, 0, 0, MODEL).begin(), MODEL)


def test_of_two_messages_at_once_one_is_answered_at_most(make_parties, tmp_path) -> None:
    """While the words are being made the same message comes again: the second is refused, and no vector leaves."""
    parties = make_parties(3)
    played = Played(parties, tmp_path / "j", until=2)
    hospital, inbox = played.hospital, played.next[0]
    memory, outcome = hospital.memory[-1], []
    begun, go_on = threading.Event(), threading.Event()

    def words(round: int, attempt: int) -> np.ndarray:
        begun.set()
        assert go_on.wait(10)
        return parties.words[0].copy()

    def first() -> None:
        try:
            outcome.append(hospital.answer("mask", inbox, words, memory=memory))
        except ProtocolError as error:
            outcome.append(error.reason)

    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(10)
    assert hospital.reason("mask", inbox, parties.words[0].copy(), memory=memory) == Reason.STAGE
    go_on.set()
    thread.join()
    assert outcome == [Reason.STAGE]


def test_what_was_entered_is_there_after_kill(tmp_path) -> None:
    """A process that dies while it answers has answered, as far as the next one knows."""
    script = """
import os, sys
from pathlib import Path
from medx.aggregation.journal import ParticipantState
from medx.aggregation.messages import Stage
from medx.aggregation.journal import Journal, Party
journal = Journal(Path(sys.argv[1]))
journal.enter(Party(b"r", 0), (4, 1), Stage.KEYS, ParticipantState.fresh(Stage.IDLE, 4, 1), once=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "j")], check=False)
    assert done.returncode == -9
    journal = Journal(tmp_path / "j", create=False)
    idle = ParticipantState.fresh(Stage.IDLE, 4, 1)
    for position in ((4, 1), (4, 0), (3, 2)):
        with pytest.raises(ProtocolError, match=r"does not come after \(4, 1\)"):
            journal.enter(Party(b"r", 0), position, Stage.KEYS, idle, once=True)
    journal.enter(Party(b"r", 1), (4, 1), Stage.KEYS, idle, once=True)  # another client of the same file
    journal.enter(Party(b"s", 0), (4, 1), Stage.KEYS, idle, once=True)


def test_a_file_that_is_no_journal_is_refused_in_one_line(tmp_path) -> None:
    (tmp_path / "text").write_text("not a database, and long enough to be seen as none " * 10)
    with sqlite3.connect(tmp_path / "other") as database:
        database.execute("CREATE TABLE x (y)")
    for name, create in (("text", True), ("other", True), ("missing", False)):
        with pytest.raises(JournalError, match=f"journal .*{name}") as refusal:
            Journal(tmp_path / name, create=create)
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "missing").exists()
    holder = Journal(tmp_path / "held")
    holder._db.execute("BEGIN IMMEDIATE")
    with pytest.raises(JournalError, match="locked"):
        Journal(tmp_path / "held", timeout=0.05)
