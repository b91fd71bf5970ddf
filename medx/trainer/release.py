"""The released step: clipped sums on a public grid, and exact discrete Gaussian noise on them.

Noise that is drawn in floating point is recognisable: it lies on a lattice of its own, and who knows the other records
sees whether what is left of a release lies on it (Mironov 2012; Holohan and Braghin 2021). Integers under integer noise
have no such lattice: every integer is possible whatever the records, with the probabilities that are accounted.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from opacus.optimizers import DPOptimizer

from medx.aggregation.integer_noise import MAX_STDDEV, NoiseStream, client_noise_stddev, discrete_gaussian
from medx.privacy.base import SampledGaussian
from medx.schema import PrivacyError
from medx.trainer.gradients.record_loss import float32_slack

Pair = tuple[torch.nn.Parameter, torch.Tensor]
FEW, PIECE = 1 << 13, 1 << 17  # draws at once: fewer cost as much, more leave the cache
EXACT = 2**52  # integers up to here are exact in float64, and so are sums of two


@dataclass(frozen=True)
class ReleaseGrid:
    """Multiples of ``1 / scale``, and the noise on them: ``stddev`` grid units, 0 for none."""

    scale: float
    stddev: int


def release_grid(step: SampledGaussian, dimension: int, num_records: int) -> ReleaseGrid:
    """The finest grid of a power of two on which the noise is at most 2^28 and a sum of ``num_records`` is exact.

    On it the sensitivity of the sum is ``scale * clip_norm``, larger by ``float32_slack``, plus a unit of rounding in
    every coordinate, ``sqrt(dimension)``; the noise is that times the accounted multiplier. With more than 2^27 units
    of noise epsilon exceeds the continuous Gaussian's by less than ``releases * dimension * 2^-55``
    (``accounting_gap``).
    """
    clip_norm = step.clip_norm * (1 + float32_slack(num_records))
    if step.noise_multiplier == 0:
        return ReleaseGrid(1.0, 0)
    rounding = step.noise_multiplier * math.sqrt(dimension)
    if rounding >= MAX_STDDEV:
        raise PrivacyError(
            f"noise_multiplier={step.noise_multiplier:g} on {dimension} parameters: the rounding alone takes noise of "
            f"{rounding:.4g} grid units; accepted is less than 2^28"
        )
    scale = 2.0 ** math.floor(math.log2(MAX_STDDEV / (step.noise_multiplier * clip_norm)))
    while max(num_records, 1) * clip_norm * scale > EXACT or _stddev(step, clip_norm, scale, dimension) > MAX_STDDEV:
        scale /= 2
    return ReleaseGrid(scale, _stddev(step, clip_norm, scale, dimension))


def _stddev(step: SampledGaussian, clip_norm: float, scale: float, dimension: int) -> int:
    return client_noise_stddev(step.noise_multiplier, clip_norm, scale, dimension, 1)


class GaussianRelease(DPOptimizer):
    """Opacus's DP optimizer for sums that are clipped already: it noises and divides, and clips nothing.

    Noise and clip norm come from ``step``, the object that is accounted (Abadi et al. 2016, algorithm 1), in place of
    Opacus's floating-point noise that of ``release_grid``. ``expected_batch_size`` is public and does not follow the
    drawn batch; ``num_records``, of which a batch is drawn, is public too.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        step: SampledGaussian,
        expected_batch_size: float,
        num_records: int,
        stream: NoiseStream,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=step.noise_multiplier,
            max_grad_norm=step.clip_norm,
            expected_batch_size=expected_batch_size,
        )
        self.grid = release_grid(step, sum(parameter.numel() for parameter in self.params), num_records)
        self._stream = stream
        self._drawn = np.empty(0, np.int64)

    @property
    def accumulated_iterations(self) -> int:
        """Always one: a logical batch arrives as one sum, however many micro-batches it was cut into."""
        return 1

    def release(self, sums: list[torch.Tensor]) -> None:
        """Set every ``p.grad`` to (sum + noise) / expected batch size, in the order of the optimizer's parameters."""
        if self.grid.stddev == 0:
            for parameter, total in zip(self.params, sums, strict=True):
                parameter.grad = (total / self.expected_batch_size).to(parameter.dtype)
            return
        for group in _groups(list(zip(self.params, sums, strict=True))):
            joined = torch.cat([total.detach().reshape(-1) for _, total in group]).cpu().numpy()
            noised = torch.from_numpy(self._noised(joined)).split([total.numel() for _, total in group])
            for (parameter, total), gradient in zip(group, noised, strict=True):
                parameter.grad = gradient.view(total.shape).to(parameter)

    def _noised(self, total: np.ndarray) -> np.ndarray:
        """``float32 [n]``: the noised integers in units of a gradient. What is rounded here is released already."""
        noised = np.empty(total.size, np.float32)
        unit = 1 / (self.grid.scale * self.expected_batch_size)
        for start in range(0, total.size, PIECE):
            piece = np.multiply(total[start : start + PIECE], self.grid.scale, dtype=np.float64)
            np.rint(piece, out=piece)
            noise = self._draw(piece.size)
            piece += noise
            if start == 0:
                self._stream.tell(noise, self.grid.stddev)
            np.multiply(piece, unit, out=noised[start : start + PIECE], casting="same_kind")
        return noised

    def _draw(self, count: int) -> np.ndarray:
        """``int64 [count]`` of the noise; drawn for several small parameters, or steps, at once."""
        if self._drawn.size < count:
            more = discrete_gaussian(self._stream, self.grid.stddev, max(count - self._drawn.size, FEW))
            self._drawn = np.concatenate([self._drawn, more]) if self._drawn.size else more
        drawn, self._drawn = self._drawn[:count], self._drawn[count:]
        return drawn


def _groups(pairs: list[Pair]) -> Iterator[list[Pair]]:
    """Parameters and their sums in groups of ``PIECE`` numbers or one parameter: small ones cost less together."""
    group: list[Pair] = []
    for pair in pairs:
        if group and sum(total.numel() for _, total in group) + pair[1].numel() > PIECE:
            yield group
            group = []
        group.append(pair)
    if group:
        yield group
