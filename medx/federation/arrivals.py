"""Answers one by one as they arrive: by a virtual clock in a simulation, by the real one between machines."""

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from medx.federation.flower import to_record
from medx.federation.plain_rounds import read_answer
from medx.federation.replies import Code, Failure, ReplyError, failure_of, line_of
from medx.trainer.state import ModelState

POLL = 0.05  # seconds between two looks for answers of other machines
AWAY = 1.0  # and for one that has gone


@dataclass(frozen=True)
class Asked:
    """What a hospital was asked for: release ``number`` of its plan, from the model of ``version``.

    ``due`` is when it answers by a virtual clock.
    """

    client: int
    number: int
    version: int
    state: ModelState
    due: float = 0.0

    def message(self, node: int) -> Message:
        """To its node; it is what a round of every other federation sends."""
        arrays, config = to_record(self.state), ConfigRecord({"server-round": self.number})
        return Message(RecordDict({"arrays": arrays, "config": config}), node, MessageType.TRAIN)


@dataclass(frozen=True)
class Arrival:
    """What came of it: the model that the hospital ended in (None: it abstained), or its failure."""

    asked: Asked
    state: ModelState | None = None
    failure: Failure | None = None


class Arrivals(Protocol):
    """Who is asked, and whose answer is there first."""

    @property
    def now(self) -> float | None:
        """The clock; None where it is not virtual."""
        ...

    def ask(self, asked: Iterable[Asked]) -> None:
        """Send these; nothing is waited for."""
        ...

    def there(self, clients: list[int], *, wait: bool) -> list[int]:
        """Those of these who can be asked now; ``wait``, a while, for one of them."""
        ...

    def at_once(self) -> bool:
        """Whether another answer is there at the very time of the last one."""
        ...

    def next(self) -> Arrival:
        """The next answer; there must be somebody who was asked and has not answered."""
        ...


def read(asked: Asked, reply: Message) -> Arrival:
    """What a reply comes to: one that is no answer to the question is a failure."""
    if reply.has_error():
        return Arrival(asked, failure=failure_of(asked.client, reply.error))
    try:
        content = reply.content if reply.has_content() else RecordDict()
        return Arrival(asked, read_answer(content, asked.client, asked.number, asked.state))
    except ReplyError as error:
        return Arrival(asked, failure=Failure(asked.client, Code.MALFORMED, line_of(error)))


class VirtualArrivals:
    """Answers in the order in which they are due by a virtual clock; of two at one time the lower client's is first.

    They are computed as late as possible, all that are open at once, so that hospitals share the machine's cores; when
    does not matter, as an answer depends on what was sent alone.
    """

    def __init__(self, grid: Grid, nodes: Mapping[int, int], now: float) -> None:
        self._now = now
        self._grid, self._nodes = grid, nodes
        self._open: list[tuple[float, int, Asked]] = []
        self._known: dict[int, Arrival] = {}

    @property
    def now(self) -> float:
        """When the last answer came."""
        return self._now

    def ask(self, asked: Iterable[Asked]) -> None:
        """Note what will be answered when it is due."""
        for each in asked:
            heapq.heappush(self._open, (each.due, each.client, each))

    def there(self, clients: list[int], *, wait: bool) -> list[int]:
        """All."""
        return clients

    def at_once(self) -> bool:
        """Whether another is due now."""
        return bool(self._open) and self._open[0][0] <= self._now

    def next(self) -> Arrival:
        """The next by the clock."""
        due, client, asked = heapq.heappop(self._open)
        if client not in self._known:
            self._compute([asked, *(each for _, _, each in self._open)])
        self._now = due
        return self._known.pop(client)

    def _compute(self, wanted: Sequence[Asked]) -> None:
        missing = {self._nodes[each.client]: each for each in wanted if each.client not in self._known}
        messages = [each.message(node) for node, each in sorted(missing.items())]
        for reply in self._grid.send_and_receive(messages):
            asked = missing.get(reply.metadata.src_node_id)
            if asked is not None and asked.client not in self._known:
                self._known[asked.client] = read(asked, reply)
        for asked in missing.values():
            silent = Failure(asked.client, Code.SILENT, f"no answer of client {asked.client}")
            self._known.setdefault(asked.client, Arrival(asked, failure=silent))


