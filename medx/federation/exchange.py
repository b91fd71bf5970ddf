"""One attempt at a sum over Flower messages: in the clear, or through the five stages of secure aggregation."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from medx.aggregation.coordinator import Coordinator
from medx.aggregation.wire import ProtocolError, SumAborted
from medx.federation.flower import to_record, wire_bytes
from medx.federation.replies import Code, Failure, ReplyError, ask, config_of, line_of
from medx.federation.setup import SumPlan
from medx.federation.sums import CLIP, STAGES, Position
from medx.trainer.state import ModelState

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
    state: ModelState
    settings: Mapping[str, float]
    position: Position
    timeout: float | None


def plain_sum(plan: SumPlan, attempt: Attempt, needed: int, summed: Summed) -> None:
    """Words in the clear: the server, which is trusted, adds them up. Raises SumAborted below ``needed``."""
    summed.asked.update(list(attempt.nodes))
    total = np.zeros(plan.layout.size, np.uint32)
    survivors = []
    for client, reply in exchange(attempt, "sum", list(attempt.nodes), b"", summed):
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
    start = attempt.state.hash(attempt.settings.get(CLIP))
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
        for client, reply in exchange(attempt, stage, asked, data, summed):
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


def exchange(
    attempt: Attempt, action: str, asked: Sequence[int], data: bytes | dict[int, bytes], summed: Summed
) -> list[tuple[int, bytes]]:
    """(client, reply) of those who answered this attempt, in the order of clients; the others' failures are noted.

    ``data`` is the protocol's message to all that are asked, or to each. The model goes out with the first message.
    """
    clients = {attempt.nodes[client]: client for client in asked}
    arrays = {"arrays": to_record(attempt.state)} if action in ("sum", "keys") else {}

    def content(part: bytes) -> RecordDict:
        config = ConfigRecord({"data": part, "position": list(attempt.position), **attempt.settings})
        return RecordDict({"config": config, **arrays})

    if isinstance(data, dict):
        requests = {client: content(data[client]) for client in asked}
    else:
        requests = dict.fromkeys(asked, content(data))  # one record for all, since a grid delivers copies
    messages = [Message(each, attempt.nodes[client], f"train.{action}") for client, each in requests.items()]
    sent = [len(data[client] if isinstance(data, dict) else data) for client in asked]
    summed.bytes_down += sum(sent) + (wire_bytes(attempt.state) * len(sent) if arrays else 0)

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
