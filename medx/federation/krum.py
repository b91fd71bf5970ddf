"""The one update nearest to its neighbours (Blanchard et al. 2017)."""

from typing import Annotated, ClassVar

from annotated_types import Ge
from flwr.serverapp import strategy

from medx.federation.base import Federation
from medx.schema import ConfigError, component


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
