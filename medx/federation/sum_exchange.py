"""One attempt at a sum over Flower messages: in the clear, or through the five stages of secure aggregation."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from medx.aggregation.errors import ProtocolError
from medx.aggregation.errors import RoundAborted as SumAborted
from medx.aggregation.server import SecureServer
from medx.federation.rounds import raise_ledger_error
from medx.federation.sum_client import CLIP, STAGES, Position, hash_of
from medx.federation.sums import SumPlan

log = logging.getLogger(__name__)


@dataclass
class Summed:
    """A sum of words, whose it is, and what it took over all attempts.

    ``asked`` counts the attempts in which a client was asked for words: it may have spent budget in each of them.
    ``answered`` are those that sent words at least once.
    """

    total: np.ndarray | None = None
    survivors: tuple[int, ...] = ()
    bytes_up: int = 0
    bytes_down: int = 0
    asked: Counter[int] = field(default_factory=Counter)
    answered: set[int] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)

    @property
    def abstained(self) -> int:
        """How often a client left because its gradient or update was not finite."""
        return sum(reason.startswith(("AbstainedError", "NonFiniteGradientError")) for reason in self.failures)


@dataclass(frozen=True)
class Attempt:
    """One attempt at one round: which nodes are asked, with which model and, where updates are clipped, clip norm."""

    grid: Grid
    nodes: Mapping[int, int]
    arrays: ArrayRecord
    settings: Mapping[str, float]
    position: Position
    timeout: float | None


def plain_sum(plan: SumPlan, attempt: Attempt, needed: int, summed: Summed) -> None:
    """Words in the clear: the server, which is trusted, adds them up. Raises SumAborted below ``needed``."""
    content = RecordDict({"arrays": attempt.arrays, "config": config(attempt, b"")})
    summed.asked.update(list(attempt.nodes))
    total = np.zeros(plan.layout.size, np.uint32)
    survivors = []
    for client, reply in exchange(attempt, "sum", dict.fromkeys(attempt.nodes, content), summed):
        if len(reply) != total.nbytes:
            summed.failures.append(f"client {client} sent {len(reply)} bytes of {total.nbytes}")
            continue
        total += np.frombuffer(reply, dtype="<u4")
        summed.answered.add(client)
        survivors.append(client)
    if len(survivors) < needed:
        raise SumAborted("sum", len(survivors), needed)
    summed.total, summed.survivors = total, tuple(survivors)


def secure_sum(plan: SumPlan, attempt: Attempt, summed: Summed) -> None:
    """The five stages; the server learns the sum of the survivors. Raises SumAborted or another ProtocolError."""
    assert plan.roster is not None
    start = hash_of(attempt.arrays, attempt.settings.get(CLIP))
    server = SecureServer(plan.roster, attempt.position.round - 1, attempt.position.attempt, start)
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
    data: bytes | dict[int, bytes] = server.begin()
    present = set(attempt.nodes)
    for stage in STAGES:
        asked = [client for client in server.participants if client in present]
        if stage == "masked":
            summed.asked.update(asked)
        present = set()
        for client, reply in exchange(attempt, stage, _requests(attempt, stage, asked, data), summed):
            try:
                receive[stage](client, reply)
                present.add(client)
            except ProtocolError as error:
                log.warning("round %d: %s", attempt.position.round, error)
                summed.failures.append(str(error))
        if stage == "masked":
            summed.answered |= present
        if stage in close:
            data = close[stage]()
    summed.total, summed.survivors = server.finish(), server.survivors


def _requests(attempt: Attempt, stage: str, asked: list[int], data: bytes | dict[int, bytes]) -> dict[int, RecordDict]:
    """What each client gets; those that get the same share one record, since a grid delivers copies."""
    if isinstance(data, dict):
        return {client: RecordDict({"config": config(attempt, data[client])}) for client in asked}
    content = RecordDict({"config": config(attempt, data)})
    if stage == "keys":
        content["arrays"] = attempt.arrays
    return dict.fromkeys(asked, content)


def exchange(
    attempt: Attempt, action: str, requests: Mapping[int, RecordDict], summed: Summed
) -> list[tuple[int, bytes]]:
    """(client, reply) of those who answered, in the order of clients; who the sender is comes from the node.

    A node's second answer, a late one, and one of a node that was not asked are dropped.
    """
    clients = {attempt.nodes[client]: client for client in requests}
    messages = [Message(content, attempt.nodes[client], f"train.{action}") for client, content in requests.items()]
    summed.bytes_down += sum(map(message_bytes, requests.values()))
    replies: dict[int, bytes] = {}
    for reply in attempt.grid.send_and_receive(messages, timeout=attempt.timeout) if messages else ():
        if reply.has_error():
            reason = str(reply.error.reason)
            raise_ledger_error(reason)
            summed.failures.append(reason)
            continue
        client = clients.get(reply.metadata.src_node_id)
        answer = cast(ConfigRecord, reply.content["reply"])
        if client is None or client in replies or answer["position"] != list(attempt.position):
            log.warning(
                "round %d: an answer of node %s was dropped", attempt.position.round, reply.metadata.src_node_id
            )
            continue
        replies[client] = cast(bytes, answer["data"])
        summed.bytes_up += len(replies[client])
    return sorted(replies.items())


def config(attempt: Attempt, data: bytes) -> ConfigRecord:
    """What every message of a sum carries."""
    return ConfigRecord({"data": data, "position": list(attempt.position), **attempt.settings})


def message_bytes(content: RecordDict) -> int:
    """Bytes of the tensors and of the protocol's message in it."""
    arrays, data = content.get("arrays"), cast(ConfigRecord, content["config"])["data"]
    tensors = sum(len(array.data) for array in arrays.values()) if isinstance(arrays, ArrayRecord) else 0
    return tensors + len(cast(bytes, data))
