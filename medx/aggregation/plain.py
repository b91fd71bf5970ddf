"""Updates summed in the clear: the server sees every client's update."""

from typing import ClassVar

from medx.schema import component


@component
class PlainAggregation:
    """No cryptography. Whoever runs the server learns each update, so privacy towards it must come from local noise."""

    secure: ClassVar[bool] = False

    def check_strategy(self, strategy: str) -> None:
        """Every strategy works on updates in the clear."""

    def survivors_for(self, num_clients: int) -> None:
        """No protocol demands a minimum; ``federation.min_clients`` does."""