class RealArrivals:
    """Answers in the order in which they come; who says nothing for ``timeout`` seconds has failed."""

    def __init__(self, grid: Grid, nodes: Mapping[int, int], timeout: float) -> None:
        self._grid, self._nodes, self._timeout = grid, nodes, timeout
        self._open: dict[str, tuple[float, Asked]] = {}
        self._came: deque[Arrival] = deque()
        self._patience: float = getattr(grid, "patience", 0.0)
        self._genuine: Callable[[Message], bool] = getattr(grid, "is_genuine", lambda answer: True)

    @property
    def now(self) -> None:
        """There is no virtual clock."""

    def ask(self, asked: Iterable[Asked]) -> None:
        """Send; a message ends with its time, so that nobody works off what nobody waits for any more."""
        given = list(asked)
        messages = [each.message(self._nodes[each.client]) for each in given]
        for message in messages:
            message.metadata.ttl = self._timeout
        deadline = time.monotonic() + self._timeout
        for identifier, each in zip(self._grid.push_messages(messages), given, strict=True):
            if identifier:
                self._open[identifier] = (deadline, each)
            else:
                self._came.append(_silent(each))

    def there(self, clients: list[int], *, wait: bool) -> list[int]:
        """Those whose node is there: to a question that finds none Flower gives an error, and forgets the answer.

        Where nobody else is out, one that restarts is waited for, as long as the grid has patience.
        """
        deadline = time.monotonic() + (self._patience if wait and clients else 0.0)
        while True:
            nodes = set(self._grid.get_node_ids())
            found = [client for client in clients if self._nodes[client] in nodes]
            if found or time.monotonic() >= deadline:
                return found
            time.sleep(AWAY)

    def at_once(self) -> bool:
        """Whether one has come already."""
        return bool(self._came)

    def next(self) -> Arrival:
        """The next that comes; an answer to what is not open any more is dropped."""
        while not self._came:
            self._look()
            if not self._came:
                time.sleep(POLL)
        return self._came.popleft()

    def _look(self) -> None:
        replies = [(self._own(reply), reply) for reply in self._grid.pull_messages(list(self._open))]
        true = {reply.metadata.reply_to_message_id for own, reply in replies if own}
        for own, reply in replies:
            name = reply.metadata.reply_to_message_id
            if name not in self._open or (name in true and not own):
                continue  # one is there already; and a forged one takes no true one's place
            asked = self._open.pop(name)[1]
            if own:
                self._came.append(read(asked, reply))
            elif reply.has_error():  # of the network itself: the node has gone, or the message has ended
                self._came.append(_silent(asked, line_of(reply.error.reason)))
            else:
                forged = Failure(asked.client, Code.MALFORMED, f"an answer that is not client {asked.client}'s")
                self._came.append(Arrival(asked, failure=forged))
        late = [name for name, (deadline, _) in self._open.items() if time.monotonic() > deadline]
        self._came.extend(_silent(self._open.pop(name)[1]) for name in late)

    def _own(self, reply: Message) -> bool:
        """Whether it answers what is open and comes from whoever was asked that."""
        known = self._open.get(reply.metadata.reply_to_message_id)
        return known is not None and reply.metadata.src_node_id == self._nodes[known[1].client] and self._genuine(reply)


def _silent(asked: Asked, why: str = "") -> Arrival:
    text = f"no answer of client {asked.client} in time" + (f": {why}" if why else "")
    return Arrival(asked, failure=Failure(asked.client, Code.SILENT, text))
