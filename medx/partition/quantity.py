"""Quantity skew: large and small hospitals with the same mix of classes."""

from typing import Annotated

import numpy as np
from annotated_types import Gt

from medx.partition.base import Dealt
from medx.schema import component


@component("partition/quantity")
class Quantity(Dealt):
    """Shuffled rows, sizes proportional to a symmetric Dirichlet draw (Li et al. 2022, quantity skew).

    ``alpha`` is its concentration: the smaller, the more unequal.
    """

    alpha: Annotated[float, Gt(0)]

    def deal(
        self, labels: np.ndarray, num_classes: int, num_clients: int, generator: np.random.Generator
    ) -> list[np.ndarray]:
        """One draw of sizes and one shuffle."""
        shares = generator.dirichlet(np.full(num_clients, self.alpha))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(labels)).astype(np.int64)
        return np.split(generator.permutation(len(labels)), cuts)
