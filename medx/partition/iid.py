"""Independent and identically distributed hospitals: the easy case that skewed ones are compared with."""

import numpy as np

from medx.partition.base import Dealt
from medx.schema import component


@component("partition/iid")
class Iid(Dealt):
    """All rows shuffled and cut into parts whose sizes differ by one at most."""

    def deal(
        self, labels: np.ndarray, num_classes: int, num_clients: int, generator: np.random.Generator
    ) -> list[np.ndarray]:
        """One shuffle."""
        return np.array_split(generator.permutation(len(labels)), num_clients)
