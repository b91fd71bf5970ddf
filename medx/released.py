"""Who may see a field of a record: each says so by its type, and one that does not is refused.

``Public[T]``, ``Covered[T]``, ``Named[T]`` and ``Owner[T]`` are ``T`` with a mark; a field without one must hold
records, whose own fields are marked.
"""

from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo


class Record(BaseModel):
    """Base of all records: unknown fields are an error, so that a typo cannot pass for a result."""

    model_config = ConfigDict(extra="forbid")


class Release(Enum):
    """What stands between a field and the records of patients; the value is what the privacy statement says of it."""

    PUBLIC = "public, fixed by the configuration, the code, the machine and the record counts"
    COVERED = "covered by epsilon for training records"
    NAMED = (
        "released and not covered by epsilon: what follows from who answered, abstained or failed, and a threshold "
        "chosen on validation records (in the model file too)"
    )
    OWNER = (
        "the owner's view only, not released: exact functions of training, validation or test records, times, "
        "texts of errors, and the seed"
    )


T = TypeVar("T")
R = TypeVar("R", bound=Record)
Public = Annotated[T, Release.PUBLIC]
Covered = Annotated[T, Release.COVERED]
Named = Annotated[T, Release.NAMED]
Owner = Annotated[T, Release.OWNER]


def marked(kind: type[Record], prefix: str = "") -> Iterator[tuple[str, Release]]:
    """Every field of a record by its dotted path, down to the first mark; raises TypeError where there is none."""
    for name, field in kind.model_fields.items():
        mark, inner = _mark(field), _record_in(field.annotation)
        if mark is not None:
            yield prefix + name, mark
        elif inner is not None:
            yield from marked(inner, f"{prefix}{name}.")
        else:
            raise TypeError(
                f"{kind.__name__}.{name}: nobody said who may see it; accepted: Public, Covered, Named, Owner"
            )


def released(record: R) -> R:
    """The same record with the owner's fields at their defaults."""
    changes: dict[str, Any] = {}
    for name, field in type(record).model_fields.items():
        mark = _mark(field)
        if mark is Release.OWNER:
            changes[name] = field.get_default(call_default_factory=True)
        elif mark is None:
            changes[name] = _released_within(getattr(record, name))
    return record.model_copy(update=changes)


def _released_within(value: Any) -> Any:
    if isinstance(value, list):
        return [released(each) for each in value]
    return None if value is None else released(value)


def _mark(field: FieldInfo) -> Release | None:
    return next((mark for mark in field.metadata if isinstance(mark, Release)), None)


def _record_in(annotation: Any) -> type[Record] | None:
    """The record class in ``X``, ``X | None`` or ``list[X]``."""
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return annotation
    found = [inner for part in get_args(annotation) if (inner := _record_in(part)) is not None]
    return found[0] if found else None
