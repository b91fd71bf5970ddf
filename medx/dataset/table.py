"""Which image is whose: a CSV as any spreadsheet writes it, or one folder a class, read into rows.

Messages count rows and name lines of the CSV; they never show an image's name, a patient or any other cell.
"""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medx.dataset.image_files import files_by_name, images_below
from medx.schema import ConfigError, DataError, component

CSV = "labels.csv"
DELIMITERS = ",;\t|"
SPLITS = ("train", "validation", "test")
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
MOST_GROUPS = 20
UNKNOWN = "unknown"
STEEPEST = 20.0  # the widest and the narrowest aspect ratio that is believed
Found = str | Literal[False] | None


@component
class Columns:
    """The names of a CSV's columns. Null: the column of the key's own name, if there is one; false: none.

    ``label`` may be several columns, each a label that may hold beside others.
    ``aspect_ratio`` is the width over the height that a picture had before it was stretched.
    """

    image: str
    label: str | list[str]
    patient: Found
    hospital: Found
    split: Found
    aspect_ratio: Literal[False] | str | None


@dataclass(frozen=True)
class Table:
    """A row an image. What no column tells is None; ``splits`` has the words of ``SPLITS``.

    ``labels`` are empty where there are ``several``: cells of each column of labels, by name. ``subgroups`` are other
    columns, by name; an empty cell is ``UNKNOWN``.
    """

    paths: list[Path]
    labels: list[str]
    patients: list[str] | None = None
    hospitals: list[str] | None = None
    splits: list[str] | None = None
    aspect_ratios: list[float] | None = None
    subgroups: dict[str, list[str]] = field(default_factory=dict)
    several: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)


def read_table(
    folder: Path, given: Path | None, columns: Columns, subgroups: Sequence[str] = (), *, filled: bool = True
) -> Table:
    """The rows of the CSV, or of the folders where there is none; raises DataError or ConfigError with one line.

    With ``filled`` every row has a label.
    """
    if not folder.is_dir():
        raise DataError(f"dataset.path={folder}: no such folder; accepted: one with {CSV}, or with one folder a class")
    if given is None and not (folder / CSV).exists():
        if isinstance(columns.label, list):
            raise ConfigError(f"dataset.columns.label={columns.label}: there is no {CSV} with columns; accepted: label")
        if subgroups:
            raise ConfigError(f"dataset.subgroups={list(subgroups)}: there is no {CSV} with columns; accepted: []")
        named = {name: getattr(columns, name) for name in ("patient", "hospital", "split", "aspect_ratio")}
        named |= {name: None if (value := getattr(columns, name)) == name else value for name in ("image", "label")}
        for name, value in named.items():
            if isinstance(value, str):
                raise ConfigError(
                    f"dataset.columns.{name}={value}: there is no {CSV} with columns in dataset.path; accepted: "
                    f"dataset.csv=FILE{_csvs(folder)}, or no columns"
                )
        return by_folders(folder)
    path = folder / CSV if given is None else given if given.exists() else folder / given
    return _Reader(folder, path, *read_csv(path)).table(columns, subgroups, filled=filled)


def _csvs(folder: Path) -> str:
    """Files that somebody may have meant."""
    names = sorted(path.name for path in folder.glob("*.csv"))[:3]
    return f" (there is {', '.join(names)})" if names else ""


def read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and rows (line, cells) of a CSV in UTF-8, UTF-16 or Windows-1252, by whatever it is delimited."""
    try:
        lines = list(io.StringIO(decode(path.read_bytes()), newline=""))
    except OSError as problem:
        raise DataError(f"dataset.csv={path}: cannot be read ({problem.strerror})") from problem
    first = next((line for line in lines if line.strip()), "")
    delimiter = max(DELIMITERS, key=lambda sign: len(_cells(first, sign)))
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as problem:
        raise DataError(f"{path}: line {reader.line_num} is no line of a CSV ({problem})") from problem
    rows = [(line, row) for line, row in rows if any(row)]
    if len(rows) < 2:
        raise DataError(f"{path}: no row below the header; accepted: a header, and a row an image")
    header = rows[0][1]
    for line, row in rows[1:]:
        if any(row[len(header) :]):
            raise DataError(f"{path}: line {line} has {len(row)} cells, the header {len(header)}; accepted: as many")
    return header, [(line, row + [""] * (len(header) - len(row))) for line, row in rows[1:]]


def decode(content: bytes) -> str:
    """Text of UTF-8 or UTF-16 where it says so, else of Windows-1252, in which every spreadsheet once wrote."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


