"""Rounds whose server sees one sum: decode it, then take a step (gradients) or hand the mean to the strategy."""

import logging
import time
from collections.abc import Iterable, Sequence

import numpy as np
from flwr.serverapp import Grid

from medx.aggregation.ring import decode, encode
from medx.aggregation.wire import ProtocolError
from medx.federation.checkpoint import ServerState
from medx.federation.clipped_updates import ClippedUpdates
from medx.federation.exchange import Attempt, Summed, plain_sum, secure_sum
from medx.federation.flower import restore_strategy, show, strategy_state
from medx.federation.ledgers import server_keeps
from medx.federation.plain_rounds import RoundAborted, RoundOutcome, check_enough, followed
from medx.federation.prepared import Prepared
from medx.federation.replies import Code, Failure, first_of, refuse_exhausted
from medx.federation.setup import Job
from medx.federation.sums import CLIP, WEIGHT, Position, attempts_of, sum_plan
from medx.trainer.state import ModelState, Tensors

log = logging.getLogger(__name__)
TRIES = 3  # attempts at a round in one go: what fails so often waits for a person


class SumRounds:
    """The engine of ``aggregation=secure``, and of distributed or central noise with a trusted aggregator."""

    def __init__(self, job: Job, prepared: Prepared | None, timeout: float | None) -> None:
        self.job = job
        self.plan = sum_plan(job)
        self.timeout = timeout
        self.strategy = job.setup.federation.strategy()
        self.clipped = ClippedUpdates(job, prepared) if self.plan.kind == "clipped_update" else None
        self.out: dict[int, str] = {}  # who is asked no more, and why
        self.reached: dict[int, Position] = {}  # the last attempt that clients began before this run was gone on with
        shared = job.plan.shared_noise
        self.least = shared.minimum_survivors if shared else 1
        if self.plan.roster is not None:
            self.least = self.plan.roster.minimum_survivors

    @property
    def finished(self) -> bool:
        """Whether it ends before its last round: never."""
        return False

    def buffers(self) -> Tensors:
        """The strategy's buffers, and the clip norm where it moves."""
        return strategy_state(self.strategy, self.job.layout) | (self.clipped.buffers() if self.clipped else {})

    def restore(self, server: ServerState) -> None:
        """The same, from a checkpoint; a budget of the server's own is reserved here, before any data is touched."""
        restore_strategy(self.strategy, server.strategy, self.job.layout)
        if self.clipped:
            self.clipped.restore(server.strategy)

    def run(self, grid: Grid, nodes: dict[int, int], server: ServerState, number: int) -> RoundOutcome:
        """Attempts until one gives a sum; a round that never does leaves the model as it was."""
        started = time.perf_counter()
        state = server.state if self.job.sends_momentum else server.state.without_momentum()
        settings = {CLIP: self.clipped.clip_norm} if self.clipped else {}  # what the server may choose beside the model
        show(self.strategy, number, server.state)
        summed, first = Summed(), self.first_attempt(number, nodes)
        for attempt in range(first, min(first + TRIES, attempts_of(self.job))):
            asked = {client: node for client, node in nodes.items() if client not in self.out}
            if attempt > first and len(asked) < self.least:
                break  # another attempt would cost the others budget for nothing
            try:
                position = Position(number, attempt)
                self.collect(Attempt(grid, asked, state, settings, position, self.timeout), summed)
                break
            except ProtocolError as error:
                log.warning("round %d, attempt %d: %s", number, attempt, error)
                summed.aborted.append(str(error))
                self.leave_out(error, summed.failures, len(asked))
        self.check(nodes, server, number, summed)
        collected = time.perf_counter()
        new = self.step(server, summed) if self.plan.kind == "gradient" else self.mean(server, summed)
        outcome = RoundOutcome(
            state=new,
            steps=self.steps(summed),
            answered=tuple(summed.answered),
            clients=len(summed.survivors),
            abstained=summed.abstained,
            failed=len(nodes) - len(summed.survivors),
            bytes_up=summed.bytes_up,
            bytes_down=summed.bytes_down,
            seconds={"train": collected - started, "aggregate": time.perf_counter() - collected},
        )
        return self.clipped.published(outcome) if self.clipped else outcome

    def first_attempt(self, number: int, clients: Iterable[int]) -> int:
        """The first attempt at a round that as many clients as a sum takes can still answer: none is answered twice.

        Raises RoundAborted where all were made. One client that says it is further than it is keeps nobody else back.
        """
        known = [self.reached.get(client, Position(0, 0)) for client in clients]
        begun = sorted(position.attempt + 1 if position.round == number else 0 for position in known)
        first = begun[min(self.least, len(begun)) - 1] if begun else 0
        if first >= attempts_of(self.job):
            raise RoundAborted(f"round {number}: all aggregation.max_attempts={first} were made; accepted: a new study")
        return first

    def leave_out(self, error: ProtocolError, failures: list[Failure], asked: int) -> None:
        """Ask those no more that an attempt cannot end well with: so others do not pay for a second one like it.

        They are whoever dealt shares of no secret, whose budget is spent, and whom so many accuse that without them
        too few were left: their silence would have ended the attempt as well.
        """
        accusers: dict[int, set[int]] = {}
        for failure in failures:
            if failure.code == Code.LEDGER:
                self.out.setdefault(failure.client, failure.text)
            if failure.accused is not None and failure.accused != failure.client:
                accusers.setdefault(failure.accused, set()).add(failure.client)
        for accused, by in accusers.items():
            if asked - len(by) < self.least:
                self.out.setdefault(accused, f"clients {sorted(by)} refused its part")
        if isinstance(error.sender, int):
            self.out.setdefault(error.sender, str(error))

    def check(self, nodes: dict[int, int], server: ServerState, number: int, summed: Summed) -> None:
        """Raise RoundAborted, or LedgerError, where no attempt gave a sum of enough."""
        least = None if self.clipped is None else min(len(nodes), self.job.setup.federation.min_clients)
        usable, before = len(summed.survivors), server.abstentions
        if summed.total is None:
            refuse_exhausted(len(nodes), summed.failures, self.least)
        asked, gone = len(nodes), summed.abstained  # over all attempts
        check_enough(self.job, usable, gone, summed.failures, number, asked=asked, before=before, least=least)
        if summed.total is None:
            last = summed.aborted[-1] if summed.aborted else f"too few clients are left{first_of(summed.failures)}"
            raise RoundAborted(f"round {number}: no attempt gave a sum; the last failure: {last}")

    def collect(self, attempt: Attempt, summed: Summed) -> None:
        """One attempt at the sum, noised where the server is to add the noise."""
        if self.clipped:
            self.clipped.begin(attempt)
        if self.plan.roster is not None:
            secure_sum(self.plan, attempt, summed)
        else:
            shared = self.job.plan.shared_noise
            plain_sum(self.plan, attempt, shared.minimum_survivors if shared else 0, summed)
        if self.clipped and summed.total is not None:
            self.clipped.add_noise(summed.total, attempt)

    def steps(self, summed: Summed) -> dict[int, int]:
        """Releases by client that answered. A retry is another one, unless it repeats the same noise bit by bit."""
        if self.clipped and server_keeps(self.job):
            return self.clipped.steps()
        repeats = self.plan.kind == "update" and self.job.plan.noise_source == "seed"
        return {
            client: self.job.plan.events_per_round(self.job.plan.clients[client]) * (1 if repeats else attempts)
            for client, attempts in summed.asked.items()
            if client in summed.answered
        }

    def step(self, server: ServerState, summed: Summed) -> ModelState:
        """One step of SGD with momentum on the noised mean, with a public denominator; then the strategy's."""
        assert summed.total is not None
        trainer, old = self.job.setup.trainer, server.state
        vector, _ = self.plan.layout.decode(summed.total)
        expected = sum(self.job.plan.clients[client].expected_batch_size for client in summed.survivors)
        direction = (vector / expected).astype(old.layout.kind) + trainer.weight_decay * old.parameters
        momentum = None
        if old.momentum is not None:
            direction = momentum = trainer.momentum * old.momentum + direction
        rate = float(trainer.rate_at(server.round, self.job.plan.clients[0]))
        stepped = ModelState(old.layout, old.parameters - rate * direction, momentum)
        return followed(self.strategy, server.round + 1, [(stepped, 1)], momentum)

    def mean(self, server: ServerState, summed: Summed) -> ModelState:
        """The mean of the updates, weighted or clipped, through the strategy."""
        assert summed.total is not None
        vector, scalars = self.plan.layout.decode(summed.total)
        vector = self.clipped.mean(vector, scalars) if self.clipped else vector / self.weight(summed.survivors)
        mean = server.state.moved(vector)
        return followed(self.strategy, server.round + 1, [(mean, 1)], mean.momentum)

    def weight(self, survivors: Sequence[int]) -> float:
        """What the survivors weigh together by the plan, on the grid; what they say in the sum is not asked."""
        records = [client.num_records for client in self.job.plan.clients]
        weights = np.array([records[client] / sum(records) for client in survivors])
        (field,) = (field for field in self.plan.layout.fields if field.name == WEIGHT)
        words, _ = encode(weights, field.scale, field.bound)
        return float(decode(words.sum(keepdims=True, dtype=np.uint32), field.scale)[0])
