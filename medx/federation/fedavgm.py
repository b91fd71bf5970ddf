"""Server momentum on the averaged update (Hsu et al. 2019)."""

from typing import Annotated

from annotated_types import Ge, Gt, Lt
from flwr.serverapp import strategy

from medx.federation.base import Federation
from medx.schema import component


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
