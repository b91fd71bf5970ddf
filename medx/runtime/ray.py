"""Clients on Ray: Flower's simulation, several workers at once, with shares of CPU and GPU for each client."""

import hashlib
import logging
import os
import pickle
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Annotated, cast

import torch
from annotated_types import Ge, Gt
from flwr.app import Context, Message
from flwr.app.typing import ConfigRecordValues
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from medx.federation.flower import quiet_flower
from medx.output import say
from medx.schema import ConfigError, component

BackendConfig = dict[str, dict[str, ConfigRecordValues]]


@component("runtime/ray")
class Ray:
    """Flower's simulation on Ray. ``timeout`` in seconds bounds a round; null waits for every answer."""

    timeout: Annotated[float, Gt(0)] | None
    num_cpus: Annotated[int, Gt(0)] | None
    client_cpus: Annotated[float, Gt(0)]
    client_gpus: Annotated[float, Ge(0)]

    def check(self) -> None:
        """Refuse what Ray would wait for: more for one client than this machine has, as Ray counts it."""
        try:
            from ray._private.utils import get_num_cpus  # the version is pinned; os.cpu_count knows no container
        except ImportError as error:
            raise ConfigError(
                f"runtime=ray needs Flower's simulation extra: pip install 'medx[ray]' ({error})"
            ) from error
        if self.num_cpus is not None and os.environ.get("RAY_ADDRESS"):
            raise ConfigError(
                f"runtime.num_cpus={self.num_cpus}: a cluster that RAY_ADDRESS names has its own; accepted: null"
            )
        cores = get_num_cpus()
        if self.num_cpus is not None and self.num_cpus > cores:  # Ray would start a worker for each, and wait for all
            raise ConfigError(
                f"runtime.num_cpus={self.num_cpus}: this machine has {cores} CPU cores; accepted: at most {cores}"
            )
        cpus, gpus = self.num_cpus or cores, torch.cuda.device_count()
        for name, asked, there, what in (
            ("client_cpus", self.client_cpus, cpus, "runtime.num_cpus" if self.num_cpus else "CPU cores here"),
            ("client_gpus", self.client_gpus, gpus, "GPUs here"),
        ):
            if asked > there:
                raise ConfigError(
                    f"runtime.{name}={asked:g}: no client could start, as there are {there} ({what}); "
                    f"accepted: at most {there}"
                )

    def speeds_of(self, num_clients: int) -> None:
        """It has no virtual clock."""

    def run(self, app: ClientApp, num_clients: int, serve: Callable[[Grid], None]) -> None:
        """Run the server in a thread of this process and the clients in Ray's workers."""
        say("preparing: Ray starts")
        from flwr.simulation import run_simulation
        from ray import cloudpickle

        quiet_flower()
        server = ServerApp()
        raised: list[BaseException] = []
        begun, stopped, ended = threading.Event(), threading.Event(), threading.Event()

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            begun.set()
            try:
                stop_waiting_when(stopped, grid)
                wait_for_nodes(grid, num_clients)
                say("preparing: Ray's workers load libraries and data")
                serve(grid)
            except BaseException as error:
                raised.append(error)
            finally:
                ended.set()

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run_simulation(
                    server_app=server,
                    client_app=cast(ClientApp, Carried(cloudpickle.dumps(app))),
                    num_supernodes=num_clients,
                    backend_config=self.backend_config(),
                )
        finally:
            stopped.set()
            if begun.is_set():
                ended.wait()
        if raised:
            raise raised[0]

    def backend_config(self) -> BackendConfig:
        """Ray's own arguments, and what each client gets of the machine."""
        arguments: dict[str, ConfigRecordValues] = {
            "logging_level": logging.ERROR,
            "log_to_driver": False,
            "include_dashboard": False,
        }
        if self.num_cpus is not None:
            arguments["num_cpus"] = self.num_cpus
        return {
            "init_args": arguments,
            "client_resources": {"num_cpus": self.client_cpus, "num_gpus": self.client_gpus},
        }


class Carried:
    """A ClientApp as it travels: Flower pickles it for every message, which of a thousand clients takes milliseconds.

    So it goes as bytes that are made once, and each worker unpickles them once.
    """

    def __init__(self, pickled: bytes) -> None:
        self.pickled = pickled

    def __reduce__(self) -> tuple[Callable[[str, bytes], ClientApp], tuple[str, bytes]]:
        return arrived, (hashlib.sha256(self.pickled).hexdigest(), self.pickled)


_HERE: dict[str, ClientApp] = {}


def arrived(digest: str, pickled: bytes) -> ClientApp:
    """In a worker, the app of the bytes that have this digest."""
    if digest not in _HERE:
        _HERE.clear()
        _HERE[digest] = pickle.loads(pickled)
    return _HERE[digest]


def stop_waiting_when(stopped: threading.Event, grid: Grid) -> None:
    """Make the grid give up once ``stopped`` is set: after Ctrl-C or a crash of Ray, Flower would wait for ever."""
    pull = grid.pull_messages

    def pull_unless_stopped(message_ids: Iterable[str]) -> Iterable[Message]:
        if stopped.is_set():
            raise KeyboardInterrupt
        return pull(message_ids)

    grid.pull_messages = pull_unless_stopped  # type: ignore[method-assign]


def wait_for_nodes(grid: Grid, num_clients: int, patience: float = 120.0) -> None:
    """Return when all clients have registered, or ``patience`` seconds have passed: the server counts who is there."""
    deadline = time.monotonic() + patience
    while len(list(grid.get_node_ids())) < num_clients and time.monotonic() < deadline:
        time.sleep(0.05)
