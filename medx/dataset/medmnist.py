"""The 2D sets of MedMNIST (Yang et al. 2023), found on disk or fetched, and verified before use."""

import hashlib
import http.client
import os
import runpy
import urllib.request
import zipfile
import zlib
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import StringConstraints

from medx.dataset import IMAGE_VALUE, DataSplits, Split, Task, content_hash, refuse_beyond_memory
from medx.dataset.dealing import Fold, folded
from medx.dataset.labels import strata
from medx.files import replaced
from medx.schema import DataError, Place, component

Name = Literal[
    "pathmnist",
    "chestmnist",
    "dermamnist",
    "octmnist",
    "pneumoniamnist",
    "retinamnist",
    "breastmnist",
    "bloodmnist",
    "tissuemnist",
    "organamnist",
    "organcmnist",
    "organsmnist",
]
Md5 = Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{32}$")]

TASKS: dict[str, Task] = {
    "binary-class": "binary",
    "ordinal-regression": "ordinal",
    "multi-class": "multiclass",
    "multi-label, binary-class": "multilabel",
}
DATA_FOLDER = "MEDX_DATA"  # environment variable that names a folder to look in first
DRAWN_ALIKE = {"pneumoniamnist": "chest", "retinamnist": "fundus"}  # by the kinds of phantoms
# Where the images come from (Yang et al. 2023, table 2), by which other publications call them.
PUBLISHED_AS = {
    "pathmnist": ("nct-crc-he-100k",),
    "chestmnist": ("chestx-ray14", "nih-chest"),
    "dermamnist": ("ham10000", "isic2018"),
    "octmnist": ("kermany2018",),
    "pneumoniamnist": ("kermany2018", "chestx-ray2017"),
    "retinamnist": ("deepdrid",),
    "breastmnist": ("busi",),
    "bloodmnist": ("pbc", "acevedo2020"),
    "tissuemnist": ("bbbc051",),
    "organamnist": ("lits",),
    "organcmnist": ("lits",),
    "organsmnist": ("lits",),
}
NORMALISATION = 0.5
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer
HINT = "dataset=phantom needs no file"
SIZES = (28, 64, 128, 224)


@component("dataset/medmnist")
class MedMNIST:
    """One set at one size. ``md5`` of null means the official checksum; another one accepts another file on purpose.

    ``root`` is the folder of the file; null looks in $MEDX_DATA, then in ``~/.medmnist``. ``fold`` [k, n]: of n parts
    of train and validation together, part k is validation, see ``dealing.folded``.
    """

    name: Name
    size: Literal[28, 64, 128, 224]
    md5: Md5 | None
    download: bool
    root: Place | None
    fold: Fold | None = None

    added: ClassVar[tuple[str, ...]] = ("fold",)

    def load(self) -> DataSplits:
        """Find or download, verify and read the file; raises DataError where it cannot be trusted."""
        splits = self._published()
        if self.fold is None:
            return splits
        labels, patients = in_a_row(splits)
        codes = folded(np.zeros(len(labels), np.int64), strata(labels), patients, self.fold)
        return redealt(splits, codes == 1)

    def _published(self) -> DataSplits:
        """The three splits as they are published."""
        info = medmnist_info()[self.name]
        suffix = "" if self.size == 28 else f"_{self.size}"
        expected = (self.md5 or info[f"MD5{suffix}"]).lower()
        path = self._find(f"{self.name}{suffix}.npz", info[f"url{suffix}"], expected)
        md5 = verify(path, expected)
        self._check_memory(path)
        channels, class_names = info["n_channels"], tuple(info["label"][str(i)] for i in range(len(info["label"])))
        task = TASKS[info["task"]]
        train, validation, test = (
            read_split(path, split, self.size, channels, len(class_names), several=task == "multilabel")
            for split in ("train", "val", "test")
        )
        return DataSplits(
            name=self.name,
            title=info["python_class"],
            task=task,
            class_names=class_names,
            train=train,
            validation=validation,
            test=test,
            md5=md5,
            content_hash=content_hash(train, validation, test),
            synthetic=False,
            mean=(NORMALISATION,) * channels,
            std=(NORMALISATION,) * channels,
            phantoms=DRAWN_ALIKE.get(self.name),
            published_as=("medmnist", *PUBLISHED_AS[self.name]),
            public=md5 == info[f"MD5{suffix}"].lower(),  # another file of this layout may be a hospital's own
        )

    def _check_memory(self, path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            needed = IMAGE_VALUE * sum(array.file_size for array in archive.infolist())
        smaller = [size for size in SIZES if size < self.size]
        accepted = f"a smaller dataset.size ({' or '.join(map(str, smaller))})" if smaller else "a smaller data set"
        refuse_beyond_memory(f"dataset={self.name}: {path} at dataset.size={self.size}", needed, accepted)

    def _find(self, filename: str, url: str, md5: str) -> Path:
        folders = search_folders(self.root)
        for folder in folders:
            if is_there(folder / filename):
                return folder / filename
        if self.download:
            return fetch(url, folders[-1] / filename, md5)
        places = " or ".join(str(folder) for folder in folders)
        raise DataError(
            f"dataset={self.name}: no {filename}; put it into {places}, or set dataset.download=true; {HINT}"
        )


def in_a_row(splits: DataSplits) -> tuple[np.ndarray, np.ndarray]:
    """Labels and patients of train and then validation; where patients are not known each image has one of its own."""
    parts = (splits.train, splits.validation)
    labels = np.concatenate([part.labels for part in parts])
    known = [part.patients for part in parts if part.patients is not None]
    return labels, np.concatenate(known) if known else np.arange(len(labels))


def redealt(splits: DataSplits, chosen: np.ndarray) -> DataSplits:
    """Train and validation anew: of the rows of both, one after the other, validation has the ``chosen`` ones."""
    parts = (splits.train, splits.validation)
    images = np.concatenate([part.images for part in parts])
    labels, patients = in_a_row(splits)
    known = splits.train.patients is not None
    train, validation = (
        Split(images[rows], labels[rows], patients[rows] if known else None) for rows in (~chosen, chosen)
    )
    whole = content_hash(train, validation, splits.test)
    return replace(splits, train=train, validation=validation, content_hash=whole)


@cache
def medmnist_info() -> dict[str, Any]:
    """The package's own facts about every set, read without its two seconds of imports."""
    spec = find_spec("medmnist")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"dataset: the package medmnist is not installed; pip install medmnist, or {HINT}")
    info: dict[str, Any] = runpy.run_path(str(Path(spec.submodule_search_locations[0]) / "info.py"))["INFO"]
    return info


