"""Data sets: medical images with labels, verified before use, in three splits, and the facts a run needs of them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch

from medx.machine import available_memory
from medx.schema import DataError

# Bytes of memory for one value of an image: as read (1), as a model's input (4), and once more at the hospitals.
IMAGE_VALUE = 9
# And for one value of a feature: of all images, and once more at the hospitals.
FEATURE_VALUE = 8

Task = Literal["binary", "multiclass", "ordinal", "multilabel"]


@dataclass(frozen=True)
class Split:
    """Images ``uint8`` or ``uint16 [n, height, width, channels]``, white at the type's most, and labels ``int64 [n]``.

    Of the task multilabel labels are ``[n, labels]``: 1 yes, 0 no, -1 not known.
    ``patients`` and ``hospitals`` are ``int64 [n]`` where they are known: a number for each, the same in all splits.
    ``subgroups`` have a text for each row, by column.
    """

    images: np.ndarray
    labels: np.ndarray
    patients: np.ndarray | None = None
    hospitals: np.ndarray | None = None
    subgroups: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> bytes:
        """BLAKE2b-256 over shape, images and labels in their order, and whose and where they are, where that is told.

        Noise of the seed follows from it: two runs that differ in any of these would else subtract.
        """
        digest = hashlib.blake2b(repr(self.images.shape).encode(), digest_size=32)
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        for name in ("patients", "hospitals"):
            if (codes := getattr(self, name)) is not None:
                digest.update(name.encode() + np.ascontiguousarray(codes, "<i8").tobytes())
        return digest.digest()


@dataclass(frozen=True)
class InputSpec:
    """What a model must accept and answer: square images, ``num_classes`` classes.

    ``phantoms`` names the drawn images whose labels mean what these do, class by class; None: none do.
    """

    num_channels: int
    image_size: int
    num_classes: int
    task: Task
    phantoms: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class DataSplits:
    """A loaded data set.

    ``content_hash`` is over the multiset of (image, label) rows of each split, so it ignores row order.
    ``mean`` and ``std`` (one a channel, on the 0..1 scale) are public constants, never computed from the data.
    ``public`` is true where everybody has these records: drawn images, a published benchmark's very file.
    ``copies_accepted``: whoever configured it knows that test images may be in train too. ``phantoms``: see InputSpec.
    ``published_as``: other names of these images, by which public weights may say that they were trained on them.
    ``hospital_names`` has the name of each number in ``hospitals``, where the data tell them.
    """

    name: str
    title: str
    task: Task
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    md5: str | None
    content_hash: str
    synthetic: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    public: bool = False
    copies_accepted: bool = False
    phantoms: str | None = None
    published_as: tuple[str, ...] = ()
    hospital_names: tuple[str, ...] = ()

    @property
    def spec(self) -> InputSpec:
        """The shape and task that a model is built for."""
        _, height, _, channels = self.train.images.shape
        return InputSpec(channels, height, len(self.class_names), self.task, self.phantoms)

    def shared_patients(self) -> dict[str, int]:
        """How many images of validation and of test are of patients who are in train; nothing where unknown."""
        train = self.train.patients
        others = {"validation": self.validation.patients, "test": self.test.patients}
        if train is None:
            return {}
        return {name: int(np.isin(codes, train).sum()) for name, codes in others.items() if codes is not None}

    def to_tensor(self, images: np.ndarray) -> torch.Tensor:
        """Normalised ``float32 [n, channels, height, width]`` from images ``[n, height, width, channels]``."""
        return normalised(images, self.mean, self.std)


def normalised(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """``float32 [n, channels, height, width]`` from whole numbers ``[n, height, width, channels]``.

    ``mean`` and ``std`` are one a channel, on the scale on which white is 1.
    """
    white = int(np.iinfo(images.dtype).max)
    tensor = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).to(torch.float32).div_(white)
    means, stds = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return tensor.sub_(means).div_(stds).contiguous()


class Dataset(Protocol):
    """A configured data set: one class, one yaml."""

    def load(self) -> DataSplits:
        """Find, verify and read the data; raises DataError with one line that says what to do."""
        ...


def content_hash(*splits: Split) -> str:
    """SHA-256 over each split's sorted row digests: equal for the same rows in another order."""
    total = hashlib.sha256()
    for split in splits:
        rows = sorted(
            hashlib.sha256(image.tobytes() + np.asarray(label, "<i8").tobytes()).digest()
            for image, label in zip(split.images, split.labels, strict=True)
        )
        total.update(len(rows).to_bytes(8, "little") + b"".join(rows))
    return total.hexdigest()


def refuse_beyond_memory(what: str, needed: float, accepted: str) -> None:
    """Raise DataError where ``needed`` bytes for ``what`` are not there, before the system kills the process."""
    available = available_memory()
    if needed > available:
        raise DataError(
            f"{what}: needs about {needed / 1e9:.3g} GB of memory, {available / 1e9:.3g} GB are available; "
            f"accepted: {accepted}, or more memory"
        )
