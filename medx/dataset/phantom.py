"""SYNTHETIC images, drawn when they are needed: no file, no network, no patient."""

from typing import Annotated, Literal

from annotated_types import Ge, Le

from medx.dataset import chest_phantom, fundus_phantom
from medx.dataset.base import DataSplits, Split, Task, content_hash
from medx.dataset.chest_phantom import draw_chest
from medx.dataset.fundus_phantom import draw_fundus
from medx.dataset.memory import IMAGE_VALUE, refuse_beyond_memory
from medx.randomness import derive_seed, numpy_generator
from medx.schema import component

__all__ = ["Phantom", "draw_chest", "draw_fundus"]

KINDS: dict[str, tuple[Task, tuple[str, ...]]] = {
    "chest": ("binary", chest_phantom.CLASS_NAMES),
    "fundus": ("ordinal", fundus_phantom.CLASS_NAMES),
}
NORMALISATION = 0.5


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
        """Draw the three splits, each from a generator of its own."""
        task, class_names = KINDS[self.kind]
        self._check_memory()
        train, validation, test = (
            self._draw(name, count)
            for name, count in (
                ("train", self.num_train),
                ("validation", self.num_validation),
                ("test", self.num_test),
            )
        )
        channels = train.images.shape[-1]
        return DataSplits(
            name="phantom",
            title=f"SYNTHETIC {self.kind} phantoms",
            task=task,
            class_names=class_names,
            train=train,
            validation=validation,
            test=test,
            md5=None,
            content_hash=content_hash(train, validation, test),
            synthetic=True,
            mean=(NORMALISATION,) * channels,
            std=(NORMALISATION,) * channels,
            public=True,
        )

    def _check_memory(self) -> None:
        count = self.num_train + self.num_validation + self.num_test
        channels = 1 if self.kind == "chest" else 3
        needed = float(IMAGE_VALUE * count * self.size**2 * channels)
        refuse_beyond_memory(
            f"dataset=phantom: {count} images at dataset.size={self.size}", needed, "fewer images or a smaller size"
        )

    def _draw(self, split: str, count: int) -> Split:
        draw = draw_chest if self.kind == "chest" else draw_fundus
        return Split(*draw(count, self.size, numpy_generator(derive_seed(self.seed, "phantom", self.kind, split))))
