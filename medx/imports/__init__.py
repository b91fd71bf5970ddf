"""Importing what takes seconds, in less of them."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from medx.imports.deferral import deferred
from medx.imports.idle_compiler import let_compiler_idle


@contextmanager
def without_collector() -> Iterator[None]:
    """Import without the collector of cycles, which would scan every object of torch again and again.

    A fifth of the time of those imports. What they made stays for good, so later collections pass it over too; where
    everything was there already, nothing is done to what else the process holds.
    """
    enabled, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
        if enabled:
            gc.enable()


@contextmanager
def quickly() -> Iterator[None]:
    """Import torch, Flower, Opacus and Lightning: without the collector, and without what no run uses."""
    let_compiler_idle()
    with without_collector(), deferred():
        yield
