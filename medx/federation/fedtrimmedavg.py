"""Coordinate-wise trimmed mean of the updates (Yin et al. 2018)."""

from typing import Annotated, ClassVar

from annotated_types import Ge, Lt
from flwr.serverapp import strategy

from medx.federation.base import Federation
from medx.schema import component


@component
class FedTrimmedAvg(Federation):
    """Coordinate-wise trimmed mean of the updates (Yin et al. 2018)."""

    beta: Annotated[float, Ge(0), Lt(0.5)]

    robust: ClassVar[bool] = True

    def strategy(self) -> strategy.Strategy:
        """Flower's FedTrimmedAvg."""
        return strategy.FedTrimmedAvg(**self.common, beta=self.beta)
