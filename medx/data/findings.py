"""What there is and what is wrong, counted: a plain dictionary, from which text, JSON and the page are made."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from medx.data.look import Records, alike, area_under_curve, readable, rows_where
from medx.dataset.dealing import shared_patients
from medx.dataset.folder import numbered
from medx.dataset.labels import count_classes, has
from medx.dataset.table import SPLITS

SATURATED = 0.5  # share of black and white pixels from which a picture counts as saturated
FLAT = 1 / 16  # of its depth: a 16-bit picture that uses less is nearly black to a model
SHORTCUT = 0.65  # area under the curve from which a number that no image is needed for is worth a warning

Findings = dict[str, Any]


def find(records: Records, refusal: str | None) -> Findings:
    """Everything; ``refusal`` is what a run would be refused with."""
    groups = alike(records)
    found: Findings = {
        "images": len(records.labels),
        "classes": by_class(records, np.ones(len(records.labels), bool)),
        "splits": _counts([SPLITS[code] for code in records.splits]),
        "patients": patients(records),
        "hospitals": hospitals(records),
        "files": files(records),
        "unreadable": [
            {"file": _name(records, row), "reason": look}
            for row, look in enumerate(records.looks)
            if isinstance(look, str)
        ],
        "constant": _names(records, lambda look: look.low == look.high),
        "saturated": _names(records, lambda look: look.clipped > SATURATED and look.low != look.high),
        "flat": _names(records, lambda look: look.bits > 8 and 0 < look.high - look.low < FLAT),
        "identical": {
            "groups": len(groups),
            "images": sum(map(len, groups)),
            "across_splits": _across(groups, records.splits),
            "across_labels": _across(groups, records.labels.tolist()),
            "across_patients": _across(groups, records.patients),
        },
        "shortcuts": list(shortcuts(records)),
        "refusal": refusal,
    }
    return found | {"warnings": list(warnings(found))}


def nothing(refusal: str | None) -> Findings:
    """Of data whose rows could not even be read."""
    missing = dict.fromkeys(("patients", "hospitals", "files"))
    return {"images": 0, "classes": {}, **missing, "shortcuts": [], "refusal": refusal, "warnings": []}


def by_class(records: Records, rows: np.ndarray) -> dict[str, dict[str, int]]:
    """Images of each class in each split."""
    return {
        name: {
            split: int((has(records.labels, label) & (records.splits == code) & rows).sum())
            for code, split in enumerate(SPLITS)
        }
        for label, name in enumerate(records.class_names)
    }


def patients(records: Records) -> dict[str, Any] | None:
    """How many, how many images of each, and who is where he should not be; None where no patient is known."""
    if records.patients is None:
        return None
    codes = numbered(records.patients)
    each = np.bincount(codes)
    several = {
        "hospitals": _in_several(codes, records.hospitals),
        "classes": _in_several(codes, [str(label) for label in records.labels.tolist()]),
        "splits": _in_several(codes, records.splits),
    }
    return {
        "count": len(each),
        "images_each": {"median": float(np.median(each)), "most": int(each.max())},
        "in_several": several,
        "images_across_splits": shared_patients(records.splits, codes),
    }


def hospitals(records: Records) -> dict[str, Any] | None:
    """Images, patients and classes of each hospital; None where no hospital is known."""
    if records.hospitals is None:
        return None
    named = np.array(records.hospitals, dtype=object)
    result = {}
    for name in sorted(set(records.hospitals)):
        rows = named == name
        own = None if records.patients is None else len({records.patients[row] for row in np.flatnonzero(rows)})
        counts = count_classes(records.labels[rows], len(records.class_names))
        classes = dict(zip(records.class_names, counts, strict=True))
        splits = np.bincount(records.splits[rows], minlength=3).tolist()
        result[name] = {
            "images": int(rows.sum()),
            "patients": own,
            "classes": classes,
            "splits": dict(zip(SPLITS, splits, strict=True)),
        }
    return result


def files(records: Records) -> dict[str, Any]:
    """Modes, depths and sizes of the pictures that there are."""
    looks = [look for _, look in readable(records)]
    sizes = Counter((look.width, look.height) for look in looks)
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    return {
        "modes": _counts([look.mode for look in looks]),
        "bits": _counts([str(look.bits) for look in looks]),
        "sizes": {
            "different": len(sizes),
            "smallest": list(ordered[0]) if ordered else None,
            "largest": list(ordered[-1]) if ordered else None,
        },
    }


def shortcuts(records: Records) -> Iterator[dict[str, Any]]:
    """How well the label follows from what needs no image: for each number the class that it tells best."""
    pictures = readable(records)
    labels = records.labels[[row for row, _ in pictures]]
    numbers: dict[str, list[float]] = {
        "aspect ratio": [look.width / look.height for _, look in pictures],
        "size": [float(look.width * look.height) for _, look in pictures],
        "colour": [float(look.channels) for _, look in pictures],
        "depth": [float(look.bits) for _, look in pictures],
    }
    if records.ratios is not None:
        numbers["aspect ratio (column)"] = [records.ratios[row] for row, _ in pictures]
    for what, values in numbers.items():
        areas = {name: area_under_curve(values, has(labels, label)) for label, name in enumerate(records.class_names)}
        told = {name: max(area, 1 - area) for name, area in areas.items() if area is not None}
        if len(set(values)) > 1 and told:
            name = max(told, key=lambda each: told[each])
            yield {"what": what, "auc": round(told[name], 4), "class": name}


def warnings(found: Findings) -> Iterator[str]:
    """One sentence for each thing that a person should look at; none names a file or a patient."""
    counted = {
        "unreadable": "images without a picture",
        "constant": "images of one value only",
        "saturated": f"images that are black or white in more than {SATURATED:.0%} of their pixels",
        "flat": "images of 16 bits that use less than a sixteenth of them (dataset.window)",
    }
    yield from (f"{words}: {len(found[key])}" for key, words in counted.items() if found[key])
    same = {"splits": "in several splits", "labels": "with several labels", "patients": "of several patients"}
    for key, words in same.items():
        if count := found["identical"][f"across_{key}"]:
            yield f"groups of identical pictures {words}: {count}"
    for pair, count in (found["patients"] or {"images_across_splits": {}})["images_across_splits"].items():
        if count:
            yield "{1} images of patients who are in {2}: {0}".format(count, *pair.split("/"))
    if found["patients"] and found["patients"]["in_several"]["hospitals"]:
        yield f"patients at several hospitals: {found['patients']['in_several']['hospitals']}"
    yield from _missing(found)
    for shortcut in found["shortcuts"]:
        if shortcut["auc"] >= SHORTCUT:
            yield f"{shortcut['what']} alone tells {shortcut['class']} with an AUC of {shortcut['auc']:.2f}: a shortcut"


def _missing(found: Findings) -> Iterator[str]:
    """Classes that a hospital or a split has no image of."""
    for name, hospital in (found["hospitals"] or {}).items():
        if missing := [label for label, count in hospital["classes"].items() if not count]:
            yield f"hospital {name} has no image of {', '.join(missing)}"
    for name, splits in found["classes"].items():
        if missing := [split for split, count in splits.items() if not count]:
            yield f"class {name} has no image in {', '.join(missing)}"


def _counts(values: Sequence[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _in_several(codes: np.ndarray, others: Sequence[Any] | np.ndarray | None) -> int | None:
    """How many of the coded are with more than one of the others."""
    if others is None:
        return None
    pairs = set(zip(codes.tolist(), list(others), strict=True))
    return sum(count > 1 for count in Counter(code for code, _ in pairs).values())


def _across(groups: list[list[int]], values: Sequence[Any] | np.ndarray | None) -> int | None:
    """How many groups have more than one of the values."""
    return None if values is None else sum(len({str(values[row]) for row in rows}) > 1 for rows in groups)


def _name(records: Records, row: int) -> str:
    return f"row {row}" if records.files is None else records.files[row]


def _names(records: Records, wanted: Any) -> list[str]:
    return [_name(records, row) for row in rows_where(records, wanted)]
