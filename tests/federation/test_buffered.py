"""Buffered asynchronous averaging against a hand-written event loop, and what hospitals and clocks make of it."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from hydra import compose, initialize_config_dir

from medx.attacks.audit import unit_of
from medx.configuration import plain
from medx.federation.arrivals import Asked, RealArrivals
from medx.federation.checkpoint import load_checkpoint
from medx.federation.flower import become_a_server, name_message, to_array, to_record
from medx.federation.hospital import Hospital
from medx.federation.replies import Code
from medx.runtime.in_process import InProcessGrid
from medx.schema import CONF, ConfigError
from medx.trainer.local_training import ClientUpdate
from medx.trainer.state import ModelLayout, ModelState
from tests.audit import recompute
from tests.program import TINY, Ran, call

BUFFERED = ("federation=fedbuff", "federation.num_clients=4", "federation.num_rounds=4", "federation.buffer_size=2")
SPEEDS = "runtime.speeds=[1,1.5,1,7]"
RELEASES = 4


@dataclass
class Answer:
    """What a hospital was sent as its release ``number``, and what it answered."""

    began: ModelState
    ended: ModelState
    records: int


@contextmanager
def answers(patch: pytest.MonkeyPatch) -> Iterator[dict[tuple[int, int], Answer]]:
    """All answers while the block runs, by client and number."""
    found: dict[tuple[int, int], Answer] = {}
    train = Hospital.train

    def listening(self: Hospital, state: ModelState, number: int) -> ClientUpdate:
        update = train(self, state, number)
        assert (self.client, number) not in found, "nobody is asked for a release twice"
        found[self.client, number] = Answer(state, update.state, self.plan.num_records)
        return update

    with patch.context() as inner:
        inner.setattr(Hospital, "train", listening)
        yield found


def run(folder: Path, *overrides: str) -> Ran:
    ran = call(folder, *overrides)
    assert ran.code == 0, ran.err
    return ran


def final(ran: Ran) -> ModelState:
    return load_checkpoint(ran.folder / "checkpoints").state


def naive(found: dict[tuple[int, int], Answer], initial: ModelState, staleness: float) -> tuple[np.ndarray, int, float]:
    """The model's parameters, how many updates there were, and when the last was: one event after the other."""
    speeds, size, least = [1.0, 1.5, 1.0, 7.0], 2, 2
    model, version, now = initial.parameters.astype(float), 0, 0.0
    events: list[tuple[float, int, int, int]] = []  # when, who, its number, from which version
    asked, taken = dict.fromkeys(range(4), 0), []

    def left() -> int:
        return len({event[1] for event in events} | {client for client in range(4) if asked[client] < RELEASES})

    while left() >= max(size, least) or taken:
        if not events or min(events)[0] > now:  # all of this moment have been dealt with
            for client in range(4):
                if client not in {event[1] for event in events} and asked[client] < RELEASES:
                    asked[client] += 1
                    events.append((now + speeds[client], client, asked[client], version))
        event = min(events)
        events.remove(event)
        now = event[0]
        taken.append(event)
        waits = bool(events) and min(events)[0] > now
        if len(taken) == size or (left() < least and (waits or not events)):
            total = sum(found[client, number].records for _, client, number, _ in taken)
            change = np.zeros_like(model)
            for _, client, number, begun in taken:
                answer = found[client, number]
                weight = answer.records / total * (1 + version - begun) ** -staleness
                change += weight * (answer.ended.parameters.astype(float) - answer.began.parameters)
            model = (model + change).astype(np.float32).astype(float)
            version, taken = version + 1, []
    return model, version, now


