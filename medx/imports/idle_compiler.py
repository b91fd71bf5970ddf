"""torch without its compiler, half a second of every start, until something is compiled.

Optimizers and Lightning ask ``torch._dynamo`` for little that means anything while nothing is compiled: for functions
that do nothing then, and for a class of which there is no instance. That much stands in for it. Whatever else is asked
of it, ``torch.compile`` to begin with, puts the real one in its place.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAME = "torch._dynamo"
CACHED = "__dynamo_disable"  # where torch keeps what ``disable`` made of a function


def let_compiler_idle() -> None:
    """Put the stand-in into ``sys.modules``; nothing where the compiler is loaded already."""
    if NAME not in sys.modules:
        idle = _Idle()
        sys.modules[NAME] = idle
        sys.meta_path.insert(0, _Submodules(idle))


class _CompiledModule(type):
    def __instancecheck__(cls, instance: object) -> bool:
        loaded = sys.modules.get(NAME)
        return not isinstance(loaded, _Idle | None) and isinstance(instance, loaded.OptimizedModule)


class _Idle(ModuleType):
    __path__: list[str] = []  # noqa: RUF012  # a package: submodules are found by _Submodules

    class OptimizedModule(metaclass=_CompiledModule):
        """What ``torch.compile`` makes of a module."""

    def __init__(self) -> None:
        super().__init__(NAME)
        self._disabled: list[Callable[..., Any]] = []

    def disable(self, fn: Callable[..., Any] | None = None, recursive: bool = True, **options: object) -> Any:
        """Keep the compiler out of a function: it is not there."""
        if fn is None:
            return self.disable
        self._disabled.append(fn)
        return fn

    def graph_break(self, msg: str = "") -> None:
        """Cut the graph, of which there is none."""

    def wake(self) -> ModuleType:
        """The real module, from here on in this one's place."""
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME]
            vars(import_module("torch")).pop("_dynamo", None)
            for function in self._disabled:
                vars(function).pop(CACHED, None)  # torch will ask again
        return import_module(NAME)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.wake(), name)


class _Submodules(MetaPathFinder, Loader):
    """An import of a part of the compiler wakes all of it."""

    def __init__(self, idle: _Idle) -> None:
        self._idle = idle

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        """A spec of what waking has loaded."""
        if not fullname.startswith(f"{NAME}.") or sys.modules.get(NAME) is not self._idle:
            return None
        sys.meta_path.remove(self)
        self._idle.wake()
        self._found = import_module(fullname)
        self._spec = self._found.__spec__
        # importlib takes the spec of a module that has appeared meanwhile, and would load it a second time.
        vars(self._found)["__spec__"] = spec = ModuleSpec(fullname, self)
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module as it is."""
        return self._found

    def exec_module(self, module: ModuleType) -> None:
        """Only put its spec back."""
        vars(module)["__spec__"] = self._spec
