"""Partitions: disjoint rows for every hospital that together are all rows, drawn from one generator.

Where patients are known, all images of one are at one hospital. ``patients`` and ``hospitals`` are numbers, one a row.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from annotated_types import Ge, Gt
from numpy.random import Generator

from medx.dataset.dealing import majority_labels
from medx.dataset.labels import count_classes
from medx.schema import ConfigError, component

Rows = list[np.ndarray]  # of every client

MAX_DRAWS = 1000  # before a demand on the sizes counts as out of reach


class Partition(Protocol):
    """A configured partition: one class, one yaml."""

    def split(
        self, labels: np.ndarray, num_classes: int, num_clients: int, generator: Generator, **known: np.ndarray
    ) -> Rows:
        """Sorted row indices ``int64`` of every client, disjoint, covering all rows of ``labels``.

        ``known`` has ``patients`` and ``hospitals``, each where the data set tells them.
        """
        ...


@component
class RandomPartition(ABC):
    """What every partition shares: draw, look at the sizes, draw again a bounded number of times.

    Every client has at least ``min_records`` records and at least one; with ``allow_empty`` it may have none.
    """

    min_records: Annotated[int, Ge(0)]
    allow_empty: bool

    @abstractmethod
    def draw(self, labels: np.ndarray, num_classes: int, num_clients: int, generator: Generator) -> Rows:
        """One draw, whatever its sizes."""

    def split(
        self,
        labels: np.ndarray,
        num_classes: int,
        num_clients: int,
        generator: Generator,
        *,
        patients: np.ndarray | None = None,
        hospitals: np.ndarray | None = None,
    ) -> Rows:
        """The first draw whose sizes are accepted; raises ConfigError where none is.

        What is drawn are patients where they are known, each under the label of most of the images. Hospitals that the
        data have play no part.
        """
        del hospitals
        units = None if patients is None else np.unique(patients, return_inverse=True)[1]
        drawn = labels if units is None else majority_labels(labels, units)
        least = max(self.min_records, 1)
        if least * num_clients > len(labels) and not self.allow_empty:
            raise ConfigError(
                f"partition.min_records={self.min_records}: {num_clients} hospitals with at least {least} records "
                f"each need {least * num_clients}, the training split has {len(labels)}; accepted: federation."
                f"num_clients up to {len(labels) // least}, or fewer records each"
            )
        for _ in range(MAX_DRAWS):
            parts = self.draw(drawn, num_classes, num_clients, generator)
            if units is not None:
                parts = [np.flatnonzero(np.isin(units, part)) for part in parts]
            if all(len(part) >= least or (self.allow_empty and not len(part)) for part in parts):
                return [np.sort(part).astype(np.int64) for part in parts]
        raise ConfigError(
            f"partition.min_records={self.min_records}: none of {MAX_DRAWS} draws gave each of {num_clients} "
            f"hospitals at least {least} of {len(labels)} records (the last draw: {min(map(len, parts))} to "
            f"{max(map(len, parts))}); lower it, have fewer hospitals or less skew, or set partition.allow_empty=true"
        )


@component("partition/site")
class Site:
    """The hospitals that the data have, in the order of their names: as many clients as have training records.

    A patient at several of them is refused, or with ``shared_patients=compose`` stays at each: the epsilon of a patient
    then adds up over them.
    """

    shared_patients: Literal["refuse", "compose"]

    def num_clients(self, dataset: Any) -> int | None:
        """How many hospitals a configured data set has; None where it has none, or cannot tell before it is loaded."""
        count: int | None = dataset.num_hospitals() if hasattr(dataset, "num_hospitals") else None
        return count

    def split(
        self,
        labels: np.ndarray,
        num_classes: int,
        num_clients: int,
        generator: Generator,
        *,
        patients: np.ndarray | None = None,
        hospitals: np.ndarray | None = None,
    ) -> Rows:
        """The rows of each hospital; raises ConfigError where there are none, or another number of them."""
        del num_classes, generator
        if hospitals is None:
            raise ConfigError(
                "partition=site: the data set has no hospitals; accepted: dataset=folder with a column of hospitals "
                "(dataset.columns.hospital)"
            )
        parts = [np.flatnonzero(hospitals == hospital).astype(np.int64) for hospital in np.unique(hospitals)]
        if len(parts) != num_clients:
            raise ConfigError(
                f"federation.num_clients={num_clients}: partition=site takes as many as there are hospitals with "
                f"training records, {len(parts)}"
            )
        if patients is not None and self.shared_patients == "refuse":
            met = np.concatenate([np.unique(patients[part]) for part in parts])
            shared = len(met) - len(np.unique(met))
            if shared:
                raise ConfigError(
                    f"partition.shared_patients=refuse: {shared} times a patient of one hospital is also at another, "
                    "so no hospital's guarantee covers all of them; accepted: compose, or each patient at one hospital"
                )
        return parts


@component("partition/iid")
class Iid(RandomPartition):
    """All rows shuffled and cut into parts whose sizes differ by one at most: the case without skew."""

    def draw(self, labels: np.ndarray, num_classes: int, num_clients: int, generator: Generator) -> Rows:
        """One shuffle."""
        return np.array_split(generator.permutation(len(labels)), num_clients)


@component("partition/quantity")
class Quantity(RandomPartition):
    """Shuffled rows, sizes proportional to a symmetric Dirichlet draw (Li et al. 2022, quantity skew).

    ``alpha`` is its concentration: the smaller, the more unequal.
    """

    alpha: Annotated[float, Gt(0)]

    def draw(self, labels: np.ndarray, num_classes: int, num_clients: int, generator: Generator) -> Rows:
        """One draw of sizes and one shuffle."""
        shares = generator.dirichlet(np.full(num_clients, self.alpha))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(labels)).astype(np.int64)
        return np.split(generator.permutation(len(labels)), cuts)


@component("partition/dirichlet")
class Dirichlet(RandomPartition):
    """Every hospital's class mix is drawn from ``Dirichlet(alpha * prior)`` (Hsu et al. 2019, section 3).

    The prior is the class distribution of the whole, and sizes differ by one at most. ``alpha``: 100 is nearly
    IID, .1 gives most hospitals one class. Rows are dealt without replacement, so where a class runs out its
    share goes to the others.
    """

    alpha: Annotated[float, Gt(0)]

    def draw(self, labels: np.ndarray, num_classes: int, num_clients: int, generator: Generator) -> Rows:
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


def draw_counts(size: int, mix: np.ndarray, left: np.ndarray, generator: Generator) -> np.ndarray:
    """How many of each class ``[num_classes]``: ``size`` draws from ``mix``, never more than are ``left``."""
    taken = np.zeros_like(left)
    while (missing := size - taken.sum()) > 0:
        room = left - taken
        weights = np.where(room > 0, mix, 0.0)
        if weights.sum() < 1e-12:  # the classes of this mix are used up: the rest, as it comes
            weights = room.astype(float)
        taken += np.minimum(generator.multinomial(missing, weights / weights.sum()), room)
    return taken


@component("partition/label")
class Label(RandomPartition):
    """Every hospital gets ``classes_per_client`` shards of rows of one class (McMahan et al. 2017, section 3).

    Shards are cut within a class and are about equal in size; two of one hospital may be of the same class, so
    that ``classes_per_client`` is the most it ever sees.
    """

    classes_per_client: Annotated[int, Ge(1)]

    def draw(self, labels: np.ndarray, num_classes: int, num_clients: int, generator: Generator) -> Rows:
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


def partition_table(
    parts: Sequence[np.ndarray], labels: np.ndarray, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """One row a hospital: ``hospital``, ``records``, and the count of every class under its name."""
    return [
        {"hospital": client, "records": len(part)}
        | dict(zip(class_names, count_classes(labels[part], len(class_names)), strict=True))
        for client, part in enumerate(parts)
    ]
