"""One round between the server and its clients: the plain way, through a Flower strategy."""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from torch import nn

from medx.federation.checkpoint import ServerState
from medx.federation.job import Job
from medx.federation.payload import (
    MOMENTUM,
    State,
    all_finite,
    finite_record,
    from_record,
    momentum_of,
    pack,
    parameters_of,
    signature_of,
    to_record,
    unpack,
    viewed,
    well_formed,
)
from medx.schema import CheckpointError, LedgerError, MedxError

log = logging.getLogger(__name__)
LEDGER_REFUSAL = "LedgerError: "
Signature = dict[str, tuple[str, tuple[int, ...]]]
STRATEGY_BUFFERS = ("m_t", "v_t", "momentum_vector")


class RoundAborted(MedxError):
    """A round that too few clients answered, or too many abstained from; the model stays as it was."""


@dataclass(frozen=True)
class RoundOutcome:
    """The state after a round and what it took. ``steps`` are the releases that each client executed, at the most.

    ``answered`` are the clients that sent something, and so must have entered the round in their ledgers.
    """

    state: State
    steps: dict[int, int]
    clients: int
    abstained: int = 0
    failed: int = 0
    saturated: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    answered: frozenset[int] = frozenset()
    seconds: dict[str, float] = field(default_factory=dict)


class Rounds(Protocol):
    """A way to turn one round's messages into the next state."""

    def momentum_names(self, module: nn.Module) -> list[str]:
        """Parameters whose momentum is part of the state."""
        ...

    def run(self, grid: Grid, nodes: dict[int, int], server: ServerState, number: int) -> RoundOutcome:
        """One round with these clients (client to node); raises RoundAborted."""
        ...

    def buffers(self) -> State:
        """What the server's optimiser must find again after a resume."""
        ...

    def restore(self, server: ServerState) -> None:
        """Put those buffers back."""
        ...


@dataclass(frozen=True)
class Answer:
    """One client's valid answer: its record of tensors and what it says about itself."""

    client: int
    content: RecordDict
    steps: int
    finite: bool
    bytes_up: int


class SampledGrid:
    """The grid as a strategy sees it in one round: only the nodes that were drawn for it."""

    def __init__(self, nodes: list[int]) -> None:
        self._nodes = nodes

    def get_node_ids(self) -> list[int]:
        """The nodes of this round."""
        return self._nodes


class PlainRounds:
    """Updates in the clear, aggregated by the federation's Flower strategy."""

    def __init__(self, job: Job, timeout: float | None) -> None:
        self.job = job
        self.timeout = timeout
        self.strategy: Strategy = job.setup.federation.strategy()

    def momentum_names(self, module: nn.Module) -> list[str]:
        """The trained parameters, where clients share their momentum."""
        trainer = self.job.setup.trainer
        shared = trainer.share_momentum and trainer.optimizer == "sgd" and trainer.momentum > 0
        return [name for name, p in module.named_parameters() if p.requires_grad] if shared else []

    def buffers(self) -> State:
        """The strategy's buffers."""
        return strategy_state(self.strategy)

    def restore(self, server: ServerState) -> None:
        """The strategy's buffers, from a checkpoint."""
        restore_strategy(self.strategy, server.strategy)

    def run(self, grid: Grid, nodes: dict[int, int], server: ServerState, number: int) -> RoundOutcome:
        """Broadcast, train, aggregate."""
        started = time.perf_counter()
        arrays = to_record(parameters_of(server.state))
        sampled = cast(Grid, SampledGrid([nodes[client] for client in sorted(nodes)]))
        messages = list(self.strategy.configure_train(number, arrays, ConfigRecord(), sampled))
        attach_momentum(messages, momentum_of(server.state))
        bytes_down = sum(content_bytes(message.content) for message in messages)
        clients = {node: client for client, node in nodes.items()}
        answers, failed = self.collect(grid, messages, clients, number)
        trained = time.perf_counter()
        usable = [answer for answer in answers if answer.finite]
        abstained = len(answers) - len(usable)
        check_enough(self.job, len(usable), server.abstentions + abstained, failed, number)
        state = self.aggregate(usable, server, number)
        return RoundOutcome(
            state=state,
            steps=self.charged(nodes, answers),
            answered=frozenset(answer.client for answer in answers),
            clients=len(usable),
            abstained=abstained,
            failed=len(failed),
            bytes_up=sum(answer.bytes_up for answer in answers),
            bytes_down=bytes_down,
            seconds={"train": trained - started, "aggregate": time.perf_counter() - trained},
        )

    def charged(self, asked: Iterable[int], answers: list[Answer]) -> dict[int, int]:
        """Steps by client. With privacy a client enters the round before it starts, so all asked count in full."""
        if not self.job.plan.private:
            return {answer.client: answer.steps for answer in answers}
        return {client: self.job.plan.clients[client].steps_per_round for client in asked}

    def collect(
        self, grid: Grid, messages: list[Message], clients: dict[int, int], number: int
    ) -> tuple[list[Answer], list[str]]:
        """Answers of this round, one a client, in the order of clients; and the reasons of those that failed."""
        answers: dict[int, Answer] = {}
        failed: list[str] = []
        wanted = signature_of(messages[0].content.array_records["arrays"]) if messages else {}
        for reply in grid.send_and_receive(messages, timeout=self.timeout):
            if reply.has_error():
                raise_ledger_error(str(reply.error.reason))
                failed.append(str(reply.error.reason))
                continue
            answer = read_answer(reply, clients.get(reply.metadata.src_node_id), number, wanted)
            if answer is None or answer.client in answers:
                log.warning(
                    "round %d: a late, second, foreign or other-shaped answer of node %d was dropped",
                    number,
                    reply.metadata.src_node_id,
                )
                continue
            answers[answer.client] = answer
        missing = len(messages) - len(answers) - len(failed)
        return [answers[client] for client in sorted(answers)], failed + ["no answer in time"] * missing

    def aggregate(self, usable: list[Answer], server: ServerState, number: int) -> State:
        """The strategy's aggregate of the parameters; momentum buffers are always averaged."""
        if not any(self.job.plan.clients[answer.client].num_records for answer in usable):
            return server.state  # only hospitals without a record answered: there is nothing to weigh
        contents = [answer.content for answer in usable]
        for content in contents:
            viewed(content.array_records["arrays"])
        momentum = take_momentum(contents)
        replies = [Message(content, 1, MessageType.TRAIN) for content in contents]
        arrays, _ = self.strategy.aggregate_train(number, replies)
        if arrays is None:
            raise RoundAborted(f"round {number}: the strategy gave no result")
        new = from_record(arrays) | (from_record(momentum) if momentum else {})
        cast_state = {name: new[name].to(tensor.dtype) for name, tensor in server.state.items()}
        if not all_finite(cast_state):
            raise RoundAborted(f"round {number}: the aggregate is not finite")
        return cast_state


