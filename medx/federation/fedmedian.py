"""Coordinate-wise median of the updates (Yin et al. 2018)."""

from typing import ClassVar

from flwr.serverapp import strategy

from medx.federation.base import Federation
from medx.schema import component


@component("federation/fedmedian")
class FedMedian(Federation):
    """Coordinate-wise median of the updates (Yin et al. 2018)."""

    robust: ClassVar[bool] = True

    def strategy(self) -> strategy.Strategy:
        """Flower's FedMedian."""
        return strategy.FedMedian(**self.common)