@dataclass(frozen=True)
class _Reader:
    """The rows of one CSV, and where the images lie that they name."""

    folder: Path
    path: Path
    header: list[str]
    rows: list[tuple[int, list[str]]]

    def table(self, columns: Columns, subgroups: Sequence[str], *, filled: bool) -> Table:
        patients, hospitals = (self.cells(key, getattr(columns, key)) for key in ("patient", "hospital"))
        several = columns.label if isinstance(columns.label, list) else []
        ratio = columns.aspect_ratio or False  # never by itself: a column of that name may mean the picture as it is
        return Table(
            paths=self.images(self.needed("image", columns.image)),
            labels=[] if isinstance(columns.label, list) else self.needed("label", columns.label, filled=filled),
            several={name: self.needed("label", name, filled=False) for name in several},
            patients=patients,
            hospitals=hospitals,
            splits=self.split_words(self.cells("split", columns.split, filled=False)),
            aspect_ratios=self.ratios(self.cells("aspect_ratio", ratio)),
            subgroups={name: self.groups(name, (columns.patient or "patient", columns.image)) for name in subgroups},
        )

    def groups(self, name: str, told_of_one: Sequence[object]) -> list[str]:
        """The cells of a column that tells groups of people, whose values are shown: none may be a person."""
        if name.strip().casefold() in {str(each).strip().casefold() for each in told_of_one}:  # as columns are found
            raise ConfigError(f"dataset.subgroups: {name} tells persons or images; accepted: columns that tell groups")
        cells = self.cells("", name, filled=False)
        assert cells is not None
        values = sorted(set(cells))
        if len(values) > MOST_GROUPS:
            raise DataError(
                f"dataset.subgroups: {name} has {len(values)} different values; accepted: at most {MOST_GROUPS}, such "
                "as bands of ages"
            )
        return [cell or UNKNOWN for cell in cells]

    def needed(self, key: str, name: str, *, filled: bool = True) -> list[str]:
        cells = self.cells(key, name, filled=filled)
        assert cells is not None
        return cells

    def cells(self, key: str, name: Found, *, filled: bool = True) -> list[str] | None:
        """A column's cells, every one ``filled``; None where it may be and is missing."""
        if name is False or (name is None and not self.places(key)):
            return None
        places = self.places(name or key)
        if len(places) != 1:
            problem = "is missing" if not places else "is there several times"
            shown = ", ".join(cell for cell in self.header if cell)
            what = f"dataset.columns.{key}={name}" if key else f"dataset.subgroups=[{name}]"
            raise ConfigError(f"{what}: this column {problem} in {self.path}; it has: {shown}")
        cells = [row[places[0]] for _, row in self.rows]
        if filled and not all(cells):
            several = "; dataset.label_separator where a cell lists several" if key == "label" else ""
            empty = [not cell for cell in cells]
            self.refuse(key, empty, "an empty cell", f"accepted: a value in every row{several}")
        return cells

    def places(self, name: str) -> list[int]:
        """Where a column of this name is; letters may be of the other case where none is the same."""
        same = [place for place, cell in enumerate(self.header) if cell == name.strip()]
        folded = name.strip().casefold()
        return same or [place for place, cell in enumerate(self.header) if cell.casefold() == folded]

    def refuse(self, key: str, bad: Sequence[bool], problem: str, accepted: str) -> None:
        """Raise DataError that counts the bad rows and names the first by its line."""
        line = next(line for (line, _), wrong in zip(self.rows, bad, strict=True) if wrong)
        raise DataError(
            f"{self.path}: dataset.columns.{key}: {sum(bad)} of {len(bad)} rows have {problem}, "
            f"the first is line {line}; {accepted}"
        )

    def images(self, names: list[str]) -> list[Path]:
        """The files, by their paths below the folder, else by names that are there once, with or without ending."""
        elsewhere: dict[str, list[Path]] | None = None
        found, seen = [], dict[Path, int]()
        for (line, _), name in zip(self.rows, names, strict=True):
            path = self.folder / name
            if not os.path.lexists(path):
                path = self.folder / name.replace("\\", "/")
            if not os.path.lexists(path):
                elsewhere = files_by_name(self.folder) if elsewhere is None else elsewhere
                others = self.alike(elsewhere, name.replace("\\", "/"))
                if len(others) > 1:
                    raise DataError(
                        f"{self.path}: line {line} names an image that is there {len(others)} times; accepted: its "
                        "path below dataset.path"
                    )
                path = others[0] if others else path
            if path in seen:
                raise DataError(
                    f"{self.path}: line {line} names the image of line {seen[path]} again; accepted: each image once"
                )
            seen[path] = line
            found.append(path)
        return found

    def alike(self, elsewhere: dict[str, list[Path]], name: str) -> list[Path]:
        """Files of this name, with or without its ending: that in its very place, else all."""
        found = elsewhere.get(Path(name).name, [])
        return [path for path in found if path.relative_to(self.folder).with_suffix("") == Path(name)] or found

    def split_words(self, cells: list[str] | None) -> list[str] | None:
        """``SPLITS`` by the words that are in use for them."""
        if cells is None:
            return None
        words = [SPLIT_WORDS.get(cell.casefold()) for cell in cells]
        bad = [word is None for word in words]
        if any(bad):
            self.refuse("split", bad, "no word for a split", f"accepted: {', '.join(SPLIT_WORDS)}; or false: no column")
        return [word for word in words if word is not None]

    def ratios(self, cells: list[str] | None) -> list[float] | None:
        """Numbers, with a point or a comma."""
        if cells is None:
            return None
        numbers = [_number(cell) for cell in cells]
        bad = [not 1 / STEEPEST <= number <= STEEPEST for number in numbers]
        if any(bad):
            self.refuse("aspect_ratio", bad, "no ratio", f"accepted: {1 / STEEPEST:g} to {STEEPEST:g}")
        return numbers