@pytest.mark.parametrize("staleness", [0.0, 0.5, 3.0])
def test_it_is_the_event_loop_that_one_writes_by_hand(
    staleness: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answers(monkeypatch) as found:
        ran = run(tmp_path, *BUFFERED, SPEEDS, f"federation.staleness={staleness}")
    model, updates, now = naive(found, found[0, 1].began, staleness)
    assert (len(ran.result.rounds), ran.result.rounds[-1].seconds["virtual"]) == (updates, now)
    assert now == 6.0, "when the others have answered four times: nobody waits for who is slow"
    np.testing.assert_allclose(final(ran).parameters, model, rtol=0, atol=1e-6)
    wrong, _, _ = naive(found, found[0, 1].began, staleness + 1)
    assert np.abs(final(ran).parameters - wrong).max() > 1e-5, "another weight is seen"


def test_where_all_are_alike_and_all_are_awaited_it_is_federated_averaging(tmp_path: Path) -> None:
    shape = ("federation.num_clients=4", "federation.num_rounds=3", "privacy=none", "trainer.expected_batch_size=null")
    plain = final(run(tmp_path / "fedavg", *shape))
    buffered = run(tmp_path / "fedbuff", *shape, "federation=fedbuff", "federation.buffer_size=4")
    assert len(buffered.result.rounds) == 3
    np.testing.assert_allclose(final(buffered).flat(), plain.flat(), rtol=0, atol=2e-6)


def test_the_result_depends_on_no_machine_and_a_resumed_run_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", *BUFFERED, SPEEDS, "runtime.workers=1")
    other = run(tmp_path / "other", *BUFFERED, SPEEDS, "runtime.workers=3")
    assert final(whole).hash() == final(other).hash()
    assert whole.result.config_hash == other.result.config_hash
    alike = run(tmp_path / "alike", *BUFFERED)
    assert alike.result.config_hash != whole.result.config_hash, "speeds move numbers"

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("medx.screen.Screen.on_round", lambda self, record: stop() if record.round == 3 else None)
        assert call(tmp_path / "stopped", *BUFFERED, SPEEDS).code == 130
    resumed = call(tmp_path / "stopped", f"resume={tmp_path / 'stopped'}", "runtime.workers=2", base=())
    assert resumed.code == 0, resumed.err
    assert final(resumed).hash() == final(whole).hash()
    assert [each.seconds["virtual"] for each in resumed.result.rounds] == [
        each.seconds["virtual"] for each in whole.result.rounds
    ]
    assert resumed.result.privacy.clients == whole.result.privacy.clients, "nothing is spent twice"


def test_noise_of_the_system_is_spent_once_where_a_run_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be drawn again, so what was out when the run was stopped is lost, and the next release is asked for."""

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    own = (*BUFFERED, SPEEDS, "noise=system")
    with monkeypatch.context() as patch:
        patch.setattr("medx.screen.Screen.on_round", lambda self, record: stop() if record.round == 2 else None)
        stopped = call(tmp_path, *own)
    assert stopped.code == 130
    before = {client.client: client.steps for client in stopped.result.privacy.clients}
    resumed = call(tmp_path, f"resume={tmp_path}", base=())
    assert resumed.code == 0, resumed.err
    after = {client.client: client.steps for client in resumed.result.privacy.clients}
    assert all(before[client] <= after[client] <= RELEASES * 2 for client in after)
    assert after[0] == RELEASES * 2


def test_each_hospital_has_spent_what_it_executed(tmp_path: Path) -> None:
    result = run(tmp_path, *BUFFERED, SPEEDS, "privacy.epsilon=3").result
    steps = [client.steps for client in result.privacy.clients]
    assert steps[3] < steps[0] == 4 * 2, "the slow one has done less, and spent less"
    for client in result.privacy.clients:
        assert client.epsilon == pytest.approx(recompute([client], result.privacy.delta)["pld"], rel=0.02)
    epsilons = [client.epsilon or 0.0 for client in result.privacy.clients]
    assert epsilons[3] < epsilons[0]
    assert result.privacy.epsilon == pytest.approx(max(epsilons))
    assert max(epsilons) <= 3


def test_a_hospital_that_is_asked_for_more_than_its_plan_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that lies: whatever number it names, a hospital's own plan and ledger bound what it does."""
    said: list[str] = []
    collect = InProcessGrid.send_and_receive

    def lying(self: Any, messages: Any, *, timeout: float | None = None) -> Any:
        given = list(messages)
        yield from collect(self, given, timeout=timeout)
        train = [each for each in given if each.metadata.message_type == MessageType.TRAIN]
        if not train or said:
            return
        (array,) = train[0].content["arrays"].values()
        (name,) = train[0].content["arrays"]
        for number in (RELEASES + 1, *[1] * RELEASES):  # beyond the plan; and the first again, from other models
            other = ArrayRecord({name: to_array(np.asarray(array.numpy()) + np.float32(0.1 * (len(said) + 1)))})
            content = RecordDict({"arrays": other, "config": ConfigRecord({"server-round": number})})
            (reply,) = collect(self, [Message(content, train[0].metadata.dst_node_id, MessageType.TRAIN)])
            said.append(str(reply.error.reason) if reply.has_error() else "answered")

    with monkeypatch.context() as patch:
        patch.setattr(InProcessGrid, "send_and_receive", lying)
        momentum = ("trainer.share_momentum=false", "trainer.momentum=0")
        ran = run(tmp_path, *BUFFERED, *momentum, "privacy.spare_rounds=0", "privacy.epsilon=3")
    assert "round and attempt [5] of 4 rounds" in said[0]
    assert said[1:RELEASES] == ["answered"] * (RELEASES - 1), "each of these is entered in its ledger"
    assert said[RELEASES].startswith("LedgerError"), "and with what it was asked before its plan is spent"
    assert ran.result.status == "finished", "the others go on"
    first = ran.result.privacy.clients[0]
    assert first.steps == RELEASES * 2
    assert max(client.epsilon or 0.0 for client in ran.result.privacy.clients) <= 3


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("privacy=central_dp",), "federation=fedbuff: with privacy=central_dp"),
        (("aggregation=secure",), "federation=fedbuff: with aggregation=secure"),
        (("federation.buffer_size=9",), "federation.buffer_size=9"),
        (("federation.fraction_clients=0.5",), "asks whoever is free"),
        (("attack=standard",), "attack=standard: federation=fedbuff: an audit hears rounds"),
        (("runtime=ray", "runtime.num_cpus=1", "runtime.timeout=9"), "runtime.timeout=9: federation=fedbuff goes by a"),
        (("runtime.speeds=[1,2]",), "runtime.speeds=[1.0, 2.0]: accepted: 4 numbers"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(
    overrides: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    assert says in call(tmp_path / "refused", *BUFFERED, *overrides).refusal


def test_a_sum_that_needs_everybody_is_refused(tmp_path: Path) -> None:
    base = tuple(part for part in TINY if "expected_batch_size" not in part)
    said = call(tmp_path / "refused", *BUFFERED, "privacy=distributed_dp", base=base).refusal
    assert "federation=fedbuff: with privacy=distributed_dp noise is of a sum" in said


class Wire:
    """A grid whose answers come when the test says so."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.ready: list[Message] = []
        self.names = map(str, itertools.count())

    def push_messages(self, messages: Any) -> list[str]:
        names = []
        for message in messages:
            names.append(next(self.names))
            name_message(message, names[-1])
            self.sent.append(message)
        return names

    def pull_messages(self, identifiers: Any) -> list[Message]:
        ready, self.ready = self.ready, []
        return ready

    def is_genuine(self, answer: Message) -> bool:
        return answer.has_error() or "forged" not in answer.content


def answer_to(message: Message, client: int, number: int, *, value: float = 1.0, forged: bool = False) -> Message:
    state = ModelState(LAYOUT, np.full(2, value, np.float32))
    metrics = MetricRecord({"num-examples": 1, "client": client, "round": number, "steps": 1, "finite": 1})
    content = RecordDict({"arrays": to_record(state), "metrics": metrics})
    if forged:
        content["forged"] = ConfigRecord()
    return Message(content, reply_to=message)


LAYOUT = ModelLayout((("w", (2,)),), np.dtype("float32"))


def test_answers_of_machines_count_once_in_the_order_in_which_they_come() -> None:
    become_a_server()
    wire = Wire()
    arrivals = RealArrivals(wire, {0: 10, 1: 11, 2: 12, 3: 13}, timeout=0.4)  # type: ignore[arg-type]
    state = ModelState(LAYOUT, np.zeros(2, np.float32))
    arrivals.ask(Asked(client, 1, 0, state) for client in range(4))
    sent = wire.sent
    assert all(message.metadata.ttl == 0.4 for message in sent)
    good = answer_to(sent[2], 2, 1)
    refused = Message(Error(int(Code.LEDGER), "spent"), reply_to=sent[1])
    wire.ready = [good, good, answer_to(sent[0], 0, 1, forged=True), refused]
    first, second, third = (arrivals.next() for _ in range(3))
    assert (first.asked.client, first.failure) == (2, None)
    assert first.state is not None
    assert first.state.parameters.tolist() == [1.0, 1.0]
    assert [(each.asked.client, each.failure and each.failure.code) for each in (second, third)] == [
        (0, Code.MALFORMED),
        (1, Code.LEDGER),
    ]
    wire.ready = [answer_to(sent[3], 3, 2)]  # of another release than it was asked for
    assert arrivals.next().failure.code == Code.MALFORMED  # type: ignore[union-attr]
    arrivals.ask([Asked(0, 2, 1, state)])
    silent = arrivals.next()
    assert (silent.asked.client, silent.failure and silent.failure.code) == (0, Code.SILENT)
    wire.ready = [answer_to(sent[4], 0, 2)]
    arrivals.ask([Asked(1, 2, 1, state)])
    assert arrivals.next().asked.client == 1, "what comes late is dropped"


def test_an_audit_of_it_is_refused() -> None:
    """It would take for a release what is none, and find nothing against a claim."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = plain(compose("config", ["federation=fedbuff"]))
    with pytest.raises(ConfigError, match="federation=fedbuff: an audit hears rounds"):
        unit_of({key: value for key, value in config.items() if key != "resume"})
