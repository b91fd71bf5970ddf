"""Answers that a round may use, the strategies' memory, and weights that add up to nothing."""

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy
from flwr.supercore.task_identity import TaskIdentity

from medx.federation.checkpoint import ServerState, load_checkpoint, save_checkpoint
from medx.federation.fedavg import FedAvg
from medx.federation.payload import MOMENTUM, from_record, to_array, to_record
from medx.federation.replies import Code
from medx.federation.rounds import (
    PlainRounds,
    RoundAborted,
    SampledGrid,
    restore_strategy,
    strategy_state,
)
from medx.schema import LedgerError

NODES = {0: 10, 1: 11, 2: 12}
SIZES = (30, 10, 60)


def engine(
    *, sizes: tuple[int, ...] = SIZES, private: bool = True, max_abstentions: int = 1, min_clients: int = 2
) -> PlainRounds:
    """Rounds of three clients with one step each."""
    federation = FedAvg(num_clients=3, num_rounds=9, fraction_clients=1.0, min_clients=min_clients, evaluate_every=1)
    clients = [SimpleNamespace(num_records=size, steps_per_round=2) for size in sizes]
    said = {"client_release": None, "shared_noise": None, "max_abstentions": max_abstentions}
    plan = SimpleNamespace(private=private, clients=clients, **said)
    setup = SimpleNamespace(federation=federation, num_clients=3)
    return PlainRounds(cast(Any, SimpleNamespace(setup=setup, plan=plan, sums=None)), None)


def answer(client: int, value: float, *, number: int = 1, node: int | None = None, finite: int = 1) -> Message:
    """A reply of a client whose update is ``value`` everywhere, and whose momentum is ten times that."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    state = {"w": torch.full((2, 3), value), MOMENTUM + "w": torch.full((2, 3), 10 * value)}
    metrics = {"num-examples": SIZES[client], "client": client, "round": number, "steps": 1, "finite": finite}
    content = RecordDict({"arrays": to_record(state), "metrics": MetricRecord(metrics)})
    request = Message(RecordDict(), NODES[client] if node is None else node, "train")
    return Message(content, reply_to=request)


def tampered(layout: str, array: Array, *, instead_of: str | None = None) -> Message:
    """Client 0's answer with an array more, or in the place of one of its own."""
    reply = answer(0, 1.0)
    arrays = reply.content.array_records["arrays"]
    if instead_of is not None:
        del arrays[next(name for name in arrays if name.startswith(instead_of))]
    arrays[layout] = array
    return reply


FALSE = to_array(np.full(6, 999, np.float32))
W, MOMENTUM_W = to_record({"w": torch.zeros(2, 3), MOMENTUM + "w": torch.zeros(2, 3)})


def failure(client: int, reason: str | None, code: int = 2) -> Message:
    """A reply that tells of an error."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    return Message(Error(code, reason), reply_to=Message(RecordDict(), NODES[client], "train"))


def says(**metrics: Any) -> Message:
    """Client 0's answer with other metrics."""
    reply = answer(0, 1.0)
    record = reply.content["metrics"]
    for key, value in metrics.items():
        record[key] = value
    return reply


def holds(**records: Any) -> Message:
    """Client 0's answer with other records, or without."""
    reply = answer(0, 1.0)
    for name, record in records.items():
        del reply.content[name]
        if record is not None:
            reply.content[name] = record
    return reply


class Replies:
    """A grid that has these replies, whatever it is asked."""

    def __init__(self, replies: list[Message]) -> None:
        self.replies = replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        assert len(list(messages)) == 3
        return self.replies


def state_of(value: float = 0.0) -> ServerState:
    state = {"w": torch.full((2, 3), value), MOMENTUM + "w": torch.zeros(2, 3)}
    return ServerState(0, state, {"w": state["w"].clone()})


def run(replies: list[Message], rounds: PlainRounds | None = None) -> Any:
    return (rounds or engine()).run(cast(Any, Replies(replies)), NODES, state_of(), 1)


def test_answers_are_weighed_by_records_and_momentum_with_them() -> None:
    outcome = run([answer(2, 3.0), answer(0, 1.0), answer(1, 2.0)])
    expected = (30 * 1 + 10 * 2 + 60 * 3) / 100
    assert torch.allclose(outcome.state["w"], torch.tensor(expected))
    assert torch.allclose(outcome.state[MOMENTUM + "w"], torch.tensor(10 * expected))
    assert (outcome.clients, outcome.failed, outcome.abstained) == (3, 0, 0)


def test_the_order_of_arrival_does_not_matter_to_the_bit() -> None:
    values = {0: 0.1, 1: 0.7, 2: 1 / 3}
    states = [run([answer(i, values[i]) for i in order]).state for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0))]
    assert all(torch.equal(state["w"], states[0]["w"]) for state in states)


