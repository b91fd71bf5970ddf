"""A hospital's own images: a folder with a CSV, or with one folder a class, of PNG, JPEG, TIFF, BMP, WebP and DICOM."""

import hashlib
import logging
import math
import os
from itertools import pairwise
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NoReturn

import numpy as np
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BeforeValidator

from medx.dataset import DataSplits, Split, Task, content_hash
from medx.dataset.dealing import Fold, dealt_anew, folded, refuse_shared_patients, shared_patients, split_codes
from medx.dataset.decoded import Colour, Decoded, Rules, decode
from medx.dataset.fitting import Fit
from medx.dataset.labels import Words, from_columns, from_lists, strata
from medx.dataset.phantom import KINDS
from medx.dataset.pictures import Reading
from medx.dataset.table import Columns, Table, read_table
from medx.output import as_called
from medx.schema import ConfigError, DataError, Place, component

log = logging.getLogger(__name__)
NORMALISATION = 0.5
MOST_CLASSES = 200  # beyond, the column is hardly a label, and what it holds must not become names of classes


def _texts(value: object) -> object:
    """``[0,1]`` are names of classes as well as ``["0","1"]``."""
    return [str(each) for each in value] if isinstance(value, (list, tuple)) else value


@component("dataset/folder")
class Folder:
    """Images below ``path`` with the rows of ``csv``, or of ``labels.csv``; with neither, one folder a class.

    Labels are the classes in their order (numbers by size), or in that of ``classes``. ``size`` is in pixels; see
    ``fitting`` for ``fit`` and ``pictures`` for what becomes of depths, windows and frames. What the split column lacks
    is dealt by whole patients, from ``seed`` and apart from the experiment's seed, so that all runs share one split.
    A share of more than ``max_unreadable`` files without a picture is refused; fewer are left out and listed. The
    model is measured on each of the groups that the columns ``subgroups`` tell.

    An image may have several labels: ``columns.label`` then names a column each, or ``label_separator`` parts a list in
    one. ``uncertain`` is what -1 or "uncertain" stands for, ``missing`` what an empty cell does. ``phantoms``: these
    are chest radiographs, class 1 with an opacity, or eye photographs of grades 0 to 4, as drawn phantoms are, so that
    a linear head may start at what those give. ``fold`` [k, n]: the k-th of n parts of train and validation together is
    validation.
    """

    path: Place | None
    csv: Place | None
    columns: Columns
    classes: Annotated[list[str] | None, BeforeValidator(_texts)]
    task: Task | None
    size: Annotated[int, Ge(16), Le(1024)]
    fit: Fit
    colour: Colour | None
    window: tuple[float, Annotated[float, Gt(0)]] | None
    frame: Annotated[int, Ge(0)] | None
    validation_fraction: Annotated[float, Gt(0), Lt(1)]
    test_fraction: Annotated[float, Gt(0), Lt(1)]
    seed: Annotated[int, Ge(0)]
    shared_patients: Literal["deal", "refuse", "accept"]
    max_unreadable: Annotated[float, Ge(0), Lt(1)]
    subgroups: list[str]
    label_separator: Annotated[str, MinLen(1)] | None
    uncertain: Literal["missing", "positive", "negative"]
    missing: Literal["missing", "negative"]
    phantoms: Literal["chest", "fundus"] | None
    fold: Fold | None = None

    added: ClassVar[tuple[str, ...]] = ("fold",)

    def __post_init__(self) -> None:
        if self.task == "multilabel" and not self.has_several:
            raise ConfigError(
                "dataset.task=multilabel: accepted with several columns (dataset.columns.label=[a,b]), or with a list "
                "in one column (dataset.label_separator)"
            )
        if self.has_several and self.task not in (None, "multilabel"):
            raise ConfigError(f"dataset.task={self.task}: an image has several labels here; accepted: null, multilabel")
        if self.fit == "medmnist" and self.colour == "rgb":
            raise ConfigError("dataset.colour=rgb: dataset.fit=medmnist is a recipe for grey pictures; accepted: grey")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ConfigError(
                f"dataset.test_fraction={self.test_fraction}: with dataset.validation_fraction="
                f"{self.validation_fraction} nothing is left for train; accepted: a sum below 1"
            )

    def table(self) -> Table:
        """The rows, before any image is read."""
        if self.path is None:
            raise ConfigError("dataset.path=None: accepted: a folder with labels.csv, or with one folder a class")
        return read_table(self.path, self.csv, self.columns, self.subgroups, filled=self.label_separator is None)

    @property
    def has_several(self) -> bool:
        """Whether an image may have several labels."""
        return isinstance(self.columns.label, list) or self.label_separator is not None

    @property
    def reading(self) -> Reading:
        """How a file is read."""
        return Reading(self.window, self.frame)

    @property
    def recipe(self) -> dict[str, object]:
        """How a picture is fitted and read: what a model's file keeps, so that others are read in the same way."""
        window = None if self.window is None else list(self.window)
        return {"fit": self.fit, "colour": self.colour, "window": window, "frame": self.frame}

    def fingerprint(self) -> str:
        """Another text once a row or a file has changed: where a process runs again, so that it reads again."""
        table = self.table()
        stats = [
            (each.st_size, each.st_mtime_ns, each.st_ctime_ns) if (each := _stat(path)) else None
            for path in table.paths
        ]
        return hashlib.sha256(repr((table, stats)).encode(errors="surrogateescape")).hexdigest()

    def num_hospitals(self) -> int | None:
        """How many hospitals have training rows; None where nothing tells."""
        table = self.table()
        if table.hospitals is None:
            return None
        codes = self.split_of(table, self.labels_of(table)[0])
        return len({hospital for hospital, code in zip(table.hospitals, codes, strict=True) if code == 0})

    def load(self) -> DataSplits:
        """Read, fit and deal the images; raises DataError where that cannot be, in one line without names."""
        table = self.table()
        labels, names = self.labels_of(table)
        codes = self.split_of(table, labels, tell=True)
        order = np.argsort(codes, kind="stable")  # so that each split is one stretch of the mapped file
        ratios = None if table.aspect_ratios is None else [table.aspect_ratios[row] for row in order]
        rules = Rules(self.size, self.fit, self.colour, self.reading)
        decoded = decode([table.paths[row] for row in order], ratios, rules, _cache())
        self._check_unreadable(decoded)
        kept = order[decoded.kept]
        columns = {
            name: None if (column := getattr(table, name)) is None else numbered(column)[kept]
            for name in ("patients", "hospitals")
        }
        groups = {name: np.array(column)[kept] for name, column in table.subgroups.items()}
        stretches = np.searchsorted(codes[kept], [0, 1, 2, 3])
        parts = [
            Split(
                decoded.images[start:end],
                labels[kept][start:end],
                **{name: None if column is None else column[start:end] for name, column in columns.items()},
                subgroups={name: column[start:end] for name, column in groups.items()},
            )
            for start, end in pairwise(stretches)
        ]
        return self._splits(parts, names, tuple(sorted(set(table.hospitals or ()))))

    def _splits(self, parts: list[Split], names: tuple[str, ...], hospitals: tuple[str, ...]) -> DataSplits:
        train, validation, test = parts
        channels = train.images.shape[3]
        self._check_phantoms(channels, len(names))
        single: Task = "binary" if len(names) == 2 else "multiclass"
        task: Task = "multilabel" if self.has_several else self.task or single
        return DataSplits(
            name="folder",
            title="own images",
            task=task,
            class_names=names,
            train=train,
            validation=validation,
            test=test,
            md5=None,
            content_hash=content_hash(train, validation, test),
            synthetic=False,
            mean=(NORMALISATION,) * channels,
            std=(NORMALISATION,) * channels,
            copies_accepted=self.shared_patients == "accept",
            phantoms=self.phantoms,
            published_as=() if self.path is None else (self.path.name,),
            hospital_names=hospitals,
        )

    def _check_phantoms(self, channels: int, classes: int) -> None:
        """Refuse phantoms that these images cannot be like; that they are is their owner's word."""
        kind = None if self.phantoms is None else KINDS[self.phantoms]
        if kind is not None and (self.has_several or (kind.num_channels, len(kind.class_names)) != (channels, classes)):
            drawn = f"{len(kind.class_names)} classes in {kind.num_channels} channel(s), not {classes} in {channels}"
            raise DataError(f"dataset.phantoms={self.phantoms}: drawn are {drawn}; accepted: null")

    def labels_of(self, table: Table) -> tuple[np.ndarray, tuple[str, ...]]:
        """``int64 [n]``, or ``[n, labels]`` where an image may have several, and the names of the classes."""
        if self.has_several:
            return self._several_of(table)
        names = self.classes or sorted(set(table.labels), key=_by_number)

        def refuse(problem: str, accepted: str) -> NoReturn:
            raise DataError(f"dataset.columns.label={self.columns.label}: {problem}; accepted: {accepted}")

        if len(set(names)) != len(names):
            refuse("dataset.classes has a name twice", "each class once")
        if not 2 <= len(names) <= MOST_CLASSES:
            refuse(f"{len(names)} different labels in {len(table)} rows", f"2 to {MOST_CLASSES}, or dataset.classes")
        if self.task == "binary" and len(names) != 2:
            refuse(f"dataset.task=binary with {len(names)} classes", "2 classes, or dataset.task=multiclass or ordinal")
        codes = {name: code for code, name in enumerate(names)}
        unknown = sum(label not in codes for label in table.labels)
        if unknown:
            refuse(f"{unknown} of {len(table)} labels are not in dataset.classes", "all labels in it")
        return np.array([codes[label] for label in table.labels], np.int64), tuple(names)

    def _several_of(self, table: Table) -> tuple[np.ndarray, tuple[str, ...]]:
        words = Words(self.uncertain, self.missing)
        try:
            if self.label_separator is None:
                labels, names = from_columns(table.several, words, self.classes)
            else:
                labels, names = from_lists(table.labels, self.label_separator, words, self.classes)
            if len(names) > MOST_CLASSES:
                raise ValueError(f"{len(names)} different labels; accepted: at most {MOST_CLASSES}, or dataset.classes")
        except ValueError as problem:
            raise DataError(f"dataset.columns.label: {problem}") from None
        return labels, names

    def split_of(self, table: Table, labels: np.ndarray, *, tell: bool = False) -> np.ndarray:
        """0, 1, 2 a row: train, validation, test; raises DataError where a patient is on two sides.

        Where the split column has patients in train and in validation, ``shared_patients=deal`` deals these two anew by
        whole patients, validation as large as it was, and ``tell`` says so; with ``fold`` both are dealt as that says.
        The test split is never touched.
        """
        patients = np.arange(len(table)) if table.patients is None else numbered(table.patients)
        fractions = {"validation": self.validation_fraction, "test": self.test_fraction}
        codes = split_codes(table.splits, strata(labels), patients, fractions, self.seed)
        if self.fold is not None:
            codes = folded(codes, strata(labels), patients, self.fold)
        if self.shared_patients == "accept":
            return codes
        shared = shared_patients(codes, patients)
        in_test = shared["test/train"] or shared["test/validation"]
        if self.shared_patients == "deal" and shared["validation/train"] and not in_test:
            if tell:
                log.warning(
                    "dataset.columns.split: %d of %d validation images are of patients who are in train; both are "
                    "dealt anew by whole patients (dataset.shared_patients=deal; refuse, accept)",
                    *(shared["validation/train"], int((codes == 1).sum())),
                )
            codes = dealt_anew(codes, strata(labels), patients, self.seed)
        refuse_shared_patients(codes, patients)
        return codes

    def _check_unreadable(self, decoded: Decoded) -> None:
        count, total = len(decoded.unreadable), len(decoded.unreadable) + len(decoded.kept)
        if not count:
            return
        told = f"{count} of {total} files give no picture ({decoded.reasons()})"
        if count > self.max_unreadable * total:
            raise DataError(
                f"dataset.max_unreadable={self.max_unreadable:g}: {told}, listed in {decoded.listed}; "
                "accepted: at most that share, or a larger one"
            )
        log.warning(as_called(f"dataset: {told} and are left out; python -m medx.data check lists them"))


def numbered(names: list[str]) -> np.ndarray:
    """A number from 0 for each different name, in their order, ``int64 [n]``."""
    return np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)[1].astype(np.int64)


def _by_number(label: str) -> tuple[float, str]:
    """Numbers by size and before words, among which is ``nan``: it has no place in any order."""
    try:
        number = float(label)
    except ValueError:
        number = math.inf
    return (math.inf if math.isnan(number) else number), label


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def _cache() -> Path:
    return Path(os.environ.get("MEDX_CACHE") or Path.home() / ".cache" / "medx")
