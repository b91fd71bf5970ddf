"""Rounds whose server sees one sum: decode it, then take a step (gradients) or hand the mean to the strategy."""

import logging
import time
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.typing import ConfigRecordValues
from flwr.serverapp import Grid
from torch import nn

from medx.aggregation.errors import ProtocolError
from medx.federation.checkpoint import ServerState
from medx.federation.clipped_updates import ClippedUpdates
from medx.federation.job import Job
from medx.federation.payload import MOMENTUM, State, all_finite, from_record, momentum_of, parameters_of, to_record
from medx.federation.rounds import (
    RoundAborted,
    RoundOutcome,
    SampledGrid,
    check_enough,
    restore_strategy,
    strategy_state,
)
from medx.federation.sum_client import Position, attempts_of, sum_plan
from medx.federation.sum_exchange import Attempt, Summed, plain_sum, secure_sum
from medx.federation.sums import SATURATED, WEIGHT, unflatten

log = logging.getLogger(__name__)


class SumRounds:
    """The engine of ``aggregation=secure``, and of distributed or central noise with a trusted aggregator."""

    def __init__(self, job: Job, module: nn.Module, timeout: float | None) -> None:
        self.job = job
        self.plan = sum_plan(job)
        self.module = module
        self.timeout = timeout
        self.strategy = job.setup.federation.strategy()
        self.clipped = ClippedUpdates(job) if self.plan.kind == "clipped_update" else None

    def momentum_names(self, module: nn.Module) -> list[str]:
        """The trained parameters: the clients' momentum where it is shared, the server's where it takes the step."""
        trainer = self.job.setup.trainer
        has_momentum = trainer.share_momentum or (self.plan.kind == "gradient" and trainer.momentum > 0)
        return [name for name, p in module.named_parameters() if p.requires_grad] if has_momentum else []

    def buffers(self) -> State:
        """The strategy's buffers, and the clip norm where it moves."""
        return strategy_state(self.strategy) | (self.clipped.buffers() if self.clipped else {})

    def restore(self, server: ServerState) -> None:
        """The same, from a checkpoint; a budget of the server's own is reserved here, before any data is touched."""
        restore_strategy(self.strategy, server.strategy)
        if self.clipped:
            self.clipped.restore(server.strategy)

    def run(self, grid: Grid, nodes: dict[int, int], server: ServerState, number: int) -> RoundOutcome:
        """Attempts until one gives a sum; a round that never does leaves the model as it was."""
        started = time.perf_counter()
        state = parameters_of(server.state) if self.plan.kind == "gradient" else server.state
        arrays, settings = to_record(state), self.settings(server, number)
        summed = Summed()
        for attempt in range(attempts_of(self.job)):
            try:
                position = Position(number, attempt)
                self.collect(Attempt(grid, nodes, arrays, settings, position, self.timeout), summed)
                break
            except ProtocolError as error:
                log.warning("round %d, attempt %d: %s", number, attempt, error)
                summed.failures.append(str(error))
        least = None if self.clipped is None else min(len(nodes), self.job.setup.federation.min_clients)
        usable, abstentions = len(summed.survivors), server.abstentions + summed.abstained
        check_enough(self.job, usable, abstentions, summed.failures, number, least=least)
        if summed.total is None:
            raise RoundAborted(f"round {number}: no attempt gave a sum; the last failure: {summed.failures[-1]}")
        collected = time.perf_counter()
        new, saturated = self.step(server, summed) if self.plan.kind == "gradient" else self.mean(server, summed)
        if not all_finite(new):
            raise RoundAborted(f"round {number}: the aggregate is not finite")
        outcome = RoundOutcome(
            state=new,
            steps=self.steps(summed),
            answered=frozenset(summed.answered),
            clients=usable,
            abstained=summed.abstained,
            failed=len(nodes) - usable,
            saturated=saturated,
            bytes_up=summed.bytes_up,
            bytes_down=summed.bytes_down,
            seconds={"train": collected - started, "aggregate": time.perf_counter() - collected},
        )
        return self.clipped.published(outcome) if self.clipped else outcome

    def settings(self, server: ServerState, number: int) -> dict[str, ConfigRecordValues]:
        """What clients must know beside the model: the strategy's settings, and the round's clip norm."""
        shown = cast(Grid, SampledGrid([1]))
        messages = self.strategy.configure_train(number, to_record(parameters_of(server.state)), ConfigRecord(), shown)
        settings = dict(next(iter(messages)).content.config_records["config"])
        return settings | ({"clip-norm": self.clipped.clip_norm} if self.clipped else {})

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
        if self.clipped:
            return self.clipped.steps()
        repeats = self.plan.kind == "update" and self.job.plan.noise_source == "seed"
        return {
            client: self.job.plan.clients[client].steps_per_round * (1 if repeats else attempts)
            for client, attempts in summed.asked.items()
            if client in summed.answered
        }

    def step(self, server: ServerState, summed: Summed) -> tuple[State, int]:
        """One step of SGD with momentum on the noised mean, with a public denominator; then the strategy's."""
        assert summed.total is not None
        trainer, state = self.job.setup.trainer, server.state
        vector, _ = self.plan.layout.decode(summed.total)
        expected = sum(self.job.plan.clients[client].expected_batch_size for client in summed.survivors)
        names = [name for name, p in self.module.named_parameters() if p.requires_grad]
        gradients = unflatten(vector / expected, {name: state[name] for name in names})
        rate = trainer.rate_at(server.round, self.job.plan.clients[0])
        new = dict(state)
        for name, gradient in gradients.items():
            direction = gradient + trainer.weight_decay * state[name]
            if trainer.momentum:
                direction = trainer.momentum * state[MOMENTUM + name] + direction
                new[MOMENTUM + name] = direction
            new[name] = state[name] - rate * direction
        return self.moved(server, new), 0

    def mean(self, server: ServerState, summed: Summed) -> tuple[State, int]:
        """The mean of the updates, weighted or clipped, through the strategy."""
        assert summed.total is not None
        vector, scalars = self.plan.layout.decode(summed.total)
        vector = self.clipped.mean(vector, scalars) if self.clipped else vector / scalars[WEIGHT]
        deltas = unflatten(vector, self.like(server.state))
        mean = {name: tensor + deltas[name].to(tensor.dtype) for name, tensor in server.state.items()}
        return self.moved(server, mean), round(scalars.get(SATURATED, 0.0))

    def moved(self, server: ServerState, mean: State) -> State:
        """Where the strategy goes, given ``mean`` as if it were one client's answer."""
        content = RecordDict({"arrays": to_record(parameters_of(mean)), "metrics": MetricRecord({"num-examples": 1})})
        arrays, _ = self.strategy.aggregate_train(server.round + 1, [Message(content, 1, "train")])
        if arrays is None:
            raise RoundAborted(f"round {server.round + 1}: the strategy gave no result")
        return self.merged(server.state, arrays, mean)

    def merged(self, old: State, arrays: ArrayRecord, mean: State) -> State:
        """The strategy's parameters in the old types, with the mean momentum."""
        new = from_record(arrays)
        return {name: tensor.to(old[name].dtype) for name, tensor in new.items()} | momentum_of(mean)

    def like(self, state: State) -> State:
        """The shapes of an update, in the order in which clients flatten it."""
        names = [name for name, p in self.module.named_parameters() if p.requires_grad]
        return {name: state[name] for name in (*names, *(MOMENTUM + n for n in names if MOMENTUM + n in state))}
