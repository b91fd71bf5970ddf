"""A data set cut down to a first hospital of so few records that a server may hope to see them again."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from medx.dataset import Dataset, DataSplits, Split, content_hash
from medx.randomness import derive_seed, numpy_generator
from medx.schema import ConfigError


@dataclass(frozen=True)
class FewRecords:
    """Of ``base``'s training images, ``records`` at hospital 0 and ``others`` at each of the other ``hospitals``.

    Which ones is drawn from ``seed``. Validation and test stay as they are; patients are not told.
    """

    base: Dataset
    records: int
    others: int
    hospitals: int
    seed: int

    @cached_property
    def whole(self) -> DataSplits:
        """The base's splits."""
        return self.base.load()

    @cached_property
    def rows(self) -> np.ndarray:
        """The training rows that are kept, hospital after hospital; raises ConfigError where there are too few."""
        there, wanted = len(self.whole.train), len(self.numbers)
        if wanted > there:
            raise ConfigError(
                f"records={self.records}: {wanted} images are wanted in all; accepted are at most {there}"
            )
        return numpy_generator(derive_seed(self.seed, "few records")).permutation(there)[:wanted]

    @property
    def numbers(self) -> np.ndarray:
        """The hospital of each kept row."""
        return np.repeat(np.arange(self.hospitals), [self.records] + [self.others] * (self.hospitals - 1))

    def load(self) -> DataSplits:
        """The splits with these training rows alone."""
        base = self.whole
        train = Split(base.train.images[self.rows], base.train.labels[self.rows], hospitals=self.numbers)
        validation, test = (Split(part.images, part.labels) for part in (base.validation, base.test))
        named = content_hash(train, validation, test)
        return replace(base, train=train, validation=validation, test=test, content_hash=named)

    @property
    def targets(self) -> np.ndarray:
        """The images of hospital 0, as an attack wants them ``[records, height, width, channels]``."""
        return self.whole.train.images[self.rows[: self.records]]

    @property
    def elsewhere(self) -> np.ndarray:
        """All other training images, but for those of the same patients where patients are known."""
        train, own = self.whole.train, self.rows[: self.records]
        other = np.ones(len(train), bool)
        other[own] = False
        if train.patients is not None:
            other &= ~np.isin(train.patients, train.patients[own])
        return train.images[other]

    @property
    def described(self) -> Mapping[str, object]:
        """What tells this data set from others."""
        return {"records": self.records, "others": self.others, "hospitals": self.hospitals, "seed": self.seed}
