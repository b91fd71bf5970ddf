"""Flower's processes, as far as MedX does not leave them to their own commands: all that is private of them is here.

Three things are changed, each of which makes something slower or less safe where it is not, and never wrong: a
hospital's executor calls the installed app and does not unpack what a run brings; node and grid look for messages more
often; and from outside the coordinator's machine nothing but the nodes' own API can be reached. Of flwr 1.41;
``tests/site/test_flower.py`` holds what is relied on.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import httpx
from flwr.app import Context, Message
from flwr.serverapp import Grid

from medx.runtime.passing import PassingOn

POLL = 0.1  # seconds between two looks for messages
IDLE_POLL = 1.0  # the same where none has come for a while, as every look costs all sides a request
IDLE_AFTER = 20.0  # seconds
SOON = 0.02  # seconds between the first two looks for a part of one
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_INTERNAL_GRPC_CONTROL_API": "0",  # ports of their own, without the door
    "FLWR_INTERNAL_GRPC_FLEET_API": "0",
}
ASKS_FOR_WORDS = ("train", "train.sum", "train.masked")  # messages by which a hospital may spend its budget
NO_MESSAGE = 3  # seconds that Flower's node sleeps where there was none
OUTSIDE = ("/v1/fleet/", "/health")  # what others than the operator may ask for
COMPLETED = "completed"
FAILED = "failed"
App = Callable[[Message, Context], Message]


class Rest:
    """The rest between two looks for messages: short while there are some, longer after none has come for a while."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def found(self) -> None:
        """A message was there."""
        self._last = time.monotonic()

    def take(self) -> None:
        """Rest."""
        time.sleep(POLL if time.monotonic() - self._last < IDLE_AFTER else IDLE_POLL)


class Work:
    """A node's messages for the app that is installed here; ``address`` is that of the node's runtime API."""

    def __init__(self, address: str, secret: bytes) -> None:
        from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor

        method = "/flwr.proto.Runtime/AcquireTask"
        signing = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=frozenset({method}))
        look_again_soon()
        self._address = address
        self._client = _runtime_client(address, signing)

    def next(self) -> str | None:
        """The token of a message that waits; None where there is none, or no node yet."""
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore.constant import TaskType

        try:
            answer = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except httpx.TransportError:
            return None
        return answer.token if answer.HasField("task") and answer.token else None

    def do(self, token: str, app: App) -> None:
        """Let the app answer the message. What else came with the run, its bundle of files, is never unpacked."""
        from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
        from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
        from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

        client = _runtime_client(self._address, RuntimeTokenHttpInterceptor(token))
        heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
        heartbeat.start()
        context, status = None, FAILED
        try:
            message, context, _, _ = pull_task_input(client)
            push_message(client, app(message, context), context)
            status = COMPLETED
        finally:
            heartbeat.stop()
            push_task_output(client, context, status, "")
            client.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _runtime_client(address: str, interceptor: Any) -> Any:
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
    from flwr.supercore.retry import make_simple_http_retry_invoker
    from flwr.supercore.runtime import RuntimeHttpClient

    retries = make_simple_http_retry_invoker()
    retries.max_tries = 2  # the executor asks again by itself
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,  # of this machine, or of the network of node and executor alone
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), interceptor],
        retry_invoker=retries,
    )


class Patient(PassingOn):
    """A grid that waits for nodes which restart, looks for answers often, and lets messages end with their time.

    ``timeout`` bounds an exchange in seconds, ``patience`` the wait for nodes before it. ``asked`` counts by node the
    messages by which a hospital may have spent budget. An answer that is not ``genuine`` is as none.
    """

    def __init__(
        self, grid: Grid, *, timeout: float, patience: float, genuine: Callable[[Message], bool] = lambda answer: True
    ) -> None:
        look_again_soon()
        super().__init__(grid)
        self.timeout = timeout
        self.patience = patience
        self.is_genuine = genuine
        self.asked: Counter[int] = Counter()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send, and count what may cost budget."""
        given = list(messages)
        for message in given:
            if message.metadata.message_type in ASKS_FOR_WORDS:
                self.asked[message.metadata.dst_node_id] += 1
        return self._grid.push_messages(given)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Answers as they come, until all have or the time is over."""
        given, seconds = list(messages), timeout or self.timeout
        self.wait_for({message.metadata.dst_node_id for message in given})
        for message in given:
            message.metadata.ttl = seconds  # nobody works off what nobody waits for any more
        waiting = {identifier for identifier in self.push_messages(given) if identifier}
        deadline = time.monotonic() + seconds
        while waiting and time.monotonic() < deadline:
            answers = list(self.pull_messages(waiting))
            waiting -= {answer.metadata.reply_to_message_id for answer in answers}
            yield from (answer for answer in answers if self.is_genuine(answer))
            if not answers:
                time.sleep(POLL)

    def wait_for(self, nodes: set[int]) -> None:
        """Wait, as long as patience has it, until these nodes are there."""
        deadline = time.monotonic() + self.patience
        while not nodes <= set(self.get_node_ids()) and time.monotonic() < deadline:
            time.sleep(1)


