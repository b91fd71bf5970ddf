"""Data that does not fit into memory is refused with numbers, before the system kills the process without a word."""

from medx.machine import available_memory
from medx.schema import DataError

IMAGE_VALUE = 9
"""Bytes of memory for one value of an image: as read (1), as a model's input (4), and once more dealt to hospitals."""

FEATURE_VALUE = 8
"""Bytes for one value of a feature: of all images, and once more dealt to hospitals."""


def refuse_beyond_memory(what: str, needed: float, accepted: str) -> None:
    """Raise DataError where ``needed`` bytes for ``what`` are more than are available."""
    available = available_memory()
    if needed > available:
        raise DataError(
            f"{what}: needs about {needed / 1e9:.3g} GB of memory, {available / 1e9:.3g} GB are available; "
            f"accepted: {accepted}, or more memory"
        )
