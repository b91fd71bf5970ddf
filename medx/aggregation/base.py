"""What an aggregation option offers to the rounds."""

from typing import ClassVar, Protocol


class Aggregation(Protocol):
    """A configured aggregation: one module and one yaml of the same name. ``secure`` hides single updates."""

    secure: ClassVar[bool]

    def check_strategy(self, strategy: str) -> None:
        """Raise ConfigError where this federation option needs what the aggregation hides."""
        ...

    def survivors_for(self, num_clients: int) -> int:
        """The fewest clients that a sum of noise shares may be made of."""
        ...
