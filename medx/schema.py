"""The one decorator behind every configurable component, and the errors a user can act on."""

import errno
from collections.abc import Callable
from functools import cache
from pathlib import Path
from pydoc import locate
from typing import Annotated, TypeVar, dataclass_transform, overload

import pydantic
import yaml
from pydantic.dataclasses import dataclass as pydantic_dataclass

T = TypeVar("T")
_PACKAGE = Path(__file__).resolve().parent
# In the package where it was installed from a wheel, beside it in the repository.
CONF = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())
GROUPS = (
    "dataset",
    "partition",
    "model",
    "trainer",
    "privacy",
    "federation",
    "aggregation",
    "personalisation",
    "runtime",
    "tracking",
)
IDENTITY = "__component__"


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


@overload
@dataclass_transform(frozen_default=True, kw_only_default=True)
def component(given: type[T], /) -> type[T]: ...
@overload
@dataclass_transform(frozen_default=True, kw_only_default=True)
def component(given: str, /) -> Callable[[type[T]], type[T]]: ...
def component(given: type[T] | str, /) -> type[T] | Callable[[type[T]], type[T]]:
    """Make a class a frozen, keyword-only, validated configuration class.

    Unknown keys, wrong types and values out of range fail at construction. Ranges are written
    ``Annotated[float, Gt(0)]``. Infinite and NaN floats are refused. Defaults live in the yaml alone; but keys that
    came later, which the class names in ``added``, have what was before as theirs: a run that leaves them so keeps its
    hash and its draws, and one that began before them goes on. ``places`` are keys that only say where files lie, of
    which no hash knows: what is in them is told by another key.
    ``@component("privacy/local_dp")`` also declares the name, group and option, by which draws, hashes and saved models
    know the class, wherever its module lies.
    """
    if isinstance(given, str):
        return lambda cls: _declared(component(cls), given)
    config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    decorated: type[T] = pydantic_dataclass(given, config=config, frozen=True, kw_only=True)  # type: ignore[assignment]
    return decorated


def _declared(cls: type[T], identity: str) -> type[T]:
    setattr(cls, IDENTITY, identity)
    return cls


def identity_of(cls: type) -> str:
    """The name that the class declares, group and option; of a class that declares none, its Python path."""
    declared: str | None = vars(cls).get(IDENTITY)  # its own: a class that derives from it is another component
    return declared or f"{cls.__module__}.{cls.__qualname__}"


def class_of(identity: str) -> type:
    """The class that declares the name, found by its option's yaml; raises ConfigError where there is none."""
    group, _, option = identity.partition("/")
    found = locate(str(_classes(CONF / group).get(option)))
    if not isinstance(found, type) or identity_of(found) != identity:
        raise ConfigError(f"{identity}: no component of this version declares that name")
    return found


def option_of(group: str, target: str) -> str:
    """The option of a group whose class lies at the Python path; of a path in no yaml here its module's name."""
    named = [option for option, path in _classes(CONF / group).items() if path == target]
    return named[0] if named else target.split(".")[-2]


@cache
def _classes(folder: Path) -> dict[str, str]:
    """The Python path of the class of every option in a group's folder."""
    contents = {path.stem: yaml.safe_load(path.read_text()) for path in folder.glob("[!_]*.yaml")}
    # An option that sets other groups too has its own keys apart.
    own = {option: content.get(folder.name, content) for option, content in contents.items() if content}
    return {option: keys["_target_"] for option, keys in own.items() if "_target_" in keys}