def _number(cell: str) -> float:
    try:
        return float(cell.replace(",", "."))
    except ValueError:
        return float("nan")


def by_folders(folder: Path) -> Table:
    """One folder a class; where all folders have names of splits, one folder a class in each of them."""
    folders = list(_folders(folder))
    parts = {each: SPLIT_WORDS.get(each.name.casefold()) for each in folders}
    split = bool(folders) and None not in parts.values()
    some = [each.name for each, part in parts.items() if part is not None]
    if some and not split:
        raise DataError(
            f"dataset.path={folder}: some folders have names of splits ({', '.join(some)}) and some have not; "
            f"accepted: folders of classes, or of splits with a folder a class in each, or {CSV}"
        )
    classes = [(each, inner) for each in folders for inner in _folders(each)] if split else [(x, x) for x in folders]
    rows = [(path, inner.name, parts[outer]) for outer, inner in classes for path in images_below(inner)]
    if not rows:
        raise DataError(f"dataset.path={folder}: no {CSV} and no image in a folder; accepted: either of them")
    if len({label for _, label, _ in rows}) < 2:
        raise DataError(
            f"dataset.path={folder}: images of one class, in folders of one name; accepted: one folder a class, or "
            f"{CSV}, or dataset.csv=FILE{_csvs(folder)}"
        )
    splits = [part for _, _, part in rows if part is not None] if split else None
    return Table([path for path, _, _ in rows], [label for _, label, _ in rows], splits=splits)


def _folders(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith((".", "__")))
