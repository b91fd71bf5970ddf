"""Buffered rounds that are stopped, cut short or lied to: nothing is charged twice, and each run comes to an end."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict

import medx.federation.arrivals
import medx.federation.hospital
from medx.federation.arrivals import Asked, RealArrivals
from medx.federation.buffered_rounds import BufferedRounds, NothingLeft
from medx.federation.checkpoint import ServerState, load_checkpoint
from medx.federation.fedbuff import FedBuff
from medx.federation.flower import become_a_server, to_record
from medx.federation.hospital import Hospital
from medx.federation.plain_rounds import RoundAborted
from medx.federation.replies import Code
from medx.privacy.ledger import PrivacyLedger
from medx.trainer.local_training import ClientUpdate
from medx.trainer.state import ModelLayout, ModelState
from tests.end_to_end.test_stops import poison
from tests.program import Ran, call

BUFFERED = ("federation=fedbuff", "federation.buffer_size=2")
LAYOUT = ModelLayout((("w", (2,)),), np.dtype("float32"))
STATE = ModelState(LAYOUT, np.zeros(2, np.float32))


def ledgers(ran: Ran, clients: int) -> list[int]:
    """The releases that each ledger shows as begun."""
    run, counts = load_checkpoint(ran.folder / "checkpoints").run, []
    for client in range(clients):
        with closing(PrivacyLedger(ran.folder / "ledger" / f"client_{client:04d}.sqlite", create=False)) as ledger:
            counts.append(sum(count for _, count in ledger.executed(run)))
    return counts


def test_a_hospital_that_abstains_is_not_asked_beyond_the_limit_within_one_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would abstain as often as it is faster than the others, and each time tell something of its data."""
    poison(monkeypatch, 1)
    ran = call(tmp_path, *BUFFERED, "runtime.speeds=[9,1,9]", "federation.num_rounds=6", "privacy.max_abstentions=1")
    assert ran.result.status == "aborted"
    assert str(ran.result.error).startswith("round 1: 2 updates were not finite")
    assert ledgers(ran, 3)[1] == 2 * 2


def test_a_ledger_must_show_every_answer_of_a_buffer(tmp_path: Path) -> None:
    """One that is three times as fast fills most of it; a copy of its ledger from before would show less."""
    ran = call(tmp_path, *BUFFERED, "federation.buffer_size=3", "runtime.speeds=[1,8,8]", "federation.num_rounds=9")
    assert ran.code == 0, ran.err
    least = load_checkpoint(tmp_path / "checkpoints").charged
    shown = ledgers(ran, 3)
    assert least[0] == shown[0] == 9 * 2, "all that it has answered"
    assert all(least[client] <= shown[client] for client in least)


