"""What every federation option shares, clients and rounds, and the Flower strategy that each stands for."""

import math
from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le, Lt
from flwr.serverapp import strategy

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
    def updates(self) -> int:
        """How many rounds the server has, at the most."""
        return self.num_rounds

    @property
    def clients_per_round(self) -> int:
        """How many clients are asked in a round."""
        return max(self.min_clients, round(self.fraction_clients * self.num_clients))

    @abstractmethod
    def strategy(self) -> strategy.Strategy:
        """A fresh Flower strategy; its own client sampling is off because ours is seeded."""


@component("federation/fedavg")
class FedAvg(Federation):
    """Federated averaging, weighted by declared records (McMahan et al. 2017)."""

    def strategy(self) -> strategy.Strategy:
        """Flower's FedAvg."""
        return strategy.FedAvg(**self.common)


@component("federation/fedavgm")
class FedAvgM(Federation):
    """Server momentum on the averaged update (Hsu et al. 2019)."""

    server_learning_rate: Annotated[float, Gt(0)]
    server_momentum: Annotated[float, Ge(0), Lt(1)]

    def strategy(self) -> strategy.Strategy:
        """Flower's FedAvgM."""
        return strategy.FedAvgM(
            **self.common, server_learning_rate=self.server_learning_rate, server_momentum=self.server_momentum
        )


@component("federation/fedadam")
class FedAdam(Federation):
    """Adam on the server's pseudo-gradient (Reddi et al. 2021)."""

    server_learning_rate: Annotated[float, Gt(0)]
    beta_1: Annotated[float, Ge(0), Lt(1)]
    beta_2: Annotated[float, Ge(0), Lt(1)]
    tau: Annotated[float, Gt(0)]

    def strategy(self) -> strategy.Strategy:
        """Flower's FedAdam."""
        return strategy.FedAdam(
            **self.common, eta=self.server_learning_rate, beta_1=self.beta_1, beta_2=self.beta_2, tau=self.tau
        )


@component("federation/fedyogi")
class FedYogi(Federation):
    """Yogi on the server's pseudo-gradient (Reddi et al. 2021)."""

    server_learning_rate: Annotated[float, Gt(0)]
    beta_1: Annotated[float, Ge(0), Lt(1)]
    beta_2: Annotated[float, Ge(0), Lt(1)]
    tau: Annotated[float, Gt(0)]

    def strategy(self) -> strategy.Strategy:
        """Flower's FedYogi."""
        return strategy.FedYogi(
            **self.common, eta=self.server_learning_rate, beta_1=self.beta_1, beta_2=self.beta_2, tau=self.tau
        )


@component("federation/fedprox")
class FedProx(Federation):
    """A proximal pull towards the round's model; data-independent, so it costs no privacy (Li et al. 2020)."""

    proximal_mu: Annotated[float, Ge(0)]

    @property
    def pull(self) -> float:
        """``proximal_mu``, as every client configured it."""
        return self.proximal_mu

    def strategy(self) -> strategy.Strategy:
        """Flower's FedProx."""
        return strategy.FedProx(**self.common, proximal_mu=self.proximal_mu)


@component("federation/fedmedian")
class FedMedian(Federation):
    """Coordinate-wise median of the updates (Yin et al. 2018)."""

    robust: ClassVar[bool] = True

    def strategy(self) -> strategy.Strategy:
        """Flower's FedMedian."""
        return strategy.FedMedian(**self.common)


@component("federation/fedtrimmedavg")
class FedTrimmedAvg(Federation):
    """Coordinate-wise trimmed mean of the updates (Yin et al. 2018)."""

    beta: Annotated[float, Ge(0), Lt(0.5)]

    robust: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        clients = self.clients_per_round
        if self.beta > 0 and int(self.beta * clients) == 0:
            least = math.ceil(1000 / clients) / 1000
            accepted = f"{least:g} to below .5" if clients > 2 else "federation.num_clients=3 or more"
            raise ConfigError(
                f"federation.beta={self.beta:g}: of {clients} hospitals a round it trims none; accepted: {accepted}, "
                "or 0 for their mean"
            )

    def strategy(self) -> strategy.Strategy:
        """Flower's FedTrimmedAvg."""
        return strategy.FedTrimmedAvg(**self.common, beta=self.beta)


@component("federation/krum")
class Krum(Federation):
    """The one update nearest to its neighbours (Blanchard et al. 2017)."""

    num_malicious_clients: Annotated[int, Ge(0)]

    robust: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        clients, malicious = self.clients_per_round, self.num_malicious_clients
        if clients < 2 * malicious + 3:  # proposition 4.2
            accepted = f"at most {(clients - 3) // 2}" if clients >= 3 else "federation.num_clients=3 or more"
            raise ConfigError(
                f"federation.num_malicious_clients={malicious}: krum needs at least 2 f + 3 = {2 * malicious + 3} "
                f"hospitals in a round, there are {clients}; accepted: {accepted}"
            )

    def strategy(self) -> strategy.Strategy:
        """Flower's Krum."""
        return strategy.Krum(**self.common, num_malicious_nodes=self.num_malicious_clients)
