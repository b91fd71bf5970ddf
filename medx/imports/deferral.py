"""Importing libraries without the packages that they name and a run does not use."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Union

# Named by Flower, Opacus, Lightning and torchmetrics: a quarter of the time that their imports take.
UNUSED = (
    "httpx",
    "matplotlib",
    "scipy.signal",
    "scipy.stats",
    "torch.distributed._composable",
    "torch.distributed._tensor",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torchvision",
)


@contextmanager
def deferred(packages: tuple[str, ...] = UNUSED) -> Iterator[None]:
    """Import without these packages: what is imported gets a ``StandIn`` for each name that it takes from them.

    Afterwards they are imported as ever, at their next import or when a stand-in is used. A package that is there
    already is not deferred.
    """
    deferral = _Deferral(package for package in packages if package not in sys.modules)
    sys.meta_path.insert(0, deferral)
    try:
        yield
    finally:
        sys.meta_path.remove(deferral)
        for package in list(deferral.packages):
            deferral.end(package)


class StandIn:
    """Something of a deferred package; it becomes the real thing when it is used.

    While the deferral lasts, its attributes and the results of its calls (decorators, at the import of a module) are
    stand-ins too; any other use ends it. What is not foreseen here raises TypeError.
    """

    def __init__(self, deferral: "_Deferral", module: str, find: Callable[[], Any]) -> None:
        self._deferral, self._module, self._find = deferral, module, find

    def _found(self) -> Any:
        if "_value" not in vars(self):
            self._deferral.end(self._module)
            self._value = self._find()
        return self._value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or (name.startswith("_") and self._deferral.covers(self._module)):
            raise AttributeError(name)  # typing asks for such names, and takes any answer for yes
        return self._deferral.later(self._module, lambda: getattr(self._found(), name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        return self._deferral.later(self._module, lambda: self._found()(*args, **kwargs))

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._found(),)

    def __instancecheck__(self, instance: object) -> bool:
        # Nothing is an instance of a class that was never loaded.
        loaded = self._module in sys.modules and not self._deferral.covers(self._module)
        return loaded and isinstance(instance, self._found())

    def __bool__(self) -> bool:
        return bool(self._found())

    def __eq__(self, other: object) -> bool:
        if self is other or (self._deferral.covers(self._module) and not isinstance(other, str | int | float | tuple)):
            return self is other  # typing asks of each member of a union whether it is one of its own forms
        return bool(self._found() == other)

    __hash__ = object.__hash__  # by which typing tells the members of a union apart

    def __getitem__(self, key: Any) -> Any:
        return self._found()[key]

    def __or__(self, other: Any) -> Any:
        return Union[self, other]  # noqa: UP007  # of two objects, in an annotation

    def __ror__(self, other: Any) -> Any:
        return Union[other, self]  # noqa: UP007


class _Deferral(MetaPathFinder, Loader):
    """Finds every module of some packages as an empty one, whose names are stand-ins."""

    def __init__(self, packages: Iterator[str]) -> None:
        self.packages = set(packages)

    def covers(self, module: str) -> bool:
        """Whether this module is deferred now."""
        return any(_within(module, package) for package in self.packages)

    def later(self, module: str, find: Callable[[], Any]) -> Any:
        """A stand-in for something of this module while it is deferred, then the thing itself."""
        return StandIn(self, module, find) if self.covers(module) else find()

    def end(self, module: str) -> None:
        """Let the package of this module be imported from now on."""
        for package in [package for package in self.packages if _within(module, package)]:
            self.packages.discard(package)
            for name, there in list(sys.modules.items()):
                if isinstance(there, _Empty) and _within(name, package):
                    del sys.modules[name]
                    parent, _, child = name.rpartition(".")
                    vars(sys.modules.get(parent, there)).pop(child, None)

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        """A spec that is loaded here, for a module that is deferred."""
        return ModuleSpec(fullname, self, is_package=True) if self.covers(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty one."""
        return _Empty(self, spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: that is what is deferred."""


class _Empty(ModuleType):
    def __init__(self, deferral: _Deferral, name: str) -> None:
        super().__init__(name)
        self._deferral = deferral

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._deferral.later(self.__name__, lambda: _taken(self.__name__, name))


def _taken(module: str, name: str) -> Any:
    """What ``from module import name`` gives."""
    found = import_module(module)
    if not hasattr(found, name):
        with suppress(ModuleNotFoundError):
            import_module(f"{module}.{name}")
    return getattr(found, name)


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
