"""Coordinate-wise trimmed mean of the updates (Yin et al. 2018)."""

import math
from typing import Annotated, ClassVar

from annotated_types import Ge, Lt
from flwr.serverapp import strategy

from medx.federation.base import Federation
from medx.schema import ConfigError, component


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
