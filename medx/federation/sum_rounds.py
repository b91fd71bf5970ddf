"""Rounds whose server sees one sum: decode it, then take a step (gradients) or hand the mean to the strategy."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import nn

from medx.aggregation.errors import ProtocolError
from medx.aggregation.errors import RoundAborted as SumAborted
from medx.aggregation.server import SecureServer
from medx.federation.checkpoint import ServerState
from medx.federation.job import Job
from medx.federation.payload import MOMENTUM, State, all_finite, momentum_of, parameters_of, to_record
from medx.federation.rounds import (
    RoundAborted,
    RoundOutcome,
    SampledGrid,
    check_enough,
    content_bytes,
    raise_ledger_error,
    restore_strategy,
    strategy_state,
)
from medx.federation.sum_client import STAGES, attempts_of, hash_of, sum_plan
from medx.federation.sums import unflatten

log = logging.getLogger(__name__)


@dataclass
class Summed:
    """A sum of words, whose it is, and what it took."""

    total: np.ndarray | None = None
    survivors: tuple[int, ...] = ()
    bytes_up: int = 0
    bytes_down: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def abstained(self) -> int:
        """Clients that left because their update was not finite."""
        return sum("AbstainedError" in reason or "NonFiniteGradientError" in reason for reason in self.failures)


class SumRounds:
    """The engine of ``aggregation=secure``, and of distributed noise with a trusted aggregator."""

    def __init__(self, job: Job, module: nn.Module, timeout: float | None) -> None:
        self.job = job
        self.plan = sum_plan(job)
        self.module = module
        self.timeout = timeout
        self.strategy = job.setup.federation.strategy()

    def momentum_names(self, module: nn.Module) -> list[str]:
        """The trained parameters: the clients' momentum where it is shared, the server's where it takes the step."""
        trainer = self.job.setup.trainer
        has_momentum = trainer.share_momentum or (self.plan.gradient and trainer.momentum > 0)
        return [name for name, p in module.named_parameters() if p.requires_grad] if has_momentum else []

    def buffers(self) -> State:
        """The strategy's buffers."""
        return strategy_state(self.strategy)

    def restore(self, server: ServerState) -> None:
        """The strategy's buffers, from a checkpoint."""
        restore_strategy(self.strategy, server.strategy)

    def run(self, grid: Grid, nodes: dict[int, int], server: ServerState, number: int) -> RoundOutcome:
        """Attempts until one gives a sum; a round that never does leaves the model as it was."""
        started = time.perf_counter()
        state = parameters_of(server.state) if self.plan.gradient else server.state
        arrays = to_record(state)
        collect = self.secure_sum if self.plan.roster is not None else self.plain_sum
        summed = Summed()
        for attempt in range(attempts_of(self.job)):
            try:
                collect(grid, nodes, arrays, number, attempt, summed)
                break
            except (SumAborted, ProtocolError) as error:
                log.warning("round %d, attempt %d: %s", number, attempt, error)
                summed.failures.append(str(error))
        check_enough(self.job, len(summed.survivors), server.abstentions + summed.abstained, summed.failures, number)
        if summed.total is None:
            raise RoundAborted(f"round {number}: no attempt gave a sum; the last failure: {summed.failures[-1]}")
        collected = time.perf_counter()
        new, saturated = self.step(server.state, summed) if self.plan.gradient else self.mean(server, summed, number)
        if not all_finite(new):
            raise RoundAborted(f"round {number}: the aggregate is not finite")
        return RoundOutcome(
            state=new,
            steps={client: self.job.plan.clients[client].steps_per_round for client in summed.survivors},
            clients=len(summed.survivors),
            abstained=summed.abstained,
            failed=len(nodes) - len(summed.survivors),
            saturated=saturated,
            bytes_up=summed.bytes_up,
            bytes_down=summed.bytes_down,
            seconds={"train": collected - started, "aggregate": time.perf_counter() - collected},
        )

    def plain_sum(
        self, grid: Grid, nodes: dict[int, int], arrays: ArrayRecord, number: int, attempt: int, summed: Summed
    ) -> None:
        """Words in the clear: the server, which is trusted, adds them up."""
        content = RecordDict({"arrays": arrays, "config": self.config(b"", number, attempt)})
        total: np.ndarray | None = None
        survivors = []
        for client, reply in self.exchange(grid, "sum", {c: (node, content) for c, node in nodes.items()}, summed):
            words = np.frombuffer(reply, dtype="<u4")
            total = words.copy() if total is None else total + words
            survivors.append(client)
        summed.survivors, summed.total = tuple(survivors), total
        shared = self.job.plan.shared_noise
        needed = shared.minimum_survivors if shared else 1
        if len(survivors) < needed:
            summed.survivors, summed.total = (), None
            raise SumAborted("sum", len(survivors), needed)

    def secure_sum(
        self, grid: Grid, nodes: dict[int, int], arrays: ArrayRecord, number: int, attempt: int, summed: Summed
    ) -> None:
        """The five stages; the server learns the sum of the survivors."""
        assert self.plan.roster is not None
        server = SecureServer(self.plan.roster, number - 1, attempt, hash_of(arrays))
        begin = server.begin()
        receive: dict[str, Callable[[int, bytes], None]] = {
            "keys": server.receive_keys,
            "shares": server.receive_shares,
            "masked": server.receive_masked,
            "confirm": server.receive_confirm,
            "unmask": server.receive_unmask,
        }
        close: dict[str, Callable[[], bytes | dict[int, bytes]]] = {
            "keys": server.close_keys,
            "shares": server.close_shares,
            "masked": server.close_masked,
            "confirm": server.close_confirm,
        }
        data: bytes | dict[int, bytes] = begin
        alive = set(nodes)
        for stage in STAGES:
            requests = {}
            for client in server.participants:
                if client not in alive:
                    continue
                payload = data[client] if isinstance(data, dict) else data
                content = RecordDict({"config": self.config(payload, number, attempt)})
                if stage == "keys":
                    content["arrays"] = arrays
                requests[client] = (nodes[client], content)
            answered = set()
            for client, reply in self.exchange(grid, stage, requests, summed):
                try:
                    receive[stage](client, reply)
                    answered.add(client)
                except ProtocolError as error:
                    log.warning("round %d: %s", number, error)
                    summed.failures.append(str(error))
            alive = answered
            if stage in close:
                data = close[stage]()
        summed.total = server.finish()
        summed.survivors = server.survivors

    def exchange(
        self, grid: Grid, action: str, requests: dict[int, tuple[int, RecordDict]], summed: Summed
    ) -> list[tuple[int, bytes]]:
        """(client, reply) of those who answered, in the order of clients; who the sender is comes from the node."""
        clients = {node: client for client, (node, _) in requests.items()}
        messages = [Message(content, node, f"train.{action}") for node, content in requests.values()]
        summed.bytes_down += sum(message_bytes(message.content) for message in messages)
        replies: dict[int, bytes] = {}
        for reply in grid.send_and_receive(messages, timeout=self.timeout):
            if reply.has_error():
                reason = str(reply.error.reason)
                raise_ledger_error(reason)
                summed.failures.append(reason)
                continue
            client = clients[reply.metadata.src_node_id]
            replies[client] = cast(bytes, reply.content.config_records["reply"]["data"])
            summed.bytes_up += len(replies[client])
        return sorted(replies.items())

    def config(self, data: bytes, number: int, attempt: int) -> ConfigRecord:
        """What every message of a sum carries."""
        return ConfigRecord({"data": data, "server-round": number, "attempt": attempt})

    def step(self, state: State, summed: Summed) -> tuple[State, int]:
        """One step of SGD with momentum on the noised mean; the denominator is public."""
        assert summed.total is not None
        trainer = self.job.setup.trainer
        vector, _ = self.plan.layout.decode(summed.total)
        expected = sum(self.job.plan.clients[client].expected_batch_size for client in summed.survivors)
        names = [name for name, p in self.module.named_parameters() if p.requires_grad]
        gradients = unflatten(vector / expected, {name: state[name] for name in names})
        release = self.job.plan.clients[0].step
        assert release is not None
        rate = trainer.learning_rate_for(release.noise_multiplier)
        new = dict(state)
        for name, gradient in gradients.items():
            gradient = gradient + trainer.weight_decay * state[name]
            if trainer.momentum:
                gradient = trainer.momentum * state[MOMENTUM + name] + gradient
                new[MOMENTUM + name] = gradient
            new[name] = state[name] - rate * gradient
        return new, 0

    def mean(self, server: ServerState, summed: Summed, number: int) -> tuple[State, int]:
        """The weighted mean of the updates, through the strategy as if it were one client's answer."""
        assert summed.total is not None
        vector, scalars = self.plan.layout.decode(summed.total)
        deltas = unflatten(vector / scalars["weight"], self.like(server.state))
        mean = {name: tensor + deltas[name].to(tensor.dtype) for name, tensor in server.state.items()}
        parameters = parameters_of(mean)
        shown = cast(Grid, SampledGrid([1] * self.job.setup.federation.min_clients))
        self.strategy.configure_train(number, to_record(parameters_of(server.state)), ConfigRecord(), shown)
        content = RecordDict({"arrays": to_record(parameters), "metrics": MetricRecord({"num-examples": 1})})
        arrays, _ = self.strategy.aggregate_train(number, [Message(content, 1, "train")])
        if arrays is None:
            raise RoundAborted(f"round {number}: the strategy gave no result")
        new = {name: torch.from_numpy(np.array(array.numpy())) for name, array in arrays.items()}
        merged = {name: tensor.to(server.state[name].dtype) for name, tensor in new.items()} | momentum_of(mean)
        return merged, int(round(scalars["saturated"]))

    def like(self, state: State) -> State:
        """The shapes of an update, in the order in which clients flatten it."""
        names = [name for name, p in self.module.named_parameters() if p.requires_grad]
        return {name: state[name] for name in (*names, *(MOMENTUM + n for n in names if MOMENTUM + n in state))}


def message_bytes(content: RecordDict) -> int:
    """Bytes of the tensors and of the protocol's message in it."""
    data = [record["data"] for record in content.config_records.values() if "data" in record]
    return content_bytes(content) + sum(len(item) for item in data if isinstance(item, bytes))
