"""One faulty or lying hospital is one hospital less: the run goes on, and the others pay for no second attempt."""

import sqlite3
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict

from medx.aggregation.messages import Shares, Unmask
from medx.federation import hospital_sums
from medx.federation.hospital import Hospital
from medx.federation.ledgers import ledger_path, recorded_steps
from medx.federation.plain_rounds import RoundAborted
from medx.federation.replies import Code
from medx.federation.server import Server
from medx.federation.setup import Job
from medx.federation.sums import STAGES, WEIGHT, Position, ledger_entry
from medx.schema import LedgerError, PrivacyError

from .sum_examples import LossyGrid, forget, grid_of, make, run, same, server_of, site_of

LIAR = 2
Lie = Callable[[Message], Message]


def lying(grid: LossyGrid, stage: str, lie: Lie, liars: tuple[int, ...] = (LIAR,)) -> None:
    """Let these clients' replies to one stage be others."""
    honest = grid.send_and_receive

    def send_and_receive(messages: Any, *, timeout: float | None = None) -> Iterator[Message]:
        asked = list(messages)
        kinds = {message.metadata.dst_node_id: message.metadata.message_type for message in asked}
        for reply in honest(asked, timeout=timeout):
            node = reply.metadata.src_node_id
            hit = node - 2 in liars and kinds[node].rpartition(".")[2] == stage
            yield lie(reply) if hit else reply

    grid.send_and_receive = send_and_receive  # type: ignore[method-assign]


def instead(content: RecordDict | Error) -> Lie:
    """A reply with another content, or an error."""

    def lie(reply: Message) -> Message:
        other = Message(content, reply_to=Message(RecordDict(), 1, reply.metadata.message_type))
        other.metadata.__dict__["_src_node_id"] = reply.metadata.src_node_id
        return other

    return lie


def data(change: Callable[[bytes], object]) -> Lie:
    """A reply whose bytes of the protocol are others."""

    def lie(reply: Message) -> Message:
        record = reply.content["reply"]
        return instead(RecordDict({"reply": ConfigRecord({**record, "data": change(record["data"])})}))(reply)

    return lie


def refusing(code: int, text: str) -> Lie:
    return instead(Error(code, text))


def charged(job: Job, client: int) -> int:
    with closing(sqlite3.connect(ledger_path(job, client))) as ledger:
        return int(ledger.execute("SELECT COALESCE(SUM(steps), 0) FROM rounds").fetchone()[0])


