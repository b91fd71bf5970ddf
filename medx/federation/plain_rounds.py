"""One round between the server and its clients: the plain way, through a Flower strategy."""

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from medx.federation.checkpoint import ServerState
from medx.federation.flower import (
    PayloadError,
    aggregate,
    from_record,
    restore_strategy,
    show,
    strategy_state,
    to_record,
    wire_bytes,
)
from medx.federation.replies import Failure, ReplyError, ask, first_of, integer_of, refuse_exhausted
from medx.federation.setup import Job
from medx.schema import MedxError
from medx.trainer.state import ModelState, Tensors

DIVERGED = "the training has diverged; try a smaller learning rate"


class RoundAborted(MedxError):
    """A round that too few clients answered, or too many abstained from; the model stays as it was."""


@dataclass(frozen=True)
class RoundOutcome:
    """The state after a round and what it took. ``steps`` are the releases that each client executed, at the most.

    ``answered`` are the clients that sent something, each as often as it did: so often it must be in their ledgers.
    """

    state: ModelState
    steps: dict[int, int]
    clients: int
    abstained: int = 0
    failed: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    answered: Collection[int] = ()
    seconds: dict[str, float] = field(default_factory=dict)


class PlainRounds:
    """Updates in the clear, aggregated by the federation's Flower strategy."""

    def __init__(self, job: Job, timeout: float | None) -> None:
        self.job = job
        self.timeout = timeout
        self.strategy = job.setup.federation.strategy()
        self.least = 1

    @property
    def finished(self) -> bool:
        """Whether it ends before its last round: never."""
        return False

    def buffers(self) -> Tensors:
        """The strategy's buffers."""
        return strategy_state(self.strategy, self.job.layout)

    def restore(self, server: ServerState) -> None:
        """The strategy's buffers, from a checkpoint."""
        restore_strategy(self.strategy, server.strategy, self.job.layout)

    def run(self, grid: Grid, nodes: dict[int, int], server: ServerState, number: int) -> RoundOutcome:
        """Broadcast, train, aggregate."""
        started = time.perf_counter()
        show(self.strategy, number, server.state)
        answers, failed = self.collect(grid, nodes, server.state, number)
        trained = time.perf_counter()
        usable = {client: state for client, state in answers.items() if state is not None}
        abstained = len(answers) - len(usable)
        before = server.abstentions
        check_enough(self.job, len(usable), abstained, failed, number, asked=len(nodes), before=before)
        state = self.aggregate(usable, server, number)
        return RoundOutcome(
            state=state,
            steps=self.charged(nodes, answers),
            answered=tuple(answers),
            clients=len(usable),
            abstained=abstained,
            failed=len(failed),
            # The figure is that of the parameters: the momentum that comes with them has never been counted in it.
            bytes_up=wire_bytes(server.state.without_momentum()) * len(answers),
            bytes_down=wire_bytes(server.state) * len(nodes),
            seconds={"train": trained - started, "aggregate": time.perf_counter() - trained},
        )

    def charged(self, asked: Iterable[int], answered: Iterable[int]) -> dict[int, int]:
        """Planned steps by client. With privacy a client enters the round before it starts, so all asked count."""
        counted = asked if self.job.plan.private else answered
        return {client: self.job.plan.clients[client].steps_per_round for client in counted}

    def collect(
        self, grid: Grid, nodes: dict[int, int], state: ModelState, number: int
    ) -> tuple[dict[int, ModelState | None], list[Failure]]:
        """Answers of this round by client, None of one that abstains; and the failures of the others."""
        content = RecordDict({"arrays": to_record(state), "config": ConfigRecord({"server-round": number})})
        messages = [Message(content, nodes[client], MessageType.TRAIN) for client in sorted(nodes)]

        def read(client: int, content: RecordDict) -> ModelState | None:
            return read_answer(content, client, number, state)

        return ask(grid, messages, {node: client for client, node in nodes.items()}, self.timeout, read)

    def aggregate(self, usable: dict[int, ModelState], server: ServerState, number: int) -> ModelState:
        """The strategy's aggregate of the parameters; momentum is always averaged.

        Answers weigh as much as the plan says that their hospitals have records, whatever they say themselves.
        """
        weighted = [(state, self.job.plan.clients[client].num_records) for client, state in usable.items()]
        total = sum(weight for _, weight in weighted)
        if not total:
            return server.state  # only hospitals without a record answered: there is nothing to weigh
        momentum = None
        for state, weight in weighted:
            if state.momentum is not None:
                part = state.momentum * (weight / total)
                momentum = part if momentum is None else np.add(momentum, part, out=momentum)
        return followed(self.strategy, number, weighted, momentum)


def followed(
    strategy: Strategy, number: int, answers: list[tuple[ModelState, int]], momentum: np.ndarray | None
) -> ModelState:
    """Where the strategy goes, given (state, weight), with this momentum; raises RoundAborted if nowhere."""
    parameters = aggregate(strategy, number, answers)
    if parameters is None:
        raise RoundAborted(f"round {number}: the strategy gave no result")
    new = ModelState(answers[0][0].layout, parameters, momentum)
    if not new.finite:
        raise RoundAborted(f"round {number}: the aggregate is not finite ({DIVERGED})")
    return new


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


def read_answer(content: RecordDict, client: int, number: int, sent: ModelState) -> ModelState | None:
    """The answer of one client, None where it is not finite; raises ReplyError where it is none to this question.

    It may belong to another round, speak for another client, or have other tensors than exactly those that were sent: a
    name too many would be averaged unseen.
    """
    metrics, arrays = content.get("metrics"), content.get("arrays")
    if not isinstance(metrics, MetricRecord):
        raise ReplyError(f"round {number}: an answer of client {client} without metrics")
    said = integer_of(metrics, "client"), integer_of(metrics, "round")
    if said != (client, number):
        raise ReplyError(f"round {number}: client {client} answered as client {said[0]} in round {said[1]}")
    try:
        state = from_record(arrays, sent.layout, momentum=sent.momentum is not None)
    except PayloadError as error:
        raise ReplyError(f"round {number}: client {client} answered with other tensors than it was sent") from error
    return state if integer_of(metrics, "finite") and state.finite else None
