"""torch without its compiler, half a second of every start, until something is compiled.

Optimizers and Lightning ask ``torch._dynamo`` for little that means anything while nothing is compiled: for functions
that do nothing then, and for a class of which there is no instance. That much stands in for it. Whatever else is asked
of it, ``torch.compile`` to begin with, puts the real one in its place.
"""

import sys
import threading
from collections.abc import Callable
from functools import cache, partial, wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from inspect import isfunction
from types import ModuleType
from typing import Any

NAME = "torch._dynamo"


def let_compiler_idle() -> None:
    """Put the stand-in into ``sys.modules``; nothing where the compiler is loaded already."""
    if NAME not in sys.modules:
        idle = _Idle()
        sys.modules[NAME] = idle
        sys.meta_path.insert(0, idle.submodules)


class _CompiledModule(type):
    def __instancecheck__(cls, instance: object) -> bool:
        loaded = sys.modules.get(NAME)
        real = None if isinstance(loaded, _Idle) else getattr(loaded, "OptimizedModule", None)
        return real is not None and isinstance(instance, real)


class _Idle(ModuleType):
    __path__: list[str] = []  # noqa: RUF012  # a package: submodules are found by _Submodules

    class OptimizedModule(metaclass=_CompiledModule):
        """What ``torch.compile`` makes of a module."""

    def __init__(self) -> None:
        super().__init__(NAME)
        self.submodules = _Submodules(self)
        self._lock = threading.Lock()

    @property
    def idles(self) -> bool:
        """Whether it still stands for the real module."""
        return sys.modules.get(NAME) is self

    def disable(self, fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        """Keep the compiler out of a function: for nothing while it idles, then as the real one does."""
        if fn is None:
            return partial(self.disable, recursive=recursive, **options)
        if not isfunction(fn) or not self.idles:
            return self.wake().disable(fn, recursive, **options)
        kept_out: Callable[[], Any] = cache(lambda: self.wake().disable(fn, recursive, **options))

        @wraps(fn)
        def disabled(*args: Any, **kwargs: Any) -> Any:
            return (fn if self.idles else kept_out())(*args, **kwargs)

        return disabled

    def graph_break(self, msg: str = "") -> None:
        """Cut the graph, of which there is none while it idles."""
        if not self.idles:
            self.wake().graph_break(msg)

    def wake(self) -> ModuleType:
        """The real module, from here on in this one's place."""
        with self._lock:  # not around the import, which has locks of its own
            if self.idles:
                sys.meta_path.remove(self.submodules)
                vars(sys.modules.get("torch", self)).pop("_dynamo", None)
                del sys.modules[NAME]
        return import_module(NAME)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.wake(), name)


class _Submodules(MetaPathFinder, Loader):
    """An import of a part of the compiler wakes all of it, and gives the part that this has loaded."""

    def __init__(self, idle: _Idle) -> None:
        self._idle = idle

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        """A spec that is loaded here."""
        return ModuleSpec(fullname, self) if fullname.startswith(f"{NAME}.") and self._idle.idles else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The part as it is."""
        self._idle.wake()
        found = import_module(spec.name)
        spec.loader_state = found.__spec__
        return found

    def exec_module(self, module: ModuleType) -> None:
        """Only put back the spec that importing it this way has replaced."""
        spec = vars(module)["__spec__"]
        if spec.loader is self:
            vars(module)["__spec__"] = spec.loader_state
