"""Primitives to draw many small images at once: every argument is ``[count, 1, 1]``, every map ``[count, s, s]``."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

OVERSAMPLING = 2  # images are drawn so much larger and averaged down, which antialiases their edges
CHUNK = 32  # images drawn together: their maps stay in the processor's cache


@dataclass(frozen=True)
class Sheet:
    """``count`` images drawn together, ``side`` pixels large, and the generator of all that differs among them."""

    count: int
    side: int
    generator: np.random.Generator

    def plane(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixel centres ``x, y`` in -1..1, both ``[1, side, side]``; y points down."""
        axis = ((np.arange(self.side, dtype=np.float32) + 0.5) / self.side * 2 - 1).astype(np.float32)
        y, x = np.meshgrid(axis, axis, indexing="ij")
        return x[None], y[None]

    def uniform(self, low: float, high: float) -> np.ndarray:
        """One uniform number an image."""
        return self.generator.uniform(low, high, (self.count, 1, 1)).astype(np.float32)

    def normal(self, mean: float, deviation: float) -> np.ndarray:
        """One normal number an image, cut at two standard deviations."""
        drawn = self.generator.standard_normal((self.count, 1, 1)).clip(-2, 2)
        return (mean + deviation * drawn).astype(np.float32)

    def side_of_body(self) -> np.ndarray:
        """-1 or 1 an image, with equal chance."""
        return self.generator.choice(np.array([-1, 1], np.float32), (self.count, 1, 1))

    def smooth_field(self, cells: int) -> np.ndarray:
        """Random texture of about unit variance that varies over ``side / cells`` pixels."""
        knots = self.generator.standard_normal((self.count, cells + 1, cells + 1), dtype=np.float32)
        place = np.linspace(0, cells, self.side, dtype=np.float32)
        weights = (1 - np.abs(place[:, None] - np.arange(cells + 1, dtype=np.float32))).clip(0, None)
        return 1.5 * (weights @ knots @ weights.T)


Draw = Callable[[np.ndarray, Sheet], np.ndarray]


def draw_in_chunks(draw: Draw, labels: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """``uint8 [n, size, size, channels]`` from ``draw(labels, sheet)``, float 0..1 at the larger side."""
    side = size * OVERSAMPLING
    pieces = [labels[start : start + CHUNK] for start in range(0, len(labels), CHUNK)]
    drawn = (draw(piece, Sheet(len(piece), side, generator)) for piece in pieces)
    return np.concatenate([_average_down(each, size) for each in drawn])


def _average_down(drawn: np.ndarray, size: int) -> np.ndarray:
    count, channels = len(drawn), drawn.shape[-1]
    blocks = drawn.reshape(count, size, OVERSAMPLING, size, OVERSAMPLING, channels)
    return (blocks.mean(axis=(2, 4)).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def rotate(x: np.ndarray, y: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates seen from a frame turned by ``angle`` (radians)."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return cosine * x + sine * y, cosine * y - sine * x


def inside(distance: np.ndarray, softness: float | np.ndarray) -> np.ndarray:
    """1 where ``distance`` is well above 0, 0 where well below, smooth over about ``softness``."""
    ramp = distance / softness
    ramp += 0.5
    np.clip(ramp, 0, 1, out=ramp)
    return ramp * ramp * (3 - 2 * ramp)


def bell(squared_radius: np.ndarray) -> np.ndarray:
    """A bump of height 1 that is .37 at radius 1."""
    return np.exp(-squared_radius)


@dataclass(frozen=True)
class Spots:
    """Small bells, all fields ``[spots]``: on image ``owner``, at ``x, y`` in -1..1, ``radius`` on the same scale."""

    owner: np.ndarray
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    height: np.ndarray


def splat(spots: Spots, count: int, side: int) -> np.ndarray:
    """The sum of the spots, each drawn only on the pixels around it: thousands cost less than one full map."""
    width = np.maximum(spots.radius * side / 2, 0.5)[:, None]
    reach = int(np.ceil(2.2 * width.max(initial=0.5)))
    around, padded = np.arange(-reach, reach + 1), side + 2 * reach
    columns, across = _near(spots.x, side, around, width)
    rows, down = _near(spots.y, side, around, width)
    patches = down[:, :, None] * across[:, None, :] * spots.height[:, None, None]
    index = (spots.owner[:, None, None] * padded + rows[:, :, None] + reach) * padded + columns[:, None, :] + reach
    total = np.bincount(index.ravel(), weights=patches.ravel(), minlength=count * padded * padded)
    return total.reshape(count, padded, padded)[:, reach:-reach, reach:-reach].astype(np.float32)


def _near(place: np.ndarray, side: int, around: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels around every place on one axis, and the bell there: both ``[spots, len(around)]``."""
    exact = ((place + 1) / 2 * side - 0.5).clip(0, side - 1)[:, None]
    pixels = np.rint(exact).astype(np.int64) + around
    return pixels, bell(((pixels - exact) / width) ** 2)
