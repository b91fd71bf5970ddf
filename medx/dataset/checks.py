"""What every data set must be before anything is computed from it, whoever made it; each mistake is one line."""

import hashlib

import numpy as np

from medx.dataset import DataSplits, Split, Task
from medx.schema import DataError

MOST_COPIES = 0.01  # share of test images that may be in train too: a blank picture or two


def check_splits(splits: DataSplits) -> None:
    """Raise DataError that names the split, the first bad row and what is expected.

    Copies between test and train are looked for where the records are not everybody's: published sets are what they
    are, and hashing them takes time.
    """
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    for name, split in parts.items():
        check_split(f"dataset={splits.name}: {name}", split, splits.train, len(splits.class_names), splits.task)
    if len(splits.mean) != len(splits.std) or len(splits.mean) != splits.train.images.shape[3]:
        raise DataError(f"dataset={splits.name}: mean and std have to be one number a channel")
    if not (splits.public or splits.copies_accepted):
        copies, rows = count_copies(splits.test, splits.train), len(splits.test)
        if copies > MOST_COPIES * rows:
            raise DataError(
                f"dataset={splits.name}: {copies} of {rows} test images are in train too, so results would be too "
                f"good; accepted: at most {MOST_COPIES:.0%} of them"
            )


def check_split(what: str, split: Split, train: Split, num_classes: int, task: Task) -> None:
    """One split in its own right, and its shape beside that of train."""
    images, labels = split.images, split.labels
    if images.dtype not in (np.uint8, np.uint16) or images.ndim != 4 or images.shape[1] != images.shape[2]:
        raise DataError(f"{what}: images are {images.dtype} {list(images.shape)}; expected uint8, uint16 [n, s, s, c]")
    if (images.dtype, images.shape[1:]) != (train.images.dtype, train.images.shape[1:]):
        raise DataError(f"{what}: images are {images.dtype} {list(images.shape[1:])}, those of train are not")
    if not len(images):
        raise DataError(f"{what} is empty; expected 1 image or more")
    shape = (len(images), num_classes) if task == "multilabel" else (len(images),)
    if labels.dtype.kind not in "iu" or labels.shape != shape:
        raise DataError(f"{what}: labels are {labels.dtype} {list(labels.shape)}; expected integers {list(shape)}")
    least, most = (-1, 1) if task == "multilabel" else (0, num_classes - 1)
    bad = np.argwhere((labels < least) | (labels > most))
    if len(bad):
        raise DataError(f"{what}: label of row {bad[0][0]} is {labels[tuple(bad[0])]}; expected {least} to {most}")
    for name in ("patients", "hospitals"):
        codes = getattr(split, name)
        if codes is not None and (codes.shape != (len(images),) or codes.dtype.kind not in "iu"):
            raise DataError(f"{what}: {name} are {codes.dtype} {list(codes.shape)}; expected integers [{len(images)}]")


def count_copies(rows: Split, others: Split) -> int:
    """How many images of ``rows`` are among the ``others``, to the bit."""
    known = set(map(digest, others.images))
    return sum(digest(image) in known for image in rows.images)


def digest(image: np.ndarray) -> bytes:
    """What tells pictures of one size apart."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