FORMS = ("late,second,for another,unknown node,momentum,more,shape,type,length,no array,header", "float,list,nan")
FORMS += ("below zero,large,inf,no metrics,few metrics,other metrics,no arrays,other arrays,empty arrays,nothing",)


@pytest.mark.parametrize(
    "intruder",
    [
        answer(0, 100.0, number=0),  # late, of the round before
        answer(1, 100.0),  # the second of a client
        answer(1, 100.0, node=10),  # a node that speaks for another client
        answer(1, 100.0, node=99),  # a node that was never asked
        tampered(MOMENTUM + W, FALSE),  # averaged as momentum, it would overwrite the parameter
        tampered('{"more":[6]}', FALSE),
        tampered('{"w":[3,2]}', FALSE, instead_of=W),
        tampered(W, to_array(np.full(6, 999.0)), instead_of=W),  # float64
        tampered(W, Array("float32", (6,), FALSE.stype, to_array(np.ones(3, np.float32)).data), instead_of=W),
        tampered(W, Array("float32", (6,), FALSE.stype, b"none"), instead_of=W),
        tampered(W, Array("float32", (6,), FALSE.stype, FALSE.data.replace(b"'<f4',", b"'<f4'( ")), instead_of=W),
        says(client=0.0),
        says(client=[0]),
        says(round=math.nan),
        says(round=-1),
        says(client=2**62),
        says(finite=math.inf),
        holds(metrics=None),
        holds(metrics=MetricRecord({"client": 0})),
        holds(metrics=ConfigRecord({"client": "0", "round": "1"})),
        holds(arrays=None),
        holds(arrays=ConfigRecord()),
        holds(arrays=ArrayRecord()),
        holds(arrays=None, metrics=None),
    ],
    ids=[form for forms in FORMS for form in forms.split(",")],
)
def test_what_is_no_answer_of_this_round_is_dropped_and_told(
    intruder: Message, caplog: pytest.LogCaptureFixture
) -> None:
    clean = run([answer(1, 2.0), answer(2, 3.0)])
    with caplog.at_level(logging.WARNING):
        outcome = run([answer(1, 2.0), intruder, answer(2, 3.0)])
    assert torch.equal(outcome.state["w"], clean.state["w"])
    assert (outcome.clients, outcome.failed) == (2, 1)  # client 0 did not answer
    assert "was dropped" in caplog.text


def test_abstentions_are_counted_and_end_the_run_beyond_the_limit() -> None:
    not_a_number = answer(1, float("nan"))  # its own flag says finite
    outcome = run([answer(0, 1.0), not_a_number, answer(2, 1.0)])
    assert torch.equal(outcome.state["w"], torch.ones(2, 3))
    assert (outcome.clients, outcome.abstained) == (2, 1)
    assert outcome.steps == {0: 2, 1: 2, 2: 2}  # it did enter the round, so it has spent it
    with pytest.raises(
        RoundAborted, match=r"1 updates were not finite or beyond the grid, more than privacy.max_abstentions=0"
    ):
        run([answer(0, 1.0), answer(1, 0.0, finite=0), answer(2, 1.0)], engine(max_abstentions=0))


def test_without_privacy_an_update_that_is_not_finite_is_left_out_and_ends_nothing() -> None:
    rounds = engine(private=False)
    rounds.job.plan.max_abstentions = None  # type: ignore[misc]
    outcome = run([answer(0, 1.0), answer(1, float("inf")), answer(2, 1.0)], rounds)
    assert (outcome.clients, outcome.abstained) == (2, 1)
    diverged = "round 1: 3 updates are not finite .the training has diverged; .*: 0 usable answers, 2 needed$"
    with pytest.raises(RoundAborted, match=diverged):
        run([answer(client, float("nan")) for client in range(3)], rounds)


def test_failures_down_to_the_minimum() -> None:
    outcome = run([answer(0, 1.0), failure(1, "RuntimeError: no power"), answer(2, 1.0)])
    assert (outcome.clients, outcome.failed) == (2, 1)
    with pytest.raises(RoundAborted, match=r"1 usable answers, 2 needed; the first failure: RuntimeError: no power"):
        run([answer(0, 1.0), failure(1, "RuntimeError: no power")])


def test_a_client_whose_ledger_refuses_drops_out_and_the_run_ends_where_it_cannot_go_on_for_that() -> None:
    spent = "LedgerError: budget=1 would be exceeded"
    outcome = run([answer(0, 1.0), failure(1, spent, Code.LEDGER), answer(2, 1.0)])
    assert (outcome.clients, outcome.failed) == (2, 1)
    with pytest.raises(LedgerError, match=r"^budget=1 would be exceeded$"):
        run([answer(0, 1.0), failure(1, spent, Code.LEDGER), failure(2, spent, Code.LEDGER)])
    with pytest.raises(RoundAborted, match="1 usable answers, 3 needed; the first failure: a fire"):  # without, too
        run([answer(0, 1.0), failure(1, "a fire"), failure(2, spent, Code.LEDGER)], engine(min_clients=3))


