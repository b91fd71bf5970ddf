"""Every image of a data set as it is, before it is fitted: what the findings are made from."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medx.dataset import DataSplits
from medx.dataset.decoded import in_threads, read_file
from medx.dataset.fitting import Target, fitted
from medx.dataset.folder import Folder
from medx.dataset.labels import strata
from medx.dataset.pictures import Picture, UnreadableError, quiet, read_picture
from medx.randomness import derive_seed, numpy_generator

THUMB = 64  # pixels of a picture on the contact sheet
SHOWN = 12  # of each class


@dataclass(frozen=True)
class Look:
    """One picture, of which ``thumb`` is a small copy in colours where it is shown.

    ``low`` and ``high`` are its least and largest value and ``clipped`` the share of pixels at the ends, all 0..1.
    """

    width: int
    height: int
    mode: str
    channels: int
    bits: int
    digest: bytes
    low: float
    high: float
    clipped: float
    thumb: np.ndarray | None


@dataclass(frozen=True)
class Records:
    """A row an image; ``looks`` has why where there is no picture. What is unknown is None.

    ``files`` are names below the folder, ``splits`` 0, 1, 2 for train, validation, test, ``ratios`` those of a column.
    """

    labels: np.ndarray
    class_names: tuple[str, ...]
    splits: np.ndarray
    looks: list[Look | str]
    files: list[str] | None = None
    patients: list[str] | None = None
    hospitals: list[str] | None = None
    ratios: list[float] | None = None


def look_at_folder(folder: Folder) -> Records:
    """The rows of a folder's table and the pictures of its files; raises what a run raises before it reads any."""
    table = folder.table()
    labels, names = folder.labels_of(table)
    splits = replace(folder, shared_patients="accept").split_of(table, labels)
    shown = _shown(labels)
    reading = folder.reading

    def look(row: int) -> Look | str:
        try:
            return _look(read_picture(read_file(table.paths[row]), reading), row in shown)
        except UnreadableError as problem:
            return str(problem)

    with quiet():
        looks = in_threads(look, range(len(table)), f"looking at {len(table)} images")
    assert folder.path is not None
    base = folder.path
    files = [str(path.relative_to(base) if path.is_relative_to(base) else path) for path in table.paths]
    return Records(labels, names, splits, looks, files, table.patients, table.hospitals, table.aspect_ratios)


def look_at_splits(splits: DataSplits) -> Records:
    """A loaded data set of any kind."""
    parts = (splits.train, splits.validation, splits.test)
    labels = np.concatenate([part.labels for part in parts])
    shown = _shown(labels)
    images = [image for part in parts for image in part.images]

    def look(row: int) -> Look | str:
        image = images[row]
        grey = image.shape[2] == 1
        picture = Picture(image[..., 0] if grey else image, "L" if grey else "RGB", 8 * image.dtype.itemsize)
        return _look(picture, row in shown)

    def codes(name: str) -> list[str] | None:
        known = [getattr(part, name) for part in parts]
        return None if any(each is None for each in known) else [str(code) for each in known for code in each]

    return Records(
        labels=labels,
        class_names=splits.class_names,
        splits=np.repeat([0, 1, 2], [len(part) for part in parts]),
        looks=in_threads(look, range(len(images)), f"looking at {len(images)} images"),
        patients=codes("patients"),
        hospitals=codes("hospitals"),
    )


def _shown(labels: np.ndarray) -> set[int]:
    """A few rows of each class, the same at every call."""
    generator = numpy_generator(derive_seed(0, "contact sheet"))
    kinds = strata(labels)
    rows = (generator.permutation(np.flatnonzero(kinds == kind))[:SHOWN] for kind in np.unique(kinds))
    return {int(row) for some in rows for row in some}


def _look(picture: Picture, shown: bool) -> Look:
    pixels = picture.pixels
    white = int(np.iinfo(pixels.dtype).max)
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():  # grey values in three channels are the same picture
        pixels = pixels[..., 0]
    digest = hashlib.blake2b(repr((pixels.shape, pixels.dtype)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    target = Target(THUMB, "pad", 3, np.dtype(np.uint8))
    return Look(
        width=pixels.shape[1],
        height=pixels.shape[0],
        mode=picture.mode,
        channels=picture.pixels.shape[2] if picture.pixels.ndim == 3 else 1,
        bits=picture.bits,
        digest=digest.digest(),
        low=float(pixels.min()) / white,
        high=float(pixels.max()) / white,
        clipped=float(np.mean((pixels == 0) | (pixels == white))),
        thumb=fitted(picture.pixels, target, None) if shown else None,
    )


def readable(records: Records) -> list[tuple[int, Look]]:
    """Row and look of every picture that there is."""
    return [(row, look) for row, look in enumerate(records.looks) if isinstance(look, Look)]


def rows_where(records: Records, wanted: Callable[[Look], bool]) -> list[int]:
    """Rows of pictures of which something is so."""
    return [row for row, look in readable(records) if wanted(look)]


def alike(records: Records) -> list[list[int]]:
    """Groups of rows with the same picture, of two and more."""
    groups: dict[bytes, list[int]] = {}
    for row, look in readable(records):
        groups.setdefault(look.digest, []).append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def area_under_curve(values: Sequence[float], positive: np.ndarray) -> float | None:
    """How well numbers rank the positive above the others: .5 not at all, 1 wholly; None without both."""
    from scipy.stats import rankdata

    ones = int(positive.sum())
    zeros = len(positive) - ones
    if not ones or not zeros:
        return None
    ranks = rankdata(values)
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))