LIES = {
    "nothing": instead(RecordDict()),
    "another record": instead(RecordDict({"reply": MetricRecord({"data": 1})})),
    "no position": instead(RecordDict({"reply": ConfigRecord({"data": b"x"})})),
    "text as data": data(lambda _: "x"),
    "no data": data(lambda _: b""),
    "cut": data(lambda old: old[:-1]),
    "more": data(lambda old: old + bytes(100_000)),
    "random": data(lambda old: old[:4] + b"\xff" * (len(old) - 4)),
    "below zero": data(lambda old: old[:12] + (-1).to_bytes(8, "little", signed=True) * 2 + old[28:]),
    "text of a ledger": refusing(2, "LedgerError: budget=1 would be exceeded"),
    "text of an abstention": refusing(2, "AbstainedError: not finite"),
    "ledger": refusing(Code.LEDGER, "LedgerError: budget=1 would be exceeded"),
    "accuses": refusing(Code.ACCUSES, "secure aggregation refused client 0"),
    "accuses nobody": refusing(2**60, "x"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_false_answer_in_a_secure_sum_is_that_clients_failure(tmp_path: Path, stage: str) -> None:
    """A round for each lie, and no attempt more: five clients, three of which are enough."""
    job = make(tmp_path, aggregation={"threshold": 3, "minimum_survivors": 3}, rounds=len(LIES))
    engine = server_of(job)
    with grid_of(job) as grid:
        state, honest = engine.initial_state(), grid.send_and_receive
        nodes = {client: client + 2 for client in range(5)}
        engine.engine.restore(state)
        for number, (name, lie) in enumerate(LIES.items(), start=1):
            grid.send_and_receive = honest  # type: ignore[method-assign]
            lying(grid, stage, lie)
            state = engine.one_round(grid, nodes, state, number)
            in_the_sum = stage in ("confirm", "unmask")
            assert state.records[-1].clients == 4 + in_the_sum, name
            assert state.records[-1].abstained == 0, name
    assert [charged(job, client) for client in (0, 1, 3, 4)] == [len(LIES)] * 4


@pytest.mark.parametrize("name", [name for name in LIES if name != "below zero"])
def test_a_false_answer_in_a_trusted_sum_is_that_clients_failure(tmp_path: Path, name: str) -> None:
    job = make(tmp_path, secure=False, clients=5, aggregation={"minimum_survivors": 3}, rounds=1)
    engine = server_of(job)
    with grid_of(job) as grid:
        lying(grid, "sum", LIES[name] if name != "random" else data(lambda old: old + b"x"))
        state = engine.one_round(grid, {c: c + 2 for c in range(5)}, engine.initial_state(), 1)
    assert (state.records[0].clients, state.records[0].abstained) == (4, 0)


def identified(claims: dict[int, object], code: int | None = None) -> Lie:
    """What nodes say of themselves, by the client that they are."""

    def lie(reply: Message) -> Message:
        claim = claims[reply.metadata.src_node_id - 2]
        if isinstance(claim, str):
            return instead(Error(2 if code is None else code, claim))(reply)
        if claim is None:
            return instead(RecordDict())(reply)
        kind: Any = MetricRecord if isinstance(claim, float) else ConfigRecord
        return instead(RecordDict({"client": kind({"client": claim})}))(reply)

    return lie


@pytest.mark.parametrize("claim", [-1, 5, 2**62, 1.0, True, [3], b"3", None, 0, "LedgerError: budget=1 is spent"])
def test_who_does_not_say_which_client_it_is_is_not_there(tmp_path: Path, claim: object) -> None:
    job = make(tmp_path, rounds=1)
    engine = server_of(job)
    with grid_of(job) as grid:
        lying(grid, "query", identified({LIAR: claim}))
        assert engine.identify(grid) == {0: 2, 1: 3, 3: 5, 4: 6}


def test_a_budget_that_is_spent_refuses_the_run_before_it_begins(tmp_path: Path) -> None:
    job = make(tmp_path, rounds=1)
    with grid_of(job) as grid:
        lying(grid, "query", identified({LIAR: "LedgerError: budget=1 is spent"}, Code.LEDGER))
        with pytest.raises(LedgerError, match=r"^budget=1 is spent$"):
            server_of(job).identify(grid)


def test_too_few_for_a_sum_begin_nothing_and_pay_nothing(tmp_path: Path) -> None:
    job = make(tmp_path, rounds=1)  # four of five are needed, min_clients is 2
    with grid_of(job) as grid:
        lying(grid, "query", identified({1: None, 2: "out of power"}), (1, 2))
        with pytest.raises(RoundAborted, match="only 3 of 5 clients are there"):
            next(server_of(job).rounds(grid, server_of(job).initial_state()))
    assert [charged(job, client) for client in range(5)] == [0] * 5


def test_false_unmask_shares_are_left_out(tmp_path: Path) -> None:
    def false(old: bytes) -> bytes:
        message = Unmask.from_bytes(old, LIAR)
        return Unmask(
            LIAR, message.context, {o: b"\0" + s[:0:-1] for o, s in message.seed_shares.items()}, {}
        ).to_bytes()

    honest = run(make(tmp_path / "honest", rounds=1))[-1]
    job = make(tmp_path, rounds=1)
    engine = server_of(job)
    with grid_of(job) as grid:
        lying(grid, "unmask", data(false))
        (state,) = engine.rounds(grid, engine.initial_state())
    assert same(state.state, honest.state)
    assert [charged(job, client) for client in range(5)] == [1] * 5


def sealed_badly(old: bytes) -> bytes:
    message = Shares.from_bytes(old, LIAR)
    return Shares(LIAR, message.context, dict.fromkeys(message.ciphertexts, bytes(94))).to_bytes()


def test_who_spoils_an_attempt_for_the_others_is_not_asked_again(tmp_path: Path) -> None:
    """Shares that nobody can open: all others refuse, before words and charge; the second attempt is without them."""
    job = make(tmp_path, rounds=2, aggregation={"max_attempts": 2})
    engine = server_of(job)
    with grid_of(job) as grid:
        lying(grid, "shares", data(sealed_badly))
        states = list(engine.rounds(grid, engine.initial_state()))
    assert [record.clients for record in states[-1].records] == [4, 4]
    assert [charged(job, client) for client in (0, 1, 3, 4)] == [2] * 4


def test_one_accuser_excludes_nobody_and_costs_itself_its_place(tmp_path: Path) -> None:
    job = make(tmp_path, rounds=2)
    engine = server_of(job)
    with grid_of(job) as grid:
        lying(grid, "masked", refusing(Code.ACCUSES + 0, "secure aggregation refused client 0 (ciphertext): ..."))
        states = list(engine.rounds(grid, engine.initial_state()))
    assert [record.clients for record in states[-1].records] == [4, 4]
    assert [charged(job, client) for client in (0, 1, 3, 4)] == [2] * 4


def test_a_second_attempt_that_could_give_no_sum_is_not_made(tmp_path: Path) -> None:
    """Two of five have no budget left and four are needed: the other three pay for one attempt, not for three."""
    job = make(tmp_path, rounds=3)
    engine = server_of(job)
    with grid_of(job) as grid:
        lying(grid, "masked", refusing(Code.LEDGER, "LedgerError: 3 of the 3 reserved are spent"), (1, 2))
        with pytest.raises(LedgerError, match=r"^3 of the 3 reserved are spent$"):
            list(engine.rounds(grid, engine.initial_state()))
    assert [charged(job, client) for client in (0, 3, 4)] == [1] * 3


def test_the_weight_that_a_client_puts_into_the_sum_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"privacy": "none", "rounds": 1}
    honest = run(make(tmp_path / "honest", **changes))[-1]
    words_of, job = hospital_sums.words_of, make(tmp_path, **changes)
    place = job.sums.layout.dimension + [field.name for field in job.sums.layout.fields].index(WEIGHT)

    def heavier(hospital: Hospital, *rest: Any) -> np.ndarray:
        words = words_of(hospital, *rest)
        words[place] += (hospital.client == LIAR) * np.uint32(1 << 25)
        return words

    monkeypatch.setattr(hospital_sums, "words_of", heavier)
    assert same(run(job)[-1].state, honest.state)


def test_entries_of_attempts_cannot_coincide(tmp_path: Path) -> None:
    job = make(tmp_path, rounds=4, aggregation={"max_attempts": 3})
    entries = [ledger_entry(job, Position(number, attempt)) for number in range(1, 5) for attempt in range(3)]
    assert entries == list(range(12))
    for outside in (Position(1, 3), Position(2, -1), Position(0, 0), Position(5, 0), Position(-1, 2)):
        with pytest.raises(PrivacyError, match="accepted are rounds 1 to 4 and attempts 0 to 2"):
            ledger_entry(job, outside)


def test_a_hospital_that_another_makes_room_for_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process keeps so many; a thread may make room between another's looking one up and answering for it."""
    monkeypatch.setattr("medx.federation.hospital.MOST", 0)
    job = make(tmp_path, privacy="local_dp", secure=False)
    site = site_of(job)
    assert [site.hospital(client).client for client in (0, 1, 0)] == [0, 1, 0]
    forget(job)


def test_a_ledger_is_closed_when_nobody_uses_its_hospital_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whoever makes room, and not when cycles are collected: a thousand of them would be out of files by then."""
    monkeypatch.setattr("medx.federation.hospital.MOST", 1)
    job = make(tmp_path, privacy="local_dp", secure=False)
    site = site_of(job)
    used = site.hospital(0)
    ledger = used.ledger
    assert ledger is not None
    site.hospital(1)
    assert ledger.knows(job.run_id)  # used still, as by another thread
    del used
    with pytest.raises(LedgerError, match="closed"):
        ledger.knows(job.run_id)
    forget(job)


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_ledgers_are_read_of_those_who_were_asked_and_of_all_where_one_may_be_late(
    tmp_path: Path, timeout: float | None
) -> None:
    job = make(tmp_path, privacy="local_dp", secure=False, federation={"fraction_clients": 0.4})
    site, read = site_of(job), []

    def recorded(answered: dict[int, int], among: Collection[int] | None) -> dict[int, int]:
        found = site.recorded(answered, among)
        assert found == site.recorded(answered)
        read.append(among)
        return found

    server = Server(job, recorded, lambda record: None, timeout, site.prepared)
    with grid_of(job) as grid:
        for _ in server.rounds(grid, server.initial_state()):
            pass
    drawn = [server.choose(list(range(5)), number) for number in (2, 3)]
    assert len(drawn[0]) == 2
    assert read == [None, *(drawn if timeout is None else [None, None])]


def test_steps_of_those_who_are_not_asked_stand_and_who_was_asked_has_an_entry(tmp_path: Path) -> None:
    job = make(tmp_path, privacy="local_dp", secure=False)
    run(job)
    told = dict.fromkeys(range(5), 1)
    begun = recorded_steps(job, told)
    assert recorded_steps(job, told, among=[3]) == told | {3: begun[3]} != begun
    ledger_path(job, 3).unlink()
    with pytest.raises(LedgerError, match="has no entry of run"):
        recorded_steps(job, told, among=[3])
