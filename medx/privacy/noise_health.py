"""The noise of a run as it was added: its size, its tail, and what coordinates, rounds and hospitals have in common.

A simulation sees it, and so does a hospital its own. Nothing but counts and sums is kept, and nothing of it leaves: who
knows the noise takes it off.
"""

import math
import threading
from functools import partial

import numpy as np

from medx.privacy.residuals import DOUBTFUL, Residuals
from medx.results import NoiseMeasured

LOOKED_AT = 1 << 14  # coordinates of a release, from the first one on
COMPARED = 256  # of those with other releases
FAR = 3.0  # standard deviations
BEYOND = math.erfc(FAR / math.sqrt(2))  # the share of a Gaussian beyond it
FEW = 1000  # values, below which no share of a tail is told


class NoiseHealth:
    """Adds up what noise is like, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values = self._far = 0
        self._squares = self._neighbours = 0.0
        self._pairs = 0
        self._compared: Residuals | None = None

    def of(self, number: int, hospital: int) -> "partial[None]":
        """What a stream of this hospital's noise in round ``number`` tells what was drawn from it and added."""
        return partial(self.hear, number, hospital)

    def hear(self, number: int, hospital: int, noise: np.ndarray, stddev: float) -> None:
        """Noise ``[n]`` as it was added, which was to have this standard deviation."""
        unit = noise[:LOOKED_AT] / stddev
        with self._lock:
            self._values += unit.size
            self._squares += float(unit @ unit)
            self._far += int((np.abs(unit) > FAR).sum())
            self._pairs += max(0, unit.size - 1)
            self._neighbours += float(unit[:-1] @ unit[1:])
            if self._compared is None:
                self._compared = Residuals(np.zeros((0, min(COMPARED, unit.size))), 1.0, False)
            width = self._compared.known.shape[1]
            if unit.size >= width:
                self._compared.add(number, hospital, unit[:width])

    def found(self) -> NoiseMeasured | None:
        """What it was like; None where none was heard, as where hospitals are processes of their own."""
        with self._lock:
            if not self._values or self._compared is None:
                return None
            compared = self._compared.found()
            size = math.sqrt(self._squares / self._values)
            expected = self._values * BEYOND
            tail = (self._far - expected) / math.sqrt(expected) if self._values >= FEW else None
            neighbours = self._neighbours / math.sqrt(self._pairs) if self._pairs else None
        error = 1 / math.sqrt(2 * self._values)
        doubts = [] if abs(size - 1) < DOUBTFUL * error else [f"its size is {size:.4f} of the planned"]
        told = {"tail": tail, "coordinates": neighbours, "rounds": compared.rounds, "hospitals": compared.hospitals}
        doubts += [
            f"{what}: {value:.0f} standard deviations from chance"
            for what, value in told.items()
            if value is not None and abs(value) > DOUBTFUL
        ]
        return NoiseMeasured(values=self._values, size=size, **told, doubts=doubts)
