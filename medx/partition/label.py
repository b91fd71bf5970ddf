"""Pathological label skew: hospitals that see only a few of the classes."""

from typing import Annotated

import numpy as np
from annotated_types import Ge

from medx.partition.base import Dealt
from medx.schema import ConfigError, component


@component("partition/label")
class Label(Dealt):
    """Every hospital gets ``classes_per_client`` shards of rows of one class (McMahan et al. 2017, section 3).

    Shards are cut within a class and are about equal in size; two of one hospital may be of the same class, so
    that ``classes_per_client`` is the most it ever sees.
    """

    classes_per_client: Annotated[int, Ge(1)]

    def deal(
        self, labels: np.ndarray, num_classes: int, num_clients: int, generator: np.random.Generator
    ) -> list[np.ndarray]:
        """Cut the shuffled classes into shards and deal these at random."""
        counts = np.bincount(labels, minlength=num_classes)
        num_shards, present = num_clients * self.classes_per_client, np.count_nonzero(counts)
        if self.classes_per_client > num_classes or num_shards < present:
            raise ConfigError(
                f"partition.classes_per_client={self.classes_per_client}: {num_clients} hospitals share {present} "
                f"classes; accepted: {-(-present // num_clients)} to {num_classes}"
            )
        rows = (generator.permutation(np.flatnonzero(labels == label)) for label in range(num_classes))
        cut = shards_by_class(counts, num_shards)
        shards = [
            shard for pool, number in zip(rows, cut, strict=True) if number for shard in np.array_split(pool, number)
        ]
        order = generator.permutation(num_shards).reshape(num_clients, self.classes_per_client)
        return [np.concatenate([shards[index] for index in own]) for own in order]


def shards_by_class(counts: np.ndarray, num_shards: int) -> np.ndarray:
    """Into how many shards to cut each class ``[num_classes]``: at least one, so that shards are of about one size."""
    shards = (counts > 0).astype(np.int64)
    while shards.sum() < num_shards:
        shards[np.argmax(counts / np.maximum(shards, 1))] += 1
    return shards
