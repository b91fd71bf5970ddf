"""MedX's plugins for Hydra, which takes them from this package alone."""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override

from medx.sweeper import meaningful


class Combinations(BasicSweeper):
    """Hydra's own sweeper, but that a key is left out of jobs whose option of a group has no such key."""

    @staticmethod
    def split_arguments(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """The jobs' overrides in batches, as Hydra asks for them."""
        (every,) = BasicSweeper.split_arguments(overrides, None)
        return list(BasicSweeper.split_overrides_to_chunks(meaningful(every), max_batch_size))

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Nothing: the sweep's choices were composed before its folder was made, and each job is at its turn."""
