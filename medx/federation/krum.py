"""The one update nearest to its neighbours (Blanchard et al. 2017)."""

from typing import Annotated, ClassVar

from annotated_types import Ge
from flwr.serverapp import strategy

from medx.federation.base import Federation
from medx.schema import component


@component
class Krum(Federation):
    """The one update nearest to its neighbours (Blanchard et al. 2017)."""

    num_malicious_clients: Annotated[int, Ge(0)]

    robust: ClassVar[bool] = True

    def strategy(self) -> strategy.Strategy:
        """Flower's Krum."""
        return strategy.Krum(**self.common, num_malicious_nodes=self.num_malicious_clients)
