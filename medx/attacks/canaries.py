"""Canaries: records that are put into a data set by fair coins, so that an observer's guesses can be counted."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from medx.dataset import Dataset, DataSplits, Split, content_hash
from medx.randomness import derive_seed, numpy_generator
from medx.schema import ConfigError

BLOCKS = 7  # of a canary's image, either way


@dataclass(frozen=True)
class CanaryData:
    """A data set in which the first ``count`` training images are a canary each, or a blank image, by a fair coin.

    A canary is a mosaic of black and white blocks. Where a coin says no a blank image is in its place, so that counts,
    and with them the plan, do not depend on the coins; an observer looks away from the blank's one direction, and
    there the record's content is taken out, as in the adjacency that is claimed (zero-out). With ``hospitals``, one for
    each canary, all of a hospital's ``per_hospital`` images are its canary or blank, and there are no other images.
    """

    base: Dataset
    count: int
    seed: int
    hospitals: bool = False
    per_hospital: int = 2

    @cached_property
    def coins(self) -> np.ndarray:
        """Which canaries are in, ``bool [count]``."""
        return numpy_generator(derive_seed(self.seed, "canaries", "coins")).random(self.count) < 0.5

    def load(self) -> DataSplits:
        """The base's splits with the canaries in them; raises ConfigError where it has too few images or patients."""
        base = self.base.load()
        if base.task == "multilabel":
            raise ConfigError(f"dataset={base.name}: canaries have one label each; accepted: another task")
        if self.hospitals:
            train = self._hospitals(base)
        else:
            if len(base.train) <= self.count:
                raise ConfigError(
                    f"canaries={self.count}: accepted are fewer than the {len(base.train)} training images of "
                    f"dataset={base.name}"
                )
            train = self._among(base)
        validation, test = (Split(part.images, part.labels) for part in (base.validation, base.test))
        whole = replace(base, train=train, validation=validation, test=test)
        return replace(whole, content_hash=content_hash(train, validation, test), public=False)

    def _among(self, base: DataSplits) -> Split:
        images, labels = base.train.images.copy(), base.train.labels.copy()
        images[: self.count], labels[: self.count] = self._records(base)
        return Split(images, labels)

    def _hospitals(self, base: DataSplits) -> Split:
        images, labels = (np.repeat(each, self.per_hospital, 0) for each in self._records(base))
        return Split(images, labels, hospitals=np.repeat(np.arange(self.count), self.per_hospital))

    def _records(self, base: DataSplits) -> tuple[np.ndarray, np.ndarray]:
        """Images ``[count, height, width, channels]`` and labels, which the coins do not move."""
        generator = numpy_generator(derive_seed(self.seed, "canaries", "images"))
        images = np.zeros((self.count, *base.train.images.shape[1:]), base.train.images.dtype)
        labels = np.arange(self.count) % len(base.class_names)
        images[self.coins] = self.mosaics(generator, images)[self.coins]
        return images, labels

    def mosaics(self, generator: np.random.Generator, like: np.ndarray) -> np.ndarray:
        """All canaries' images, whether they are in or not."""
        count, height, width, channels = like.shape
        blocks = generator.random((count, BLOCKS, BLOCKS, channels)) < 0.5
        rows, columns = (np.arange(size) * BLOCKS // size for size in (height, width))
        return (blocks[:, rows][:, :, columns] * np.iinfo(like.dtype).max).astype(like.dtype)

    def images(self, splits: DataSplits) -> tuple[np.ndarray, np.ndarray]:
        """All mosaics, whether they are in or not, and the blank image ``[1, ...]``."""
        generator = numpy_generator(derive_seed(self.seed, "canaries", "images"))
        like = np.zeros((self.count, *splits.train.images.shape[1:]), splits.train.images.dtype)
        return self.mosaics(generator, like), like[:1]

    @property
    def described(self) -> Mapping[str, object]:
        """What tells this data set from others."""
        return {"canaries": self.count, "seed": self.seed, "hospitals": self.hospitals, "each": self.per_hospital}