def test_answers_that_were_under_way_when_the_run_was_killed_are_spent_and_the_run_still_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With noise of the system the last answers of all plans are lost: nobody has one left, so it has finished."""

    train = Hospital.train

    def killed(hospital: Hospital, state: ModelState, number: int) -> ClientUpdate:
        update = train(hospital, state, number)
        if (hospital.client, number) == (1, 2):
            raise KeyboardInterrupt
        return update

    own = (*BUFFERED, "federation.num_clients=2", "federation.num_rounds=2", "runtime.workers=1", "noise=system")
    with monkeypatch.context() as patch:
        patch.setattr(Hospital, "train", killed)
        stopped = call(tmp_path, *own)
    assert (stopped.result.status, len(stopped.result.rounds)) == ("killed", 1)
    assert ledgers(stopped, 2) == [4, 4]
    resumed = call(tmp_path, f"resume={tmp_path}", base=())
    assert (resumed.code, resumed.result.status, len(resumed.result.rounds)) == (0, "finished", 1), resumed.err
    assert ledgers(resumed, 2) == [client.steps for client in resumed.result.privacy.clients] == [4, 4]
    assert resumed.result.privacy.epsilon == stopped.result.privacy.epsilon


class Answering:
    """A virtual grid whose hospitals, at node ``client + 10``, answer what ``says`` makes of (client, number)."""

    def __init__(self, says: Callable[[int, int], ModelState | Error]) -> None:
        become_a_server()
        self.says, self.asked = says, Counter[int]()

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Iterator[Message]:
        for message in messages:
            client, number = message.metadata.dst_node_id - 10, message.content["config"]["server-round"]
            self.asked[client] += 1
            said = self.says(client, number)
            yield Message(said if isinstance(said, Error) else content_of(said, client, number), reply_to=message)


def content_of(state: ModelState, client: int, number: int) -> RecordDict:
    metrics = MetricRecord({"num-examples": 1, "client": client, "round": number, "steps": 1, "finite": 1})
    return RecordDict({"arrays": to_record(state), "metrics": metrics})


def rounds_of(*, num_rounds: int, source: str, resumed: bool = False, begun: dict[int, int] | None = None) -> Any:
    """Buffered rounds of three hospitals that answer each other instant, a buffer of two, and no data."""
    federation = FedBuff(num_clients=3, num_rounds=num_rounds, fraction_clients=1.0, min_clients=2, evaluate_every=1,
                         buffer_size=2, staleness=0.5, server_learning_rate=1.0)  # fmt: skip
    plan = SimpleNamespace(
        clients=[SimpleNamespace(client=client, num_records=10, steps_per_round=2) for client in range(3)],
        private=True,
        noise_source=source,
        max_abstentions=0,
        events_per_round=lambda client: 2,
    )
    setup = SimpleNamespace(federation=federation, num_clients=3)
    job = SimpleNamespace(setup=setup, plan=plan, layout=LAYOUT, resumed=resumed, sums=None)
    return BufferedRounds(cast(Any, job), None, (1.0, 2.0, 3.0), lambda: begun or {})


def stands(engine: BufferedRounds, version: int, asked: dict[int, int]) -> ServerState:
    """Put the engine where a checkpoint after ``version`` updates has it."""
    engine.progress.version, engine.progress.asked = version, asked
    state = ServerState(version, STATE, STATE, strategy=engine.buffers())
    engine.restore(state)
    return state


NODES = {0: 10, 1: 11, 2: 12}


def test_a_hospital_that_stays_away_from_a_resumed_run_does_not_keep_it_from_its_end() -> None:
    """It has answers left and never gives them: the others' last ones are the run's."""
    engine = rounds_of(num_rounds=4, source="seed", resumed=True)
    state = stands(engine, 3, {0: 4, 1: 4, 2: 1})
    engine.begin(cast(Any, Answering(lambda client, number: STATE)), {0: 10, 1: 11})
    assert engine.finished
    engine = rounds_of(num_rounds=4, source="seed", resumed=True)
    state = stands(engine, 3, {0: 3, 1: 3, 2: 3})
    engine.begin(cast(Any, grid := Answering(lambda client, number: STATE)), NODES)
    assert not engine.finished
    assert engine.run(cast(Any, grid), NODES, state, 4).clients == 2
    assert grid.asked == {0: 1, 1: 1, 2: 1}


def test_what_ledgers_show_as_begun_is_not_asked_for_again_with_noise_of_the_system() -> None:
    for begun, over in (({0: 8, 1: 8, 2: 8}, True), ({0: 8, 1: 8, 2: 7}, True), ({0: 6, 1: 5, 2: 8}, False)):
        engine = rounds_of(num_rounds=4, source="system", resumed=True, begun=begun)
        state = stands(engine, 2, {0: 2, 1: 2, 2: 2})
        engine.begin(cast(Any, grid := Answering(lambda client, number: STATE)), NODES)
        assert engine.finished is over
        if not over:
            engine.run(cast(Any, grid), NODES, state, 3)
            assert grid.asked == {0: 1, 1: 1}, "one more of each, and half of a release counts as one"
    engine = rounds_of(num_rounds=4, source="system", resumed=True, begun={0: 8, 1: 8, 2: 8})
    state = stands(engine, 0, {})
    engine.begin(cast(Any, grid), NODES)
    with pytest.raises(RoundAborted, match="round 1: 0 usable answers, 2 needed"):
        engine.run(cast(Any, grid), NODES, state, 1)  # a run without an update has not finished


def test_a_run_ends_where_ledgers_refuse_the_last_answers_and_fails_where_hospitals_do() -> None:
    """A run that is gone on with may have spent some: else it would be stopped there each time, and give no receipt."""
    engine = rounds_of(num_rounds=4, source="seed", resumed=True)
    state = stands(engine, 3, {0: 3, 1: 3, 2: 4})
    engine.begin(cast(Any, grid := Answering(lambda client, number: Error(int(Code.LEDGER), "spent"))), NODES)
    with pytest.raises(NothingLeft):
        engine.run(cast(Any, grid), NODES, state, 4)
    engine = rounds_of(num_rounds=4, source="seed", resumed=True)
    state = stands(engine, 3, {0: 3, 1: 3, 2: 4})
    engine.begin(cast(Any, grid := Answering(lambda client, number: Error(int(Code.REFUSED), "no"))), NODES)
    with pytest.raises(RoundAborted, match="0 usable answers, 2 needed; the first failure: no"):
        engine.run(cast(Any, grid), NODES, state, 4)


class Away:
    """A grid whose nodes come back after so many looks."""

    def __init__(self, looks: int, patience: float) -> None:
        become_a_server()
        self.looks, self.patience, self.ready = looks, patience, list[Message]()

    def get_node_ids(self) -> list[int]:
        self.looks -= 1
        return [] if self.looks >= 0 else [11]

    def is_genuine(self, answer: Message) -> bool:
        return "forged" not in answer.content

    def push_messages(self, messages: Any) -> list[str]:
        return ["name" for _ in messages]

    def pull_messages(self, identifiers: Any) -> list[Message]:
        return self.ready


def test_who_restarts_while_nobody_is_out_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a buffer whose other answers are there, and spent, would be lost because a node is away for a moment."""
    monkeypatch.setattr(medx.federation.arrivals, "AWAY", 0.0)
    for looks, patience, wait, found in ((5, 60.0, True, [1]), (5, 60.0, False, []), (10**9, 0.01, True, [])):
        arrivals = RealArrivals(cast(Any, Away(looks, patience)), NODES, timeout=1)
        assert arrivals.there([0, 1], wait=wait) == found
    assert RealArrivals(cast(Any, Away(10**9, 60.0)), NODES, timeout=1).there([], wait=True) == []


def test_a_forged_answer_takes_no_true_ones_place() -> None:
    grid = Away(0, 0.0)
    arrivals = RealArrivals(cast(Any, grid), NODES, timeout=1)
    arrivals.ask([asked := Asked(1, 1, 0, STATE)])
    message = asked.message(11)
    message.metadata.__dict__["_message_id"] = "name"
    forged, true = (Message(content_of(STATE, 1, 1), reply_to=message) for _ in range(2))
    forged.content["forged"] = MetricRecord()
    grid.ready = [forged, true, true]
    assert arrivals.next().failure is None
    assert not arrivals.at_once()
    arrivals.ask([Asked(1, 2, 0, STATE)])
    grid.ready = [gone := Message(Error(4, "Error: Node Unavailable"), reply_to=message)]
    gone.metadata.__dict__["_src_node_id"] = 1
    failure = arrivals.next().failure
    assert failure is not None
    assert (failure.code, failure.text) == (Code.SILENT, "no answer of client 1 in time: Error: Node Unavailable")