def search_folders(root: Path | None) -> list[Path]:
    """Where to look, in order; the last one is where a download goes."""
    if root is not None:
        return [root]
    named = os.environ.get(DATA_FOLDER)
    return [Path(folder).expanduser() for folder in (named, "~/.medmnist") if folder]


def is_there(path: Path) -> bool:
    """Whether ``path`` is a file; raises DataError where that cannot be seen, or where it is something else."""
    try:
        if not path.exists():
            return False
        path.stat()
    except OSError as problem:  # a name too long, a folder that may not be entered
        raise DataError(f"{path}: cannot be read ({problem.strerror}); {HINT}") from problem
    if not path.is_file():
        raise DataError(f"{path}: is not a file; {HINT}")
    return True


def fetch(url: str, target: Path, md5: str) -> Path:
    """Download ``url`` to ``target``, which appears only with this MD5; raises DataError where it cannot be had."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replaced(target) as partial:
            with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as answer, partial.open("wb") as file:
                while block := answer.read(1 << 20):
                    file.write(block)
                missing = answer.length  # of what the server announced: a closed connection is no error in itself
            actual, size = md5_of(partial), partial.stat().st_size
            if missing or actual != md5:
                raise DataError(
                    f"{target}: the download from {url} is not the file ({size} bytes"
                    + (f", {missing} are missing" if missing else f" of md5 {actual}, expected {md5}")
                    + f"); nothing of it is kept; try again, or put the file there; {HINT}"
                )
    except (OSError, http.client.HTTPException) as problem:
        raise DataError(
            f"{target}: missing, and {url} cannot be fetched ({problem}); "
            f"put the file there or into the folder ${DATA_FOLDER}; {HINT}"
        ) from problem
    return target


def md5_of(path: Path) -> str:
    """The MD5 of a file, in lower case."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def verify(path: Path, expected: str) -> str:
    """The file's MD5 if it is a whole zip with the expected sum; raises DataError otherwise, and keeps the file."""
    try:
        actual = md5_of(path)
    except OSError as problem:
        raise DataError(f"{path}: cannot be read ({problem.strerror}); {HINT}") from problem
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: truncated, or not an npz file; accepted: the file of md5 {expected}; {HINT}")
    if actual != expected:
        raise DataError(
            f"{path}: md5 is {actual}, expected {expected}; the file is kept; "
            f"to accept it on purpose: dataset.md5={actual}"
        )
    return actual


def read_split(path: Path, split: str, size: int, channels: int, num_classes: int, *, several: bool = False) -> Split:
    """Images and labels of ``split`` (train, val, test), checked; raises DataError with array and first bad row.

    With ``several`` labels a record there is a column of 0 and 1 for each.
    """
    images, labels = read_array(path, f"{split}_images"), read_array(path, f"{split}_labels")
    shape = (size, size) if channels == 1 else (size, size, channels)
    wanted = ", ".join(map(str, ("rows", *shape)))
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        raise DataError(
            f"{path}: {split}_images is {images.dtype} {list(images.shape)}, expected uint8 [{wanted}], 1 row or more"
        )
    rows = len(images)
    shapes = ((rows, num_classes),) if several else ((rows, 1), (rows,))
    if labels.dtype.kind not in "iu" or labels.shape not in shapes:
        found = f"{split}_labels is {labels.dtype} {list(labels.shape)}"
        raise DataError(f"{path}: {found}, expected integers {list(shapes[0])}")
    labels = labels if several else labels.reshape(-1)
    most = 1 if several else num_classes - 1
    bad = np.argwhere((labels < 0) | (labels > most))
    if len(bad):
        value = labels[tuple(bad[0])]
        raise DataError(f"{path}: {split}_labels row {bad[0][0]} is {value}, expected 0 to {most}")
    return Split(images.reshape(rows, size, size, channels), labels.astype(np.int64))


def read_array(path: Path, name: str) -> np.ndarray:
    """One array of the npz, never unpickled; raises DataError where it is missing, pickled or damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            array: np.ndarray = archive[name]
    except KeyError as problem:
        raise DataError(f"{path}: the array {name} is missing; expected train, val and test") from problem
    except ValueError as problem:
        raise DataError(f"{path}: {name} cannot be read ({problem}); pickled arrays are never loaded") from problem
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as problem:
        raise DataError(f"{path}: {name} is damaged or cannot be read ({problem})") from problem
    return array
