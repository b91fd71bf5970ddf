"""What every federation option shares: clients, rounds, and the Flower strategy it stands for."""

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le
from flwr.serverapp.strategy import Strategy

from medx.schema import ConfigError, component


@component
class Federation(ABC):
    """Clients and rounds. ``fraction_clients`` of them train in a round; fewer than ``min_clients`` end the run.

    Client sampling amplifies nothing towards the server, which sees every round, so it is not accounted for.
    ``evaluate_every`` rounds the server evaluates (and always after the last one).
    """

    num_clients: Annotated[int, Ge(1)]
    num_rounds: Annotated[int, Ge(1), Le(100_000)]
    fraction_clients: Annotated[float, Gt(0), Le(1)]
    min_clients: Annotated[int, Ge(1)]
    evaluate_every: Annotated[int, Ge(1)]

    robust: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.min_clients > self.num_clients:
            raise ConfigError(
                f"federation.min_clients={self.min_clients} is more than federation.num_clients={self.num_clients}"
            )

    @property
    def common(self) -> dict[str, Any]:
        """Arguments of every Flower strategy: all the nodes that it is shown train, and it waits for no others.

        The minimum is ours to check, after the answers: a strategy would wait for missing nodes for ever.
        """
        return {"fraction_train": 1.0, "min_train_nodes": 1, "min_available_nodes": 1}

    @property
    def pull(self) -> float:
        """How strongly a client pulls towards the round's model (Li et al. 2020): its own setting, not the server's."""
        return 0.0

    @property
    def clients_per_round(self) -> int:
        """How many clients are asked in a round."""
        return max(self.min_clients, round(self.fraction_clients * self.num_clients))

    @abstractmethod
    def strategy(self) -> Strategy:
        """A fresh Flower strategy; its own client sampling is off because ours is seeded."""
