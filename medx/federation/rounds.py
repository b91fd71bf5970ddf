"""One round between the server and its clients: the plain way, through a Flower strategy."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
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
from medx.federation.replies import Failure, ReplyError, ask, first_of, integer_of, refuse_exhausted
from medx.schema import CheckpointError, MedxError

Signature = dict[str, tuple[str, tuple[int, ...]]]
DIVERGED = "the training has diverged; try a smaller learning rate"
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
    bytes_up: int = 0
    bytes_down: int = 0
    answered: frozenset[int] = frozenset()
    seconds: dict[str, float] = field(default_factory=dict)


class Rounds(Protocol):
    """A way to turn one round's messages into the next state."""

    @property
    def least(self) -> int:
        """Clients below which no round can end well, so that none is begun."""
        ...

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
    """One client's valid answer: its tensors, and whether they may be used."""

    client: int
    arrays: ArrayRecord
    finite: bool


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
        self.least = 1

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
        before = server.abstentions
        check_enough(self.job, len(usable), abstained, failed, number, asked=len(messages), before=before)
        state = self.aggregate(usable, server, number)
        return RoundOutcome(
            state=state,
            steps=self.charged(nodes, answers),
            answered=frozenset(answer.client for answer in answers),
            clients=len(usable),
            abstained=abstained,
            failed=len(failed),
            bytes_up=sum(record_bytes(answer.arrays) for answer in answers),
            bytes_down=bytes_down,
            seconds={"train": trained - started, "aggregate": time.perf_counter() - trained},
        )

    def charged(self, asked: Iterable[int], answers: list[Answer]) -> dict[int, int]:
        """Planned steps by client. With privacy a client enters the round before it starts, so all asked count."""
        counted = asked if self.job.plan.private else [answer.client for answer in answers]
        return {client: self.job.plan.clients[client].steps_per_round for client in counted}

    def collect(
        self, grid: Grid, messages: list[Message], clients: dict[int, int], number: int
    ) -> tuple[list[Answer], list[Failure]]:
        """Answers of this round, one a client, in the order of clients; and the failures of the others."""
        wanted = signature_of(messages[0].content.array_records["arrays"]) if messages else {}

        def read(client: int, content: RecordDict) -> Answer:
            return read_answer(content, client, number, wanted)

        answers, failed = ask(grid, messages, clients, self.timeout, read)
        return list(answers.values()), failed

    def aggregate(self, usable: list[Answer], server: ServerState, number: int) -> State:
        """The strategy's aggregate of the parameters; momentum buffers are always averaged.

        Answers weigh as much as the plan says that their hospitals have records, whatever they say themselves.
        """
        records = {answer.client: self.job.plan.clients[answer.client].num_records for answer in usable}
        if not any(records.values()):
            return server.state  # only hospitals without a record answered: there is nothing to weigh
        contents = [
            RecordDict(
                {
                    "arrays": viewed(answer.arrays),
                    "metrics": MetricRecord({"num-examples": records[answer.client]}),
                }
            )
            for answer in usable
        ]
        momentum = take_momentum(contents)
        replies = [Message(content, 1, MessageType.TRAIN) for content in contents]
        arrays, _ = self.strategy.aggregate_train(number, replies)
        if arrays is None:
            raise RoundAborted(f"round {number}: the strategy gave no result")
        new = from_record(arrays) | (from_record(momentum) if momentum else {})
        cast_state = {name: new[name].to(tensor.dtype) for name, tensor in server.state.items()}
        if not all_finite(cast_state):
            raise RoundAborted(f"round {number}: the aggregate is not finite ({DIVERGED})")
        return cast_state


def check_enough(
    job: Job,
    usable: int,
    abstained: int,
    failed: Sequence[Failure],
    number: int,
    *,
    asked: int,
    before: int,
    least: int | None = None,
) -> None:
    """Refuse a round that fewer than ``least`` answered (min_clients), and a run that too many abstained from.

    ``abstained`` did so in this round, ``before`` in earlier ones.
    A budget that is spent is told as such, with a LedgerError, where it is what the round lacks.
    """
    limit = job.plan.max_abstentions
    if limit is not None and before + abstained > limit:
        raise RoundAborted(
            f"round {number}: {before + abstained} updates were not finite or beyond the grid, more than "
            f"privacy.max_abstentions={limit}"
        )
    minimum = min(job.setup.federation.min_clients, job.setup.num_clients) if least is None else least
    if usable < minimum:
        refuse_exhausted(asked, failed, minimum)
        beyond = "" if job.sums is None else " or beyond the grid"
        diverged = f"{min(abstained, asked)} updates are not finite{beyond} ({DIVERGED}): " if abstained else ""
        raise RoundAborted(f"round {number}: {diverged}{usable} usable answers, {minimum} needed{first_of(failed)}")


def read_answer(content: RecordDict, client: int, number: int, wanted: Signature) -> Answer:
    """The answer of one client; raises ReplyError where it belongs to another round or speaks for another client.

    And where its tensors are not exactly those that were sent: a name too many would be averaged unseen.
    """
    metrics, arrays = content.get("metrics"), content.get("arrays")
    if not isinstance(metrics, MetricRecord) or not isinstance(arrays, ArrayRecord):
        raise ReplyError(f"round {number}: an answer of client {client} without metrics and arrays")
    said = integer_of(metrics, "client"), integer_of(metrics, "round")
    if said != (client, number):
        raise ReplyError(f"round {number}: client {client} answered as client {said[0]} in round {said[1]}")
    if signature_of(arrays) != wanted or not well_formed(arrays):
        raise ReplyError(f"round {number}: client {client} answered with other tensors than it was sent")
    return Answer(client, arrays, bool(integer_of(metrics, "finite")) and finite_record(arrays))


def content_bytes(content: RecordDict) -> int:
    """Bytes of all tensors of a message."""
    return sum(record_bytes(record) for record in content.array_records.values())


def record_bytes(record: ArrayRecord) -> int:
    """Bytes of a record's tensors."""
    return sum(len(array.data) for array in record.values())


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
