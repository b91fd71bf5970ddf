"""Importing libraries without the packages that they name and a run does not use."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
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

    Afterwards they are imported as ever, at their next import or when a stand-in is used, and as attributes of their
    parents they are there. A package that is loaded already, or is not installed, is not deferred; of one that is
    deferred every name is taken to exist.
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
    stand-ins too; any other use ends it.
    """

    def __init__(self, deferral: "_Deferral", module: str, find: Callable[[], Any]) -> None:
        vars(self).update(_deferral=deferral, _module=module, _find=find)

    def _found(self) -> Any:
        if "_value" not in vars(self):
            self._deferral.end(self._module)
            vars(self)["_value"] = self._find()
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
        # Nothing is an instance of a class that was never loaded, here or in a package that this one takes it from.
        return self._deferral.has_come(self._module) and isinstance(instance, self._found())

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._found(), name, value)

    def __bool__(self) -> bool:
        return bool(self._found())

    def __eq__(self, other: object) -> bool:
        if self is other or (self._deferral.covers(self._module) and not isinstance(other, str | int | float | tuple)):
            return self is other  # typing asks of each member of a union whether it is one of its own forms
        return bool(self._found() == other)

    __hash__ = object.__hash__  # by which typing tells the members of a union apart

    def __getitem__(self, key: Any) -> Any:
        return self._found()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._found())

    def __contains__(self, item: object) -> bool:
        return item in self._found()

    def __len__(self) -> int:
        return len(self._found())

    def __str__(self) -> str:
        return str(self._found())

    def __or__(self, other: Any) -> Any:
        return Union[self, other]  # noqa: UP007  # of two objects, in an annotation

    def __ror__(self, other: Any) -> Any:
        return Union[other, self]  # noqa: UP007


class _Deferral(MetaPathFinder, Loader):
    """Finds every module of some packages as an empty one, whose names are stand-ins."""

    def __init__(self, packages: Iterator[str]) -> None:
        self.packages = set(packages)
        self._all = tuple(self.packages)

    def covers(self, module: str) -> bool:
        """Whether this module is deferred now."""
        return any(_within(module, package) for package in self.packages)

    def later(self, module: str, find: Callable[[], Any]) -> Any:
        """A stand-in for something of this module while it is deferred, then the thing itself."""
        return StandIn(self, module, find) if self.covers(module) else find()

    def has_come(self, module: str) -> bool:
        """Whether a package that was deferred, beside this module in the same library, is loaded by now."""
        library = module.partition(".")[0]
        return any(
            package in sys.modules and not isinstance(sys.modules[package], _Empty)
            for package in self._all
            if _within(package, library)
        )

    def end(self, module: str) -> None:
        """Let the package of this module be imported from now on."""
        for package in [package for package in self.packages if _within(module, package)]:
            self.packages.discard(package)
            for name, there in list(sys.modules.items()):
                if isinstance(there, _Empty) and _within(name, package):
                    del sys.modules[name]
            parent, _, child = package.rpartition(".")
            if parent in sys.modules:  # code may rely on others to have imported it: the import will replace this
                vars(sys.modules[parent]).setdefault(child, _Empty(self, package))

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        """A spec that is loaded here, for a module that is deferred."""
        if fullname in self.packages and PathFinder.find_spec(fullname, path) is None:
            self.packages.discard(fullname)  # it is not there, and who asks for it must hear so
        return ModuleSpec(fullname, self, is_package=True) if self.covers(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty one."""
        return _Empty(self, spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: that is what is deferred."""


class _Empty(ModuleType):
    __path__: list[str] = []  # noqa: RUF012  # what it holds is found by _Deferral

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
