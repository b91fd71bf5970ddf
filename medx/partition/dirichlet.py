"""Label skew: hospitals of equal size, each with its own mix of classes."""

from typing import Annotated

import numpy as np
from annotated_types import Gt

from medx.partition.base import Dealt
from medx.schema import component


@component("partition/dirichlet")
class Dirichlet(Dealt):
    """Every hospital's class mix is drawn from ``Dirichlet(alpha * prior)`` (Hsu et al. 2019, section 3).

    The prior is the class distribution of the whole, and sizes differ by one at most. ``alpha``: 100 is nearly
    IID, .1 gives most hospitals one class. Rows are dealt without replacement, so where a class runs out its
    share goes to the others.
    """

    alpha: Annotated[float, Gt(0)]

    def deal(
        self, labels: np.ndarray, num_classes: int, num_clients: int, generator: np.random.Generator
    ) -> list[np.ndarray]:
        """One mix for every client in turn, then its rows from the shuffled classes."""
        pools = [generator.permutation(np.flatnonzero(labels == label)) for label in range(num_classes)]
        left = np.array([len(pool) for pool in pools])
        prior = left / left.sum()
        present = prior > 0
        sizes = [len(part) for part in np.array_split(labels, num_clients)]
        parts = []
        for size in sizes:
            mix = np.zeros(num_classes)
            mix[present] = generator.dirichlet(self.alpha * prior[present])
            taken = draw_counts(size, mix, left, generator)
            ends = left - taken
            parts.append(np.concatenate([pool[end:start] for pool, end, start in zip(pools, ends, left, strict=True)]))
            left = ends
        return parts


def draw_counts(size: int, mix: np.ndarray, left: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """How many of each class ``[num_classes]``: ``size`` draws from ``mix``, never more than are ``left``."""
    taken = np.zeros_like(left)
    while (missing := size - taken.sum()) > 0:
        room = left - taken
        weights = np.where(room > 0, mix, 0.0)
        if weights.sum() < 1e-12:  # the classes of this mix are used up: the rest, as it comes
            weights = room.astype(float)
        taken += np.minimum(generator.multinomial(missing, weights / weights.sum()), room)
    return taken
