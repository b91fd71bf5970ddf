"""SYNTHETIC images, drawn when they are needed: no file, no network, no patient."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le

from medx.dataset import (
    IMAGE_VALUE,
    DataSplits,
    Split,
    Task,
    chest_phantom,
    content_hash,
    fundus_phantom,
    refuse_beyond_memory,
)
from medx.randomness import derive_seed, numpy_generator
from medx.schema import component

NORMALISATION = 0.5


@dataclass(frozen=True)
class Kind:
    """What is drawn: ``draw(count, size, generator)`` gives images ``uint8 [count, size, size, channels]``, labels."""

    task: Task
    class_names: tuple[str, ...]
    num_channels: int
    draw: Callable[[int, int, np.random.Generator], tuple[np.ndarray, np.ndarray]]


KINDS = {
    "chest": Kind("binary", chest_phantom.CLASS_NAMES, 1, chest_phantom.draw_chest),
    "fundus": Kind("ordinal", fundus_phantom.CLASS_NAMES, 3, fundus_phantom.draw_fundus),
}


def kind_of(num_channels: int) -> Kind | None:
    """The phantoms of so many channels; None where none are drawn."""
    return next((kind for kind in KINDS.values() if kind.num_channels == num_channels), None)


@component("dataset/phantom")
class Phantom:
    """SYNTHETIC chest radiographs (clear or with an opacity) or fundus photographs (grades 0 to 4).

    ``seed`` fixes the drawing, apart from the experiment's seed, so that all runs share one data set.
    """

    kind: Literal["chest", "fundus"]
    size: Annotated[int, Ge(16), Le(512)]
    num_train: Annotated[int, Ge(1)]
    num_validation: Annotated[int, Ge(1)]
    num_test: Annotated[int, Ge(1)]
    seed: Annotated[int, Ge(0)]

    def load(self) -> DataSplits:
        """Draw the three splits, each from a generator of its own; raises DataError where memory is short."""
        kind = KINDS[self.kind]
        count = self.num_train + self.num_validation + self.num_test
        what = f"dataset=phantom: {count} images at dataset.size={self.size}"
        needed = float(IMAGE_VALUE * count * self.size**2 * kind.num_channels)
        refuse_beyond_memory(what, needed, "fewer images or a smaller size")
        counts = {"train": self.num_train, "validation": self.num_validation, "test": self.num_test}
        train, validation, test = (self._draw(kind, split, number) for split, number in counts.items())
        return DataSplits(
            name="phantom",
            title=f"SYNTHETIC {self.kind} phantoms",
            task=kind.task,
            class_names=kind.class_names,
            train=train,
            validation=validation,
            test=test,
            md5=None,
            content_hash=content_hash(train, validation, test),
            synthetic=True,
            mean=(NORMALISATION,) * kind.num_channels,
            std=(NORMALISATION,) * kind.num_channels,
            public=True,
            phantoms=self.kind,
        )

    def _draw(self, kind: Kind, split: str, count: int) -> Split:
        seed = derive_seed(self.seed, "phantom", self.kind, split)
        return Split(*kind.draw(count, self.size, numpy_generator(seed)))
