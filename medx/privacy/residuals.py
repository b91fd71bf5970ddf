"""What is left of releases when all that is known is taken away: the noise, and whether it is what was planned.

A shift tells nothing of noise that two hospitals share, or two rounds: who has both takes it off. So its size is
compared with the plan's, and what is left of rounds and of hospitals with one another.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

DOUBTFUL = 4.5  # standard deviations
TOLERANCE = 0.01  # of the size: roundings, and allowances for them in the noise


@dataclass(frozen=True)
class NoiseFound:
    """The size of the noise over the planned one, with its standard error; correlations in standard deviations.

    A correlation is None where there is nothing to compare. ``sampled`` tells that records come and go between the
    releases, which adds to the size.
    """

    size: float
    error: float
    rounds: float | None
    hospitals: float | None
    sampled: bool

    @property
    def doubts(self) -> list[str]:
        """What does not agree with the plan, in words."""
        allowed = TOLERANCE + DOUBTFUL * self.error
        found = [f"less noise than planned: {self.size:.3f} of it"] if self.size < 1 - allowed else []
        if self.size > 1 + allowed and not self.sampled:
            found.append(f"noise that does not add up as planned: {self.size:.3f} of it")
        for what, correlation in (("rounds", self.rounds), ("hospitals", self.hospitals)):
            if correlation is not None and abs(correlation) > DOUBTFUL:
                found.append(f"noise of {what} is correlated, by {correlation:.0f} standard deviations")
        return found


@dataclass
class Residuals:
    """Adds up what is left of releases beside the span of ``known``, orthonormal rows ``[k, dimension]``.

    Nothing is kept but sums: a run of many rounds takes no more memory than one of few. In which order hospitals come
    moves no digit.
    """

    known: np.ndarray
    planned: float  # standard deviation on a coordinate of one release
    sampled: bool
    _squares: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    _sums: dict[int, np.ndarray] = field(default_factory=dict)
    _counts: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    _round: tuple[int, list[tuple[int, np.ndarray]]] = field(default=(0, []))
    _between: list[float] = field(default_factory=list)

    def add(self, number: int, hospital: int, release: np.ndarray) -> None:
        """One release ``[dimension]`` of round ``number``; rounds come in order."""
        rest = release - (release @ self.known.T) @ self.known
        self._squares[hospital] += float(rest @ rest)
        self._counts[hospital] += 1
        self._sums[hospital] = self._sums[hospital] + rest if hospital in self._sums else rest
        if number != self._round[0]:
            self._close()
            self._round = (number, [])
        unit = rest / max(float(np.linalg.norm(rest)), np.finfo(np.float64).tiny)
        self._round[1].append((hospital, unit))

    def found(self) -> NoiseFound:
        """What the noise is like."""
        self._close()
        self._round = (0, [])
        releases = sum(self._counts.values())
        squares = sum(self._squares[hospital] for hospital in sorted(self._squares))
        size = math.sqrt(squares / (releases * self._free)) / self.planned
        rounds = [self._over_rounds(hospital) for hospital in sorted(self._counts) if self._counts[hospital] > 1]
        return NoiseFound(size, size / math.sqrt(2 * releases * self._free), _joined(rounds), _joined(self._between),
                          self.sampled)  # fmt: skip

    @property
    def _free(self) -> int:
        rows, dimension = self.known.shape
        return max(1, dimension - rows)

    def _over_rounds(self, hospital: int) -> float:
        """The sum over all pairs of rounds of what they have in common, in standard deviations."""
        count, squares, total = self._counts[hospital], self._squares[hospital], self._sums[hospital]
        pairs = (float(total @ total) - squares) / 2
        return pairs / (squares / count) * math.sqrt(self._free) / math.sqrt(count * (count - 1) / 2)

    def _close(self) -> None:
        """The same of all pairs of hospitals in the round that is over; their rests are one long."""
        rests = [rest for _, rest in sorted(self._round[1], key=lambda each: each[0])]
        if len(rests) > 1:
            total = np.sum(rests, axis=0)
            pairs = (float(total @ total) - len(rests)) / 2
            self._between.append(pairs * math.sqrt(self._free) / math.sqrt(len(rests) * (len(rests) - 1) / 2))


def _joined(scores: list[float]) -> float | None:
    """Independent scores of standard deviation 1 as one; None of none."""
    return sum(scores) / math.sqrt(len(scores)) if scores else None
