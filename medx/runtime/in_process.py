"""Clients in this process: a Grid that calls the ClientApp with a copy of each message."""

import copy
import logging
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from medx.federation.flower import become_a_server, empty_run, name_message, quiet_flower
from medx.schema import ConfigError, component

log = logging.getLogger(__name__)
WORTHWHILE = 1.3  # cores kept busy, below which clients take turns
TRY_AGAIN = 16  # batches after which they are tried together again
AHEAD = 16  # replies that may be computed before the first of them is asked for
CLIENT_ERROR = 2  # Flower's code of an exception in a ClientApp


@component("runtime/in_process")
class InProcess:
    """Clients in threads of this process. ``timeout`` has no meaning here and stays null.

    ``workers`` clients train at once, null for what keeps the cores busy; each computes with its share of the cores.
    Replies come in the order of the messages, so the result does not depend on who was first. ``speeds`` are a virtual
    clock's: the time that each hospital takes for an answer.
    """

    timeout: None
    workers: Annotated[int, Ge(1)] | None
    speeds: tuple[Annotated[float, Gt(0)], ...] | None = None

    added: ClassVar[tuple[str, ...]] = ("speeds",)

    def check(self) -> None:
        """Threads are always there."""

    def speeds_of(self, num_clients: int) -> tuple[float, ...] | None:
        """``speeds``, which must be as many; raises ConfigError."""
        if self.speeds is not None and len(self.speeds) != num_clients:
            raise ConfigError(f"runtime.speeds={list(self.speeds)}: accepted: {num_clients} numbers, one a hospital")
        return self.speeds

    def run(self, app: ClientApp, num_clients: int, serve: Callable[[Grid], None]) -> None:
        """Call ``serve`` with a grid of ``num_clients`` clients."""
        quiet_flower()
        cores = torch.get_num_threads()  # what this process may use, OMP_NUM_THREADS included
        workers = min(self.workers or busy_workers(cores, num_clients), num_clients)
        share = max(1, cores // workers)
        pools = [ThreadPoolExecutor(count, "client", torch.set_num_threads, (share,)) for count in (workers, 1)]
        try:
            serve(InProcessGrid(app, num_clients, Turns(*pools)))
        finally:
            for pool in pools:
                pool.shutdown(cancel_futures=True)  # after Ctrl-C only what is under way is finished


def busy_workers(cores: int, num_clients: int) -> int:
    """As many workers as cores, or up to twice as many where the last clients would leave cores idle.

    Of 5 clients on 2 cores, 2 at a time take as long as 6; 3 at a time share the cores to the end.
    """
    counts = range(cores, min(2 * cores, num_clients) + 1)
    return next((n for n in counts if num_clients % n == 0 or num_clients % n >= cores), min(cores, num_clients))


class Turns:
    """Clients at once or one after the other, whichever the last batch of such messages showed to be faster.

    Threads of Python work at once only inside operations on tensors. Where steps are small they wait for each other
    and keep no more than one core busy: then taking turns is faster by a third. The numbers do not depend on it.
    """

    def __init__(self, together: ThreadPoolExecutor, alone: ThreadPoolExecutor) -> None:
        self._together, self._alone = together, alone
        self._batches: Counter[str] = Counter()
        self._apart: set[str] = set()

    def pool(self, kind: str) -> ThreadPoolExecutor:
        """Where the next batch of messages of this type runs."""
        self._batches[kind] += 1
        again = self._batches[kind] % TRY_AGAIN == 0  # the machine may have been busy with something else
        return self._alone if kind in self._apart and not again else self._together

    def judge(self, kind: str, pool: ThreadPoolExecutor, clients: int, busy: float, elapsed: float) -> None:
        """Note of a batch of ``clients`` the seconds of CPU it took and how long it lasted."""
        if pool is self._together and clients > 1:
            (self._apart.add if busy < WORTHWHILE * elapsed else self._apart.discard)(kind)


class InProcessGrid(Grid):
    """Flower's Grid without a network. A client sees a copy of its message, so none can change another's."""

    def __init__(self, app: ClientApp, num_clients: int, turns: Turns) -> None:
        become_a_server()
        self._app = app
        self._turns = turns
        self._run = empty_run()
        self._contexts = {
            index + 2: Context(
                run_id=1,
                node_id=index + 2,
                node_config={"partition-id": index, "num-partitions": num_clients},
                state=RecordDict(),
                run_config={},
            )
            for index in range(num_clients)
        }
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """Replace the run."""
        self._run = run

    @property
    def run(self) -> Any:
        """The run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All clients are always there."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run every message's client now and keep the replies."""
        identifiers = []
        for message in messages:
            identifier = uuid.uuid4().hex
            self._replies[identifier], _ = self._call(message, identifier)
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there."""
        return [self._replies.pop(identifier) for identifier in message_ids if identifier in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Replies in the order of the messages, as they are asked for; few wait, so memory holds few at a time."""
        waiting: deque[Future[tuple[Message, float]]] = deque()
        asked = list(messages)
        kind = asked[0].metadata.message_type if asked else ""
        pool, started, busy = self._turns.pool(kind), time.perf_counter(), 0.0
        for place, message in enumerate(asked):
            waiting.append(pool.submit(self._call, message, uuid.uuid4().hex))
            while len(waiting) > (AHEAD if place + 1 < len(asked) else 0):
                reply, seconds = waiting.popleft().result()
                busy += seconds
                yield reply
        self._turns.judge(kind, pool, len(asked), busy, time.perf_counter() - started)

    def _call(self, message: Message, identifier: str) -> tuple[Message, float]:
        """The client's reply and the seconds of CPU that it took."""
        started = time.thread_time()
        request = Message(copy_of(message.content), message.metadata.dst_node_id, message.metadata.message_type)
        name_message(request, identifier)
        try:
            reply = self._app(request, self._contexts[message.metadata.dst_node_id])
        except Exception as error:
            # A client that fails must not end the run: Flower's runtimes answer with an error, and so does this.
            log.debug("client failed", exc_info=True)
            reply = Message(Error(CLIENT_ERROR, f"{type(error).__name__}: {error}"), reply_to=request)
        return reply, time.thread_time() - started


def copy_of(content: RecordDict) -> RecordDict:
    """A copy whose records can be changed freely; the bytes of tensors are immutable and shared."""
    return RecordDict({name: _copied(record) for name, record in content.items()})


def _copied(record: Any) -> Any:
    if not isinstance(record, ArrayRecord):
        return copy.deepcopy(record)
    copied = ArrayRecord()  # a deep copy takes milliseconds for nothing, and one made of a dictionary half of that
    for name, array in record.items():
        copied[name] = copy.copy(array)
    return copied