class Door:
    """ASGI middleware: whoever is not at one of the ``operators``' addresses reaches the nodes' API and no other.

    The open edition's Control API knows no accounts, so an address is all that tells its user.
    """

    def __init__(self, app: Any, operators: frozenset[str]) -> None:
        self._app = app
        self._operators = operators

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """Let through, or answer 403."""
        if scope["type"] != "lifespan":
            peer, path = (scope.get("client") or ("", 0))[0], str(scope.get("path", ""))
            if peer not in self._operators and not (path == OUTSIDE[1] or path.startswith(OUTSIDE[0])):
                if scope["type"] == "http":
                    await send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"0")]})
                    await send({"type": "http.response.body", "body": b""})
                return
        await self._app(scope, receive, send)


def look_again_soon() -> None:
    """Let this process look for a message's parts after a moment, where Flower waits a second.

    A message is announced before its parts are there, so whoever looks often meets that wait in each exchange.
    """
    from flwr.supercore.inflatable import inflatable_utils

    for pull in (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree):
        defaults = pull.__kwdefaults__
        assert defaults is not None
        defaults["initial_backoff"] = SOON


def superlink(arguments: list[str], operators: Iterable[str]) -> None:
    """Flower's ``flower-superlink`` behind a door, in this process."""
    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink
    from starlette.middleware import Middleware

    before, allowed = extensions.get_middleware, frozenset(operators)
    extensions.get_middleware = lambda: (Middleware(Door, operators=allowed), *before())  # type: ignore[arg-type]
    sys.argv = ["flower-superlink", *arguments]
    flower_superlink()


def forgotten_where_its_run_ended(pull: Callable[..., dict[str, bytes]]) -> Callable[..., dict[str, bytes]]:
    """How a node pulls a message's parts, so that it forgets a message whose run ended meanwhile.

    Flower's own ``pull`` raises what its node does not take for a failure: the message stays without its parts, and an
    executor that is given it asks for them for more than an hour.
    """
    from flwr.supercore.run import RunNotRunningException

    def pulled(*args: Any, **kwargs: Any) -> dict[str, bytes]:
        try:
            return pull(*args, **kwargs)
        except RunNotRunningException as ended:
            raise RuntimeError("its run has ended") from ended

    return pulled


def supernode(arguments: list[str]) -> None:
    """Flower's ``flower-supernode`` in this process, which looks for messages often and keeps none of ended runs."""
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    look_again_soon()
    rest = Rest()

    def sleep(seconds: float) -> None:
        if seconds < NO_MESSAGE:  # it waits for an answer, so a message has come
            rest.found()
        rest.take()

    start_client_internal.time = SimpleNamespace(sleep=sleep)  # type: ignore[assignment]
    start_client_internal.pull_objects = forgotten_where_its_run_ended(start_client_internal.pull_objects)
    sys.argv = ["flower-supernode", *arguments]
    flower_supernode()


def main() -> None:
    """``python -m medx.site.flower superlink|supernode ARGUMENTS``: what the commands of coordinator and site start."""
    os.environ.update(QUIET)
    which, *arguments = sys.argv[1:]
    if which == "superlink":
        operators, *arguments = arguments
        superlink(arguments, operators.split(","))
    else:
        supernode(arguments)


if __name__ == "__main__":
    main()
