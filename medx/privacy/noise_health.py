"""The noise of a run as it was added: its size, its tail, and what coordinates, rounds and hospitals have in common.

A simulation sees it, and so does a hospital its own. Nothing but counts and sums is kept, and nothing of it leaves: who
knows the noise takes it off.
"""

import math
import threading
from dataclasses import dataclass
from functools import partial

import numpy as np

from medx.privacy.residuals import DOUBTFUL, Residuals
from medx.results import NoiseMeasured

LOOKED_AT = 1 << 14  # coordinates of a release, from the first one on
COMPARED = 256  # of those with other releases
FAR = 3.0  # standard deviations
BEYOND = math.erfc(FAR / math.sqrt(2))  # the share of a Gaussian beyond it
FEW = 1000  # values, below which no share of a tail is told


@dataclass(frozen=True)
class Heard:
    """Sums over the noise of one hospital, in planned standard deviations."""

    values: int = 0
    pairs: int = 0
    far: int = 0
    squares: float = 0.0
    neighbours: float = 0.0

    def with_more(self, unit: np.ndarray) -> "Heard":
        """The same with these values ``[n]``."""
        return Heard(
            self.values + unit.size,
            self.pairs + max(0, unit.size - 1),
            self.far + int((np.abs(unit) > FAR).sum()),
            self.squares + float(unit @ unit),
            self.neighbours + float(unit[:-1] @ unit[1:]),
        )


class NoiseHealth:
    """Adds up what noise is like, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heard: dict[int, Heard] = {}  # by hospital, as threads come in any order and sums must not
        self._compared: Residuals | None = None

    def of(self, number: int, hospital: int) -> "partial[None]":
        """What a stream of this hospital's noise in round ``number`` tells what was drawn from it and added."""
        return partial(self.hear, number, hospital)

    def hear(self, number: int, hospital: int, noise: np.ndarray, stddev: float) -> None:
        """Noise ``[n]`` as it was added, which was to have this standard deviation."""
        unit = noise[:LOOKED_AT] / stddev
        with self._lock:
            self._heard[hospital] = self._heard.get(hospital, Heard()).with_more(unit)
            if self._compared is None:
                self._compared = Residuals(np.zeros((0, min(COMPARED, unit.size))), 1.0, False)
            width = self._compared.known.shape[1]
            if unit.size >= width:
                self._compared.add(number, hospital, unit[:width])

    def found(self) -> NoiseMeasured | None:
        """What it was like; None where none was heard, as where hospitals are processes of their own."""
        with self._lock:
            if self._compared is None:
                return None
            compared = self._compared.found()
            parts = [self._heard[hospital] for hospital in sorted(self._heard)]
        values, pairs, far = (sum(getattr(part, name) for part in parts) for name in ("values", "pairs", "far"))
        if not values:
            return None
        size = math.sqrt(sum(part.squares for part in parts) / values)
        expected = values * BEYOND
        tail = (far - expected) / math.sqrt(expected) if values >= FEW else None
        neighbours = sum(part.neighbours for part in parts) / math.sqrt(pairs) if pairs else None
        error = 1 / math.sqrt(2 * values)
        doubts = [] if abs(size - 1) < DOUBTFUL * error else [f"its size is {size:.4f} of the planned"]
        told = {"tail": tail, "coordinates": neighbours, "rounds": compared.rounds, "hospitals": compared.hospitals}
        doubts += [
            f"{what}: {value:.0f} standard deviations from chance"
            for what, value in told.items()
            if value is not None and abs(value) > DOUBTFUL
        ]
        return NoiseMeasured(values=values, size=size, **told, doubts=doubts)
