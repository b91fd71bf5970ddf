"""Federated averaging, weighted by declared records (McMahan et al. 2017)."""

from flwr.serverapp import strategy

from medx.federation.base import Federation
from medx.schema import component


@component("federation/fedavg")
class FedAvg(Federation):
    """Federated averaging, weighted by declared records (McMahan et al. 2017)."""

    def strategy(self) -> strategy.Strategy:
        """Flower's FedAvg."""
        return strategy.FedAvg(**self.common)
