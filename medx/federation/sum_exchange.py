"""One attempt at a sum over Flower messages: in the clear, or through the five stages of secure aggregation."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from medx.aggregation.coordinator import Coordinator
from medx.aggregation.wire import ProtocolError, SumAborted
from medx.federation.payload import hash_of
from medx.federation.replies import Code, Failure, ReplyError, ask, config_of, line_of
from medx.federation.sum_client import CLIP, STAGES, Position
from medx.federation.sums import SumPlan

log = logging.getLogger(__name__)


@dataclass
class Summed:
    """A sum of words, whose it is, and what it took over all attempts.

    ``asked`` counts the attempts in which a client was asked for words: it may have spent budget in each of them.
    ``answered`` are those that sent words at least once; ``aborted`` says why attempts gave no sum.
    """

    total: np.ndarray | None = None
    survivors: tuple[int, ...] = ()
    bytes_up: int = 0
    bytes_down: int = 0
    asked: Counter[int] = field(default_factory=Counter)
    answered: set[int] = field(default_factory=set)
    failures: list[Failure] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    abstained: int = 0

    def fails(self, failures: Iterable[Failure], *, words: bool = False) -> None:
        """Note these failures; only who was asked for ``words`` can abstain, because it is not finite."""
        for failure in failures:
            self.failures.append(failure)
            self.abstained += words and failure.code == Code.ABSTAINED


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
            text = f"client {client} sent {len(reply)} bytes of {total.nbytes}"
            summed.fails([Failure(client, Code.MALFORMED, text)])
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
    server = Coordinator(plan.roster, attempt.position.round - 1, attempt.position.attempt, start)
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
                summed.fails([Failure(client, Code.MALFORMED, line_of(error))])
        if stage == "masked":
            summed.answered |= present
        if stage in close:
            data = close[stage]()
    summed.total, summed.survivors = server.finish(), server.survivors
    for client, owners in server.false_shares.items():
        text = f"client {client} handed out false shares of the secrets of clients {owners}"
        log.warning("round %d: %s", attempt.position.round, text)
        summed.fails([Failure(client, Code.MALFORMED, line_of(text))])


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
    """(client, reply) of those who answered this attempt, in the order of clients; the others' failures are noted."""
    clients = {attempt.nodes[client]: client for client in requests}
    messages = [Message(content, attempt.nodes[client], f"train.{action}") for client, content in requests.items()]
    summed.bytes_down += sum(map(message_bytes, requests.values()))

    def read(client: int, content: RecordDict) -> bytes:
        reply = config_of(content, "reply")
        data, position = reply.get("data"), reply.get("position")
        if position != list(attempt.position) or not isinstance(data, bytes):
            raise ReplyError(f"client {client} sent no bytes for this round and attempt")
        return data

    replies, failed = ask(attempt.grid, messages, clients, attempt.timeout, read)
    summed.fails(failed, words=action in ("sum", "masked"))
    summed.bytes_up += sum(map(len, replies.values()))
    return list(replies.items())


def config(attempt: Attempt, data: bytes) -> ConfigRecord:
    """What every message of a sum carries."""
    return ConfigRecord({"data": data, "position": list(attempt.position), **attempt.settings})


def message_bytes(content: RecordDict) -> int:
    """Bytes of the tensors and of the protocol's message in it."""
    arrays, data = content.get("arrays"), cast(ConfigRecord, content["config"])["data"]
    tensors = sum(len(array.data) for array in arrays.values()) if isinstance(arrays, ArrayRecord) else 0
    return tensors + len(cast(bytes, data))
