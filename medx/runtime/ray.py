"""Clients on Ray: Flower's simulation, several workers at once, with shares of CPU and GPU for each client."""

import logging
import time
import warnings
from collections.abc import Callable
from typing import Annotated

from annotated_types import Ge, Gt
from flwr.app import Context
from flwr.app.typing import ConfigRecordValues
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from medx.runtime.base import quiet_flower
from medx.schema import ConfigError, component


@component
class Ray:
    """Flower's simulation on Ray. ``timeout`` in seconds bounds a round; null waits for every answer."""

    timeout: Annotated[float, Gt(0)] | None
    num_cpus: Annotated[int, Gt(0)] | None
    client_cpus: Annotated[float, Gt(0)]
    client_gpus: Annotated[float, Ge(0)]

    def run(self, app: ClientApp, num_clients: int, serve: Callable[[Grid], None]) -> None:
        """Run the server in a thread of this process and the clients in Ray's workers."""
        try:
            from flwr.simulation import run_simulation
        except ImportError as error:
            raise ConfigError(
                f"runtime=ray needs Flower's simulation extra: pip install 'medx[ray]' ({error})"
            ) from error
        quiet_flower()
        server = ServerApp()
        raised: list[BaseException] = []

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            try:
                wait_for_nodes(grid, num_clients)
                serve(grid)
            except BaseException as error:
                raised.append(error)

        arguments: dict[str, ConfigRecordValues] = {
            "logging_level": logging.ERROR,
            "log_to_driver": False,
            "include_dashboard": False,
        }
        if self.num_cpus is not None:
            arguments["num_cpus"] = self.num_cpus
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run_simulation(
                server_app=server,
                client_app=app,
                num_supernodes=num_clients,
                backend_config={
                    "init_args": arguments,
                    "client_resources": {"num_cpus": self.client_cpus, "num_gpus": self.client_gpus},
                },
            )
        if raised:
            raise raised[0]


def wait_for_nodes(grid: Grid, num_clients: int, patience: float = 120.0) -> None:
    """Return when all clients have registered, or ``patience`` seconds have passed: the server counts who is there."""
    deadline = time.monotonic() + patience
    while len(list(grid.get_node_ids())) < num_clients and time.monotonic() < deadline:
        time.sleep(0.05)
