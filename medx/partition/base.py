"""What a partition is: disjoint rows for every client that together are all rows, drawn from one generator."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import numpy as np
from annotated_types import Ge

from medx.schema import ConfigError, component

MAX_DRAWS = 1000  # before a demand on the sizes counts as out of reach


class Partition(Protocol):
    """A configured partition: one module and one yaml of the same name."""

    def split(
        self, labels: np.ndarray, num_classes: int, num_clients: int, generator: np.random.Generator
    ) -> list[np.ndarray]:
        """Sorted row indices ``int64`` of every client, disjoint, covering all rows of ``labels``."""
        ...


@component
class Dealt(ABC):
    """What every partition shares: draw, look at the sizes, draw again a bounded number of times.

    Every client has at least ``min_records`` records and at least one; with ``allow_empty`` it may have none.
    """

    min_records: Annotated[int, Ge(0)]
    allow_empty: bool

    @abstractmethod
    def deal(
        self, labels: np.ndarray, num_classes: int, num_clients: int, generator: np.random.Generator
    ) -> list[np.ndarray]:
        """One draw, whatever its sizes."""

    def split(
        self, labels: np.ndarray, num_classes: int, num_clients: int, generator: np.random.Generator
    ) -> list[np.ndarray]:
        """The first draw whose sizes are accepted; raises ConfigError where none is."""
        least = max(self.min_records, 1)
        if least * num_clients > len(labels) and not self.allow_empty:
            raise ConfigError(
                f"partition.min_records={self.min_records}: {num_clients} hospitals with at least {least} records "
                f"each need {least * num_clients}, the training split has {len(labels)}"
            )
        for _ in range(MAX_DRAWS):
            parts = self.deal(labels, num_classes, num_clients, generator)
            if all(len(part) >= least or (self.allow_empty and not len(part)) for part in parts):
                return [np.sort(part).astype(np.int64) for part in parts]
        raise ConfigError(
            f"partition.min_records={self.min_records}: none of {MAX_DRAWS} draws gave each of {num_clients} "
            f"hospitals at least {least} of {len(labels)} records (the last draw: {min(map(len, parts))} to "
            f"{max(map(len, parts))}); lower it, have fewer hospitals or less skew, or set partition.allow_empty=true"
        )


def partition_table(
    parts: Sequence[np.ndarray], labels: np.ndarray, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """One row a hospital: ``hospital``, ``records``, and the count of every class under its name."""
    counts = [np.bincount(labels[part], minlength=len(class_names)).tolist() for part in parts]
    return [
        {"hospital": client, "records": sum(row), **dict(zip(class_names, row, strict=True))}
        for client, row in enumerate(counts)
    ]
