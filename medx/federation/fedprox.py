"""A proximal pull towards the round's model; data-independent, so it costs no privacy (Li et al. 2020)."""

from typing import Annotated

from annotated_types import Ge
from flwr.serverapp import strategy

from medx.federation.base import Federation
from medx.schema import component


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