def check_enough(
    job: Job, usable: int, abstentions: int, failed: list[str], number: int, *, least: int | None = None
) -> None:
    """Refuse a round that fewer than ``least`` answered (min_clients), and a run that too many abstained from."""
    limit = getattr(job.setup.privacy, "max_abstentions", 0)
    if abstentions > limit:
        raise RoundAborted(
            f"round {number}: {abstentions} updates were not finite, more than privacy.max_abstentions={limit}"
        )
    minimum = min(job.setup.federation.min_clients, job.setup.num_clients) if least is None else least
    if usable < minimum:
        reason = f"; the first failure: {failed[0]}" if failed else ""
        raise RoundAborted(f"round {number}: {usable} usable answers, {minimum} needed{reason}")


def read_answer(reply: Message, client: int | None, number: int, wanted: Signature) -> Answer | None:
    """The answer of this node's client, or None where it belongs to another round or speaks for another client.

    Also None where its tensors are not exactly those that were sent: a name too many would be averaged unseen.
    """
    metrics = reply.content.metric_records["metrics"]
    if client is None or (int(cast(int, metrics["client"])), int(cast(int, metrics["round"]))) != (client, number):
        return None
    arrays = reply.content.array_records["arrays"]
    if signature_of(arrays) != wanted or not well_formed(arrays):
        return None
    finite = bool(metrics["finite"]) and finite_record(arrays)
    return Answer(client, reply.content, int(cast(int, metrics["steps"])), finite, content_bytes(reply.content))


def content_bytes(content: RecordDict) -> int:
    """Bytes of all tensors of a message."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def attach_momentum(messages: list[Message], momentum: State) -> None:
    """Send the shared momentum along with the parameters, in one record of its own content."""
    if not momentum or not messages:
        return
    record = messages[0].content.array_records["arrays"]
    merged = ArrayRecord({**dict(record), **dict(to_record(momentum))})
    for message in messages:
        message.content["arrays"] = merged


def take_momentum(contents: list[RecordDict]) -> ArrayRecord | None:
    """Remove the momentum from the answers and average it, weighted by records like the parameters."""
    taken: list[RecordDict] = []
    for content in contents:
        arrays = content.array_records["arrays"]
        names = [name for name in arrays if name.startswith(MOMENTUM)]
        if not names:
            return None
        taken.append(
            RecordDict({"a": ArrayRecord({n: arrays[n] for n in names}), "m": content.metric_records["metrics"]})
        )
        for name in names:
            del arrays[name]
    return aggregate_arrayrecords(taken, "num-examples")


def raise_ledger_error(reason: str) -> None:
    """A client whose budget does not allow the round ends the run."""
    if LEDGER_REFUSAL in reason:
        raise LedgerError(reason.split(LEDGER_REFUSAL, 1)[1].splitlines()[0])


def strategy_state(strategy: Strategy) -> State:
    """The server optimiser's buffers (FedAdam, FedYogi, FedAvgM) as tensors, for the checkpoint."""
    state: State = {}
    for buffer in STRATEGY_BUFFERS:
        values = getattr(strategy, buffer, None) or {}
        if isinstance(values, list):
            named = {str(place): value for place, value in enumerate(values)}
        else:
            named = {name: part for layout, value in values.items() for name, part in unpack(layout, value).items()}
        state |= {f"{buffer}/{name}": torch.from_numpy(np.array(value)) for name, value in named.items()}
    return state


def restore_strategy(strategy: Strategy, state: State) -> None:
    """Put the buffers of a checkpoint back into a fresh strategy; raises CheckpointError for one of MedX 0.2."""
    for buffer in STRATEGY_BUFFERS:
        named = {name.split("/", 1)[1]: t.numpy() for name, t in state.items() if name.startswith(buffer + "/")}
        if named and buffer == "momentum_vector":
            vectors = [named[str(place)] for place in range(len(named))]
            if len({vector.dtype for vector in vectors}) < len(vectors) or any(v.ndim != 1 for v in vectors):
                raise CheckpointError("resume: the checkpoint keeps the server's momentum as MedX 0.2 did; run it anew")
            setattr(strategy, buffer, vectors)
        elif named:
            setattr(strategy, buffer, pack(named))
