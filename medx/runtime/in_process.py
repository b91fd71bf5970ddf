"""Clients in this process: a Grid that calls the ClientApp with a copy of each message."""

import copy
import logging
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Annotated, Any

import torch
from annotated_types import Ge
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from medx.runtime.base import quiet_flower
from medx.schema import component

log = logging.getLogger(__name__)
AHEAD = 16  # replies that may be computed before the first of them is asked for
CLIENT_ERROR = 2  # Flower's code of an exception in a ClientApp


@component
class InProcess:
    """Clients in threads of this process. ``timeout`` has no meaning here and stays null.

    ``workers`` clients train at once, null for what keeps the cores busy; each computes with its share of the cores.
    Replies come in the order of the messages, so the result does not depend on who was first.
    """

    timeout: None
    workers: Annotated[int, Ge(1)] | None

    def run(self, app: ClientApp, num_clients: int, serve: Callable[[Grid], None]) -> None:
        """Call ``serve`` with a grid of ``num_clients`` clients."""
        quiet_flower()
        cores = torch.get_num_threads()  # what this process may use, OMP_NUM_THREADS included
        workers = min(self.workers or busy_workers(cores, num_clients), num_clients)
        pool = ThreadPoolExecutor(workers, "client", torch.set_num_threads, (max(1, cores // workers),))
        try:
            serve(InProcessGrid(app, num_clients, pool))
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C only what is under way is finished


def busy_workers(cores: int, num_clients: int) -> int:
    """As many workers as cores, or up to twice as many where the last clients would leave cores idle.

    Of 5 clients on 2 cores, 2 at a time take as long as 6; 3 at a time share the cores to the end.
    """
    counts = range(cores, min(2 * cores, num_clients) + 1)
    return next((n for n in counts if num_clients % n == 0 or num_clients % n >= cores), min(cores, num_clients))


class InProcessGrid(Grid):
    """Flower's Grid without a network. A client sees a copy of its message, so none can change another's."""

    def __init__(self, app: ClientApp, num_clients: int, pool: ThreadPoolExecutor) -> None:
        # TaskIdentity is what Message() reads its sender from; Flower's own runtimes set it the same way.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self._app = app
        self._pool = pool
        self._run = Run.create_empty(1)
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

    def set_run(self, run: Run) -> None:
        """Replace the run."""
        self._run = run

    @property
    def run(self) -> Run:
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
            self._replies[identifier] = self._call(message, identifier)
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there."""
        return [self._replies.pop(identifier) for identifier in message_ids if identifier in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Replies in the order of the messages, as they are asked for; few wait, so memory holds few at a time."""
        waiting: deque[Future[Message]] = deque()
        for message in messages:
            waiting.append(self._pool.submit(self._call, message, uuid.uuid4().hex))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _call(self, message: Message, identifier: str) -> Message:
        request = Message(copy_of(message.content), message.metadata.dst_node_id, message.metadata.message_type)
        request.metadata.__dict__["_message_id"] = identifier
        try:
            return self._app(request, self._contexts[message.metadata.dst_node_id])
        except Exception as error:
            # A client that fails must not end the run: Flower's runtimes answer with an error, and so does this.
            log.debug("client failed", exc_info=True)
            return Message(Error(CLIENT_ERROR, f"{type(error).__name__}: {error}"), reply_to=request)


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