@pytest.mark.parametrize("code", [0, 2, -1, 999, 1001, 1999, 2000, 2**62])
@pytest.mark.parametrize(
    "text", ["LedgerError: budget=1 would be exceeded", "AbstainedError", None, "\n", "\x1b[2J" * 999]
)
def test_a_text_steers_nothing(code: int, text: str | None) -> None:
    outcome = run([answer(0, 1.0), failure(1, text, code), answer(2, 1.0)], engine(max_abstentions=0))
    assert (outcome.clients, outcome.failed, outcome.abstained) == (2, 1, 0)
    with pytest.raises(RoundAborted, match="1 usable answers, 2 needed") as ended:
        run([answer(0, 1.0), failure(1, text, code)])
    assert len(str(ended.value)) < 500
    assert str(ended.value).isprintable()


def test_a_failure_of_a_node_that_was_not_asked_counts_for_nobody() -> None:
    foreign = failure(1, "budget=1", Code.LEDGER)
    foreign.metadata.__dict__["_src_node_id"] = 99
    outcome = run([answer(0, 1.0), foreign, answer(1, 1.0), failure(1, "later"), answer(2, 1.0)])
    assert (outcome.clients, outcome.failed) == (3, 0)


def test_what_a_client_says_of_its_records_and_steps_weighs_nothing() -> None:
    honest = run([answer(0, 1.0), answer(1, 2.0), answer(2, 3.0)], engine(private=False))
    loud = says(**{"num-examples": 10**9, "steps": 10**9, "more": [1.0, 2.0]})
    loud.content["second"] = ArrayRecord({W: FALSE})
    outcome = run([loud, answer(1, 2.0), answer(2, 3.0)], engine(private=False))
    assert torch.equal(outcome.state["w"], honest.state["w"])
    assert torch.equal(outcome.state[MOMENTUM + "w"], honest.state[MOMENTUM + "w"])
    assert outcome.steps == honest.steps == {0: 2, 1: 2, 2: 2}


def test_without_privacy_only_steps_that_were_answered_count() -> None:
    outcome = run([answer(0, 1.0), failure(1, "RuntimeError: no power"), answer(2, 1.0)], engine(private=False))
    assert outcome.steps == {0: 2, 2: 2}


def test_hospitals_without_a_record_leave_the_model_alone() -> None:
    outcome = run([answer(0, 5.0), answer(1, 5.0)], engine(sizes=(0, 0, 60)))
    assert torch.equal(outcome.state["w"], torch.zeros(2, 3))


@pytest.mark.parametrize("name", ["FedAdam", "FedYogi", "FedAvgM"])
def test_a_strategy_goes_on_from_its_saved_buffers(name: str, tmp_path: Path) -> None:
    def one_round(used: Any, state: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
        used.configure_train(number, to_record(state), ConfigRecord(), SampledGrid([10, 11]))
        replies = []
        for client in (0, 1):
            noise = torch.Generator().manual_seed(10 * number + client)
            moved = {n: t + torch.randn(t.shape, generator=noise) for n, t in state.items()}
            content = RecordDict({"arrays": to_record(moved), "metrics": MetricRecord({"num-examples": 1})})
            replies.append(Message(content, 1, "train"))
        arrays, _ = used.aggregate_train(number, replies)
        return from_record(arrays)

    def fresh() -> Any:
        more = {"server_momentum": 0.9} if name == "FedAvgM" else {}
        return getattr(strategy, name)(fraction_train=1.0, min_train_nodes=1, min_available_nodes=1, **more)

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    # Names in another order than the alphabet's, and two shapes, so that a mixed-up order shows.
    state = {"z": torch.zeros(2, 3), "a": torch.zeros(4), "m": torch.zeros(1)}
    first = fresh()
    for number in (1, 2):
        state = one_round(first, state, number)
    saved = ServerState(2, state, state | {}, strategy_state(first))
    saved.average = {n: t.clone() for n, t in state.items()}
    save_checkpoint(tmp_path, saved, {})
    loaded, _ = load_checkpoint(tmp_path)
    assert list(loaded.state) == ["z", "a", "m"]
    resumed, forgetful = fresh(), fresh()
    restore_strategy(resumed, loaded.strategy)
    expected = one_round(first, state, 3)
    found, lost = one_round(resumed, loaded.state, 3), one_round(forgetful, loaded.state, 3)
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    assert not all(np.allclose(lost[n], expected[n]) for n in expected)
