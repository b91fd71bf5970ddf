"""One attempt of the protocol between parties in one process, with clients that drop out at a stage."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medx.aggregation.coordinator import Coordinator
from medx.aggregation.participant import Participant
from medx.aggregation.wire import ProtocolError


@dataclass
class Attempt:
    """The sum ``uint32 [dimension]``, whose it is, the bytes by client and direction, and who was refused why."""

    total: np.ndarray
    survivors: tuple[int, ...]
    bytes_up: dict[int, int] = field(default_factory=dict)
    bytes_down: dict[int, int] = field(default_factory=dict)
    refused: list[ProtocolError] = field(default_factory=list)


class _Exchange:
    """Carries messages, counts bytes, and lets clients drop out: a dropped client is silent from then on."""

    def __init__(self, server: Coordinator, drop: Mapping[str, Iterable[int]]) -> None:
        self.server = server
        self.drop = {stage: set(ids) for stage, ids in drop.items()}
        self.gone: set[int] = set()
        self.up: dict[int, int] = {}
        self.down: dict[int, int] = {}
        self.refused: list[ProtocolError] = []

    def stage(
        self,
        name: str,
        payload: Callable[[int], bytes],
        answer: Callable[[int, bytes], bytes],
        receive: Callable[[int, bytes], None],
    ) -> None:
        self.gone |= self.drop.get(name, set())
        for number in self.server.participants:
            if number in self.gone:
                continue
            message = payload(number)
            self.down[number] = self.down.get(number, 0) + len(message)
            try:
                reply = answer(number, message)
                self.up[number] = self.up.get(number, 0) + len(reply)
                receive(number, reply)
            except ProtocolError as error:
                self.gone.add(number)
                self.refused.append(error)


def run_attempt(
    server: Coordinator,
    clients: Sequence[Participant],
    words: Mapping[int, np.ndarray],
    *,
    model_hash: bytes | None = None,
    drop: Mapping[str, Iterable[int]] | None = None,
) -> Attempt:
    """Run the five stages. ``words[i]`` is client i's ``uint32 [dimension]`` vector; ``drop`` maps a stage to ids.

    A client that drops at a stage sends nothing from that stage on, and so does one whose message is refused. Raises
    SumAborted when too few are left.
    """
    seen = server.context.model_hash if model_hash is None else model_hash
    exchange = _Exchange(server, drop or {})
    begin = server.begin()
    exchange.stage("keys", lambda _: begin, lambda i, m: clients[i].begin(m, seen), server.receive_keys)
    key_list = server.close_keys()
    exchange.stage("shares", lambda _: key_list, lambda i, m: clients[i].share(m), server.receive_shares)
    inboxes = server.close_shares()
    exchange.stage(
        "masked", lambda i: inboxes[i], lambda i, m: clients[i].mask(m, words[i].copy()), server.receive_masked
    )
    survivors = server.close_masked()
    exchange.stage("confirm", lambda _: survivors, lambda i, m: clients[i].confirm(m), server.receive_confirm)
    request = server.close_confirm()
    exchange.stage("unmask", lambda _: request, lambda i, m: clients[i].unmask(m), server.receive_unmask)
    return Attempt(server.finish(), server.survivors, exchange.up, exchange.down, exchange.refused)
