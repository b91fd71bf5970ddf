"""Labels ``int64 [n]``, one class a record, or ``[n, labels]`` where several may hold: 1 yes, 0 no, -1 not known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

YES, NO = ("1", "1.0", "yes", "true", "positive"), ("0", "0.0", "no", "false", "negative")
UNCERTAIN, EMPTY = ("-1", "-1.0", "u", "uncertain"), ("", "nan", "na")
NOTHING = ("no finding", "none", "normal")  # in a list of labels
CODES = {"positive": 1, "negative": 0, "missing": -1}


@dataclass(frozen=True)
class Words:
    """What a cell stands for that says neither yes nor no (as CheXpert has it: -1 is uncertain)."""

    uncertain: Literal["missing", "positive", "negative"]
    missing: Literal["missing", "negative"]

    @property
    def codes(self) -> dict[str, int]:
        """1, 0 or -1 by the word, in small letters."""
        certain = dict.fromkeys(YES, 1) | dict.fromkeys(NO, 0)
        return certain | dict.fromkeys(UNCERTAIN, CODES[self.uncertain]) | dict.fromkeys(EMPTY, CODES[self.missing])


def from_columns(
    columns: Mapping[str, Sequence[str]], words: Words, names: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels ``[n, labels]`` of a column each, and their names; raises ValueError, which shows no cell."""
    order = tuple(columns if names is None else names)
    if set(order) != set(columns) or len(order) != len(columns):
        raise ValueError(f"dataset.classes={list(order)}; accepted: the columns {', '.join(columns)} in any order")
    parts, known = [], words.codes
    for name in order:
        codes = [known.get(cell.casefold()) for cell in columns[name]]
        bad = sum(code is None for code in codes)
        if bad:
            raise ValueError(
                f"{bad} of {len(codes)} cells of {name} are no answer; accepted: 1, 0, -1, yes, no, or empty"
            )
        parts.append([code for code in codes if code is not None])
    return np.array(parts, np.int64).T.copy(), order


def from_lists(
    cells: Sequence[str], separator: str, words: Words, names: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels ``[n, labels]`` of lists such as ``Effusion|Mass``, and their names; raises ValueError, without a cell."""
    lists = [[word for each in cell.split(separator) if (word := each.strip())] for cell in cells]
    lists = [[word for word in words_of if word.casefold() not in NOTHING] for words_of in lists]
    order = tuple(sorted({word for words_of in lists for word in words_of}) if names is None else names)
    place = {name: index for index, name in enumerate(order)}
    if unknown := sum(any(word not in place for word in words_of) for words_of in lists):
        raise ValueError(
            f"{unknown} of {len(cells)} cells have a label that is not in dataset.classes; accepted: all in it"
        )
    if not order:
        raise ValueError("no row has a label; accepted: one label or more")
    labels = np.zeros((len(cells), len(order)), np.int64)
    for row, words_of in enumerate(lists):
        labels[row, [place[word] for word in words_of]] = 1
        if not cells[row].strip():
            labels[row] = CODES[words.missing]
    return labels, order


def has(labels: np.ndarray, index: int) -> np.ndarray:
    """Which records have the class ``bool [n]``."""
    found: np.ndarray = labels == index if labels.ndim == 1 else labels[:, index] == 1
    return found


def count_classes(labels: np.ndarray, num_classes: int) -> list[int]:
    """How many records have each class."""
    counts = np.bincount(labels, minlength=num_classes) if labels.ndim == 1 else (labels == 1).sum(axis=0)
    found: list[int] = counts.tolist()
    return found


def strata(labels: np.ndarray) -> np.ndarray:
    """One number a record, by which records are dealt: its class, or the rarest of the labels that it has.

    The rarest, because the frequent ones come out even by themselves; records without any label are the last stratum.
    """
    if labels.ndim == 1:
        return labels
    there = labels == 1
    order = np.argsort(there.sum(axis=0), kind="stable")
    first = np.argmax(there[:, order], axis=1)
    found: np.ndarray = np.where(there.any(axis=1), order[first], labels.shape[1]).astype(np.int64)
    return found
