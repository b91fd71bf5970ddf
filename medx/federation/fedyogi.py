"""Yogi on the server's pseudo-gradient (Reddi et al. 2021)."""

from typing import Annotated

from annotated_types import Ge, Gt, Lt
from flwr.serverapp import strategy

from medx.federation.base import Federation
from medx.schema import component


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
