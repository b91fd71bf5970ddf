"""The findings as text of 80 columns."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from medx.data.findings import Findings
from medx.dataset.table import SPLITS

WIDTH = 80
MOST_NAMES = 20  # of files in a list; all are in the JSON
MOST_ROWS = 40  # of a table


def as_text(title: str, found: Findings) -> str:
    """Tables, lists, and last what is to be looked at and what would be refused."""
    return "\n".join([*_parts(title, found), ""])


def _parts(title: str, found: Findings) -> Iterator[str]:
    yield from (title, "")
    if found["files"] is not None:
        yield from _whole(found)
    yield from _wrapped(
        "a run would be refused: " + found["refusal"] if found["refusal"] else "a run can take these data"
    )


def _whole(found: Findings) -> Iterator[str]:
    classes = {name: [sum(row.values()), *row.values()] for name, row in found["classes"].items()}
    total = [found["images"], *(found["splits"].get(split, 0) for split in SPLITS)]  # which may have several labels
    yield from table(["images", "all", *SPLITS], [*classes.items(), ("all", total)])
    if found["patients"] is not None:
        people = found["patients"]
        each = people["images_each"]
        yield f"\n{people['count']:,} patients, {each['median']:g} images each (median), at most {each['most']}"
    if found["hospitals"] is not None:
        yield ""
        rows = [
            (name, [one["images"], "-" if one["patients"] is None else one["patients"], *one["splits"].values()])
            for name, one in found["hospitals"].items()
        ]
        yield from table(["hospital", "images", "patients", *SPLITS], rows)
    files, sizes = found["files"], found["files"]["sizes"]
    yield ""
    yield from _wrapped(f"modes: {_counted(files['modes'])}; bits: {_counted(files['bits'])}")
    if sizes["different"]:
        ends = " to ".join("{} x {}".format(*sizes[end]) for end in ("smallest", "largest"))
        yield f"sizes: {sizes['different']} ({ends} pixels)"
    same = found["identical"]
    yield f"identical pictures: {same['images']}, in groups: {same['groups']}"
    told = [f"{one['what']} {one['auc']:.2f} ({one['class']})" for one in found["shortcuts"]]
    yield from _wrapped(f"AUC without looking at the image: {', '.join(told) or 'none'}")
    if found["unreadable"]:
        yield "\nwithout a picture, and counted above:"
        for one in found["unreadable"][:MOST_NAMES]:
            yield from _wrapped(f"{one['file']}: {one['reason']}", "  ")
        if len(found["unreadable"]) > MOST_NAMES:
            yield f"  and {len(found['unreadable']) - MOST_NAMES} more (--json lists all)"
    if found["warnings"]:
        yield "\nto look at:"
        for warning in found["warnings"]:
            yield from _wrapped(warning, "- ")
    yield ""


def table(header: Sequence[str], rows: Sequence[tuple[str, Sequence[Any]]]) -> Iterator[str]:
    """Names to the left, numbers to the right; a name too long for the line is cut."""
    shown = [(name, [str(cell) for cell in cells]) for name, cells in rows[:MOST_ROWS]]
    widths = [max(len(title), *(len(cells[place]) for _, cells in shown)) for place, title in enumerate(header[1:])]
    first = min(
        max(len(name) for name in (header[0], *(name for name, _ in shown))), WIDTH - sum(widths) - 2 * len(widths)
    )
    for name, cells in [(header[0], list(header[1:])), *shown]:
        cut = name if len(name) <= first else name[: first - 3] + "..."
        yield cut.ljust(first) + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    if len(rows) > MOST_ROWS:
        yield f"and {len(rows) - MOST_ROWS} more"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "none"


def _wrapped(text: str, mark: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=mark, subsequent_indent=" " * len(mark)) or [""]
