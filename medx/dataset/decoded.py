"""Pictures decoded once, into a file that is mapped into memory, known by what it was made from.

The key is over the content of every file and all that its pixels follow from, so a changed file, rule or order is
another entry. A folder of an entry has the pixels, and ``unreadable.csv`` beside them: which files gave none, and why.
It is for its owner's eyes alone, because those are images of patients and names of files.
"""

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from medx.dataset import IMAGE_VALUE, refuse_beyond_memory
from medx.dataset.fitting import Fit, Target, fitted
from medx.dataset.pictures import Header, Reading, UnreadableError, quiet, read_header, read_picture
from medx.files import locked, replaced, write_json
from medx.output import counted
from medx.schema import ConfigError, DataError

RECIPE = 1  # to be raised where the same files and rules give other pixels
READERS = ("pillow", "pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle", "python-gdcm")
CHUNK = 64  # files decoded together: what is in memory at once
INDEX, PIXELS, LIST = "index.json", "pixels", "unreadable.csv"
Colour = Literal["grey", "rgb"]
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Rules:
    """How files become ``[size, size, channels]``; ``colour`` of None is what most of the files have."""

    size: int
    fit: Fit
    colour: Colour | None
    reading: Reading


@dataclass(frozen=True)
class Decoded:
    """``images [kept, size, size, channels]`` of the files ``kept``, which are places in the list that was given."""

    images: np.ndarray
    kept: np.ndarray
    unreadable: dict[int, str]
    listed: Path

    def reasons(self) -> str:
        """How many files gave no picture, by reason, the most frequent first."""
        return count_reasons(self.unreadable.values())


@dataclass(frozen=True)
class _File:
    """One file as it was met: the digest of its content, and what its beginning tells, or why it tells nothing."""

    path: Path
    ratio: float | None
    digest: str = ""
    header: Header | None = None
    problem: str | None = None


def decode(paths: Sequence[Path], ratios: Sequence[float] | None, rules: Rules, cache: Path) -> Decoded:
    """The pictures of the files in their order, from the cache where they are there."""
    with quiet():
        named = [_File(path, None if ratios is None else ratios[row]) for row, path in enumerate(paths)]
        files = in_threads(_scan, named, f"preparing: looking at {len(named)} files")
        target = _target(files, rules)
        needed = (IMAGE_VALUE - 1.0) * len(files) * rules.size**2 * target.channels  # what is decoded stays on disk
        refuse_beyond_memory(f"dataset.size={rules.size}: {len(files)} images", needed, "a smaller dataset.size")
        folder = cache / "pictures" / _key(files, rules, target)
        try:
            with locked(folder.with_suffix(".lock")):  # the jobs of a sweep wait for the first
                index = _read_index(folder) or _write(folder, files, rules, target)
        except OSError as error:
            raise ConfigError(f"cache={folder}: {error.strerror}; accepted: a folder that can be written") from error
    unreadable = {int(row): reason for row, reason in index["unreadable"].items()}
    kept = np.array([row for row in range(len(files)) if row not in unreadable], np.int64)
    shape = (len(kept), rules.size, rules.size, target.channels)
    # Copied where it is written to, which nobody does: torch warns of memory that cannot be.
    mapped = np.memmap(folder / PIXELS, target.dtype, "c", shape=shape) if len(kept) else np.zeros(shape, target.dtype)
    return Decoded(mapped.view(np.ndarray), kept, unreadable, folder / LIST)


def count_reasons(reasons: Iterable[str]) -> str:
    """``3 empty, 1 missing``."""
    return ", ".join(f"{count} {reason}" for reason, count in Counter(reasons).most_common())


def read_file(path: Path) -> bytes:
    """A file's content; raises UnreadableError in words without its name."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UnreadableError("missing") from None
    except (OSError, ValueError) as error:
        raise UnreadableError(getattr(error, "strerror", None) or "a name that cannot be") from None


def in_threads(work: Callable[[A], B], items: Sequence[A], text: str) -> list[B]:
    """``work`` of every item in order, many at once, with a word now and then of how many are done."""
    progress = counted(text, len(items))
    done: list[B] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(items), CHUNK):
            done += pool.map(work, items[start : start + CHUNK])
            progress(len(done))
    return done


def _scan(file: _File) -> _File:
    digest = ""
    try:
        content = read_file(file.path)
        digest = hashlib.sha256(content).hexdigest()
        return replace(file, digest=digest, header=read_header(content))
    except UnreadableError as problem:
        return replace(file, digest=digest, problem=str(problem))


def _target(files: Sequence[_File], rules: Rules) -> Target:
    """Channels, and 16 bits where any file has more than 8: none loses what it tells apart."""
    headers = [file.header for file in files if file.header is not None]
    most_in_colour = 2 * sum(header.colour for header in headers) > len(headers)
    medmnist = rules.fit == "medmnist"
    rgb = rules.colour == "rgb" or (rules.colour is None and most_in_colour and not medmnist)
    deep = any(header.deep for header in headers) and not medmnist
    return Target(rules.size, rules.fit, 3 if rgb else 1, np.dtype(np.uint16 if deep else np.uint8))


def _key(files: Sequence[_File], rules: Rules, target: Target) -> str:
    facts = {
        "recipe": RECIPE,
        "rules": asdict(rules),
        "channels": target.channels,
        "dtype": str(target.dtype),
        "readers": {name: _version(name) for name in READERS},
        "files": [(file.digest or file.problem, file.ratio) for file in files],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _read_index(folder: Path) -> dict[str, Any] | None:
    """What was written last, so that all is there; None where it is not, or not whole."""
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text())
        whole = (folder / PIXELS).stat().st_size == index["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return index if whole else None


def _write(folder: Path, files: Sequence[_File], rules: Rules, target: Target) -> dict[str, Any]:
    """Decode into the folder; the index, written last, is what makes it an entry."""
    unreadable: dict[int, str] = {}
    progress = counted(f"preparing: decoding {len(files)} images, once", len(files))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with replaced(folder / PIXELS) as aside, aside.open("wb") as pixels, ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), CHUNK):
            some = files[start : start + CHUNK]
            for row, found in enumerate(pool.map(lambda file: _picture(file, rules, target), some), start):
                if isinstance(found, str):
                    unreadable[row] = found
                else:
                    pixels.write(np.ascontiguousarray(found).data)
            progress(start + len(some))
        size = pixels.tell()
        pixels.flush()
        os.fsync(pixels.fileno())  # before the index says that they are there
    with replaced(folder / LIST) as aside, aside.open("w", newline="", errors="surrogateescape") as file:
        rows = ((files[row].path, reason) for row, reason in unreadable.items())
        csv.writer(file).writerows([("file", "reason"), *rows])
    index = {"bytes": size, "unreadable": {str(row): reason for row, reason in unreadable.items()}}
    write_json(folder / INDEX, index)
    return index


def _picture(file: _File, rules: Rules, target: Target) -> np.ndarray | str:
    """The fitted pixels, or why there are none."""
    if file.problem is not None:
        return file.problem
    try:
        content = read_file(file.path)
    except UnreadableError as problem:  # no property of the content, under whose key it would be kept
        raise DataError(f"dataset.path: a file that was read a moment ago is {problem}; accepted: try again") from None
    if hashlib.sha256(content).hexdigest() != file.digest:  # under which its pixels would be kept
        raise DataError("dataset.path: a file changed while it was read; accepted: try again once nobody writes there")
    try:
        return fitted(read_picture(content, rules.reading).pixels, target, file.ratio)
    except UnreadableError as problem:
        return str(problem)
