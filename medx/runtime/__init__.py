"""Where clients run: in this process, or on Ray. What a runtime does: run the same ServerApp logic and ClientApp."""

from collections.abc import Callable
from typing import Protocol

from flwr.clientapp import ClientApp
from flwr.serverapp import Grid


class Runtime(Protocol):
    """A configured runtime: one module and one yaml of the same name."""

    timeout: float | None

    def check(self) -> None:
        """Raise ConfigError where this machine cannot run one client; called before anything is trained."""
        ...

    def speeds_of(self, num_clients: int) -> tuple[float, ...] | None:
        """Virtual time that each hospital takes for an answer; None where nothing is said of it."""
        ...

    def run(self, app: ClientApp, num_clients: int, serve: Callable[[Grid], None]) -> None:
        """Start ``num_clients`` clients of ``app`` and call ``serve`` with a Grid that reaches them.

        Exceptions of ``serve`` come out of here unchanged.
        """
        ...
