"""Importing what takes seconds, in less of them."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """Import without the collector of cycles, which would scan every object of torch again and again.

    A fifth of the time of those imports. What they made stays for good, so later collections pass it over too.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
