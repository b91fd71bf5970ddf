"""The one decorator behind every configurable component, and the errors a user can act on."""

import errno
from pathlib import Path
from typing import Annotated, TypeVar, dataclass_transform

import pydantic
from pydantic.dataclasses import dataclass as pydantic_dataclass

T = TypeVar("T")


def from_start(path: Path) -> Path:
    """The path from the directory in which the program was started, with ``~`` as the user's home."""
    return path.expanduser().absolute()


# A path in a configuration: one place, from wherever the run is gone on with.
Place = Annotated[Path, pydantic.AfterValidator(from_start)]


class MedxError(Exception):
    """An error a person can act on: one line that names the key or file, its value, and what is accepted."""


class ConfigError(MedxError):
    """A configuration that cannot run."""


class DataError(MedxError):
    """A data file that is missing, damaged, or not what it claims to be."""


class PrivacyError(MedxError):
    """A request that would break the privacy guarantee."""


class LedgerError(PrivacyError):
    """A privacy ledger that is corrupt, locked, or exhausted."""


class CheckpointError(MedxError):
    """A checkpoint that is missing, corrupt, or of another configuration."""


# What a person can put right: no space, no permission, a name that is too long, taken, or cannot be.
MACHINE_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
)


def one_line(error: BaseException) -> str | None:
    """What to say of an error that a person can act on; None for a fault of the program."""
    if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
        return f"{error.filename or 'output'}: {error.strerror}"
    return str(error) if isinstance(error, MedxError) else None


@dataclass_transform(frozen_default=True, kw_only_default=True)
def component(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen, keyword-only, validated configuration class.

    Unknown keys, wrong types and values out of range fail at construction. Ranges are written
    ``Annotated[float, Gt(0)]``. Infinite and NaN floats are refused. Defaults live in the yaml alone.
    """
    config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    decorated: type[T] = pydantic_dataclass(cls, config=config, frozen=True, kw_only=True)  # type: ignore[assignment]
    return decorated
