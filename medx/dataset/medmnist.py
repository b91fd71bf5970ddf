"""The 2D single-label sets of MedMNIST (Yang et al. 2023), found on disk or fetched, and verified before use."""

import hashlib
import http.client
import os
import runpy
import urllib.request
import zipfile
import zlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import StringConstraints

from medx.dataset.base import DataSplits, Split, Task, content_hash
from medx.schema import DataError, Place, component

Name = Literal[
    "pathmnist",
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

TASKS: dict[str, Task] = {"binary-class": "binary", "ordinal-regression": "ordinal", "multi-class": "multiclass"}
DATA_FOLDER = "MEDX_DATA"  # environment variable that names a folder to look in first
NORMALISATION = 0.5
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer
HINT = "dataset=phantom needs no file"


@component
class MedMNIST:
    """One set at one size. ``md5`` of null means the official checksum; another one accepts another file on purpose.

    ``root`` is the folder of the file; null looks in $MEDX_DATA, then in ``~/.medmnist``.
    """

    name: Name
    size: Literal[28, 64, 128, 224]
    md5: Md5 | None
    download: bool
    root: Place | None

    def load(self) -> DataSplits:
        """Find or download, verify and read the file; raises DataError where it cannot be trusted."""
        info = medmnist_info()[self.name]
        suffix = "" if self.size == 28 else f"_{self.size}"
        path = self._find(f"{self.name}{suffix}.npz", info[f"url{suffix}"])
        md5 = verify(path, self.md5 or info[f"MD5{suffix}"])
        channels, class_names = info["n_channels"], tuple(info["label"][str(i)] for i in range(len(info["label"])))
        train, validation, test = (
            read_split(path, split, self.size, channels, len(class_names)) for split in ("train", "val", "test")
        )
        return DataSplits(
            name=self.name,
            title=info["python_class"],
            task=TASKS[info["task"]],
            class_names=class_names,
            train=train,
            validation=validation,
            test=test,
            md5=md5,
            content_hash=content_hash(train, validation, test),
            synthetic=False,
            mean=(NORMALISATION,) * channels,
            std=(NORMALISATION,) * channels,
            public=md5 == info[f"MD5{suffix}"].lower(),  # another file of this layout may be a hospital's own
        )

    def _find(self, filename: str, url: str) -> Path:
        folders = search_folders(self.root)
        for folder in folders:
            if (folder / filename).is_file():
                return folder / filename
        if self.download:
            return fetch(url, folders[-1] / filename)
        places = " or ".join(str(folder) for folder in folders)
        raise DataError(
            f"dataset={self.name}: no {filename}; put it into {places}, or set dataset.download=true; {HINT}"
        )


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


def fetch(url: str, target: Path) -> Path:
    """Download ``url`` to ``target``, which appears only when it is complete; raises DataError without network."""
    partial = target.with_suffix(f".{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as answer, partial.open("wb") as file:
            while block := answer.read(1 << 20):
                file.write(block)
        partial.replace(target)
    except (OSError, http.client.HTTPException) as problem:
        raise DataError(
            f"{target}: missing, and {url} cannot be fetched ({problem}); "
            f"put the file there or into the folder ${DATA_FOLDER}; {HINT}"
        ) from problem
    finally:
        partial.unlink(missing_ok=True)
    return target


def verify(path: Path, expected: str) -> str:
    """The file's MD5 if it is a whole zip with the expected sum; raises DataError otherwise, and keeps the file."""
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: truncated, or not an npz file; remove it to have it downloaded again; {HINT}")
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if actual != expected.lower():
        raise DataError(
            f"{path}: md5 is {actual}, expected {expected}; the file is kept; "
            f"to accept it on purpose: dataset.md5={actual}"
        )
    return actual


def read_split(path: Path, split: str, size: int, channels: int, num_classes: int) -> Split:
    """Images and labels of ``split`` (train, val, test), checked; raises DataError with array and first bad row."""
    images, labels = read_array(path, f"{split}_images"), read_array(path, f"{split}_labels")
    shape = (size, size) if channels == 1 else (size, size, channels)
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        raise DataError(
            f"{path}: {split}_images is {images.dtype} {list(images.shape)}, expected uint8 {['rows', *shape]}"
        )
    rows = len(images)
    if labels.dtype.kind not in "iu" or labels.shape not in ((rows, 1), (rows,)):
        raise DataError(f"{path}: {split}_labels is {labels.dtype} {list(labels.shape)}, expected integers {[rows, 1]}")
    flat = labels.reshape(-1)
    bad = np.flatnonzero((flat < 0) | (flat >= num_classes))
    if len(bad):
        raise DataError(f"{path}: {split}_labels row {bad[0]} is {flat[bad[0]]}, expected 0 to {num_classes - 1}")
    return Split(images.reshape(rows, size, size, channels), flat.astype(np.int64))


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
        raise DataError(
            f"{path}: {name} is damaged ({problem}); remove the file to have it downloaded again"
        ) from problem
    return array
