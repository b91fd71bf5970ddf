"""Updates summed in the clear: the server sees every client's update."""

from typing import Annotated, ClassVar

from annotated_types import Ge

from medx.aggregation.roster import default_survivors
from medx.schema import component


@component("aggregation/plain")
class PlainAggregation:
    """No cryptography. Whoever runs the server learns each update, so privacy towards it must come from local noise.

    ``minimum_survivors`` counts where clients share the noise and the server is trusted: None means as many as under
    aggregation=secure, so that both make the same noise.
    """

    minimum_survivors: Annotated[int, Ge(1)] | None

    secure: ClassVar[bool] = False

    def check_strategy(self, strategy: str) -> None:
        """Every strategy works on updates in the clear."""

    def survivors_for(self, num_clients: int) -> int:
        """The fewest clients whose shares make the planned noise."""
        return self.minimum_survivors or min(default_survivors(num_clients), num_clients)
