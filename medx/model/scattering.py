"""Fixed two-dimensional Morlet wavelet scattering of order two (Bruna and Mallat 2013, section 2)."""

import math

import torch
from torch import nn
from torch.nn import functional

from medx.schema import ConfigError

PERIODS = 2  # of the frequency plane, or copies of the image, on each side of the origin: beyond, all is zero


def _gabor(size: int, scale: int, angle: float, frequency: float, slant: float) -> torch.Tensor:
    """``float64 [size, size]``: the Fourier transform of a sampled, periodic Gabor wave of unit envelope mass."""
    sigma = 0.8 * 2**scale
    span = torch.arange(-PERIODS * size, PERIODS * size, dtype=torch.float64) * (2 * math.pi / size)
    rows, columns = span[:, None], span[None, :]
    along = rows * math.cos(angle) + columns * math.sin(angle) - frequency
    across = (columns * math.cos(angle) - rows * math.sin(angle)) / slant
    aliases = torch.exp(-(sigma**2) / 2 * (along**2 + across**2))
    return aliases.view(2 * PERIODS, size, 2 * PERIODS, size).sum((0, 2))


def morlet(size: int, scale: int, angle: float, slant: float) -> torch.Tensor:
    """``float64 [size, size]``: the Fourier transform, real, of the Morlet wavelet of ``2**scale`` pixels.

    Sigma .8, centre frequency 3 pi / 4 at scale 0, zero mean (the definitions of Andreux et al. 2020, Kymatio).
    """
    wave = _gabor(size, scale, angle, 0.75 * math.pi / 2**scale, slant)
    envelope = _gabor(size, scale, angle, 0.0, slant)
    return wave - wave[0, 0] / envelope[0, 0] * envelope


def _blocks(spectrum: torch.Tensor, rows: int, columns: int) -> list[torch.Tensor]:
    """The blocks of a spectrum that coincide once pixels are dropped, so that its period becomes one block."""
    return [block for band in spectrum.split(rows, -2) for block in band.split(columns, -1)]


def _lowpass(size: int, cells: int, num_scales: int, factor: int) -> torch.Tensor:
    """``float64 [cells, size / factor]``: one axis of the Gaussian mean around each cell inside the padding."""
    sigma, stride = 0.8 * 2 ** (num_scales - 1), 2**num_scales
    centres = torch.arange(1, cells + 1, dtype=torch.float64)[:, None] * stride
    span = torch.arange(0, size, factor, dtype=torch.float64)
    copies = torch.arange(-PERIODS, PERIODS + 1, dtype=torch.float64)[:, None, None] * size
    kernel = torch.exp(-((centres - span + copies) ** 2) / (2 * sigma**2)).sum(0)
    return kernel * factor / (sigma * math.sqrt(2 * math.pi))


class Scattering(nn.Module):
    """Scattering coefficients of square images: ``[..., size, size]`` to ``[..., paths, cells, cells]``.

    ``cells = ceil(size / 2**num_scales)``; paths are ordered by order: the mean, then ``num_scales * num_angles``
    of order one, then every pair of a finer and a coarser scale. Borders are reflected. Order two takes
    order one at its own resolution, so no coefficient is computed finer than its scale needs.
    Raises ConfigError where the image is smaller than three cells.
    """

    def __init__(self, size: int, num_scales: int, num_angles: int) -> None:
        super().__init__()
        stride = 2**num_scales
        self.cells = math.ceil(size / stride)
        if self.cells < 3:
            raise ConfigError(f"num_scales={num_scales}: needs images of more than {2 * stride} pixels, not {size}")
        self.size, self.num_scales, self.num_angles = size, num_scales, num_angles
        self.padded = (self.cells + 2) * stride
        for scale in range(num_scales):
            angles = [index * math.pi / num_angles for index in range(num_angles)]
            filters = torch.stack([morlet(self.padded, scale, angle, 4 / num_angles) for angle in angles])
            for finer in range(scale + 1):
                size_here = self.padded // 2**finer
                spectra = torch.stack(_blocks(filters, size_here, size_here)).sum(0) / 4 ** (scale - finer)
                # Real and imaginary parts lie side by side, so that one real product filters both.
                self._keep(f"wavelets_{finer}_{scale}", spectra.repeat_interleave(2, -1))
            self._keep(f"lowpass_{scale}", _lowpass(self.padded, self.cells, num_scales, 2**scale))

    def _keep(self, name: str, values: torch.Tensor) -> None:
        self.register_buffer(name, values.float(), persistent=False)

    @property
    def orders(self) -> tuple[int, int, int]:
        """Number of paths of order zero, one and two."""
        scales, angles = self.num_scales, self.num_angles
        return 1, scales * angles, scales * (scales - 1) // 2 * angles**2

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``[..., size, size]`` to ``[..., paths, cells, cells]``."""
        lead, stride = images.shape[:-2], 2**self.num_scales
        after = self.padded - self.size - stride
        padded = functional.pad(images.reshape(-1, 1, self.size, self.size), (stride, after) * 2, mode="reflect")
        first, second = [self._average(padded, 0)], []
        spectrum = torch.fft.fft2(padded)
        for scale in range(self.num_scales):
            envelope = self._modulus(spectrum, 0, scale)
            first.append(self._average(envelope, scale))
            if scale + 1 < self.num_scales:
                inner = torch.fft.fft2(envelope)
                for coarser in range(scale + 1, self.num_scales):
                    second.append(self._average(self._modulus(inner, scale, coarser), coarser))
        return torch.cat(first + second, 1).unflatten(0, lead)

    def _modulus(self, spectrum: torch.Tensor, finer: int, coarser: int) -> torch.Tensor:
        """Spectra ``[n, p, s, s]`` at ``2**finer`` pixels to moduli ``[n, p * angles, ...]`` at ``2**coarser``."""
        size = spectrum.shape[-1] // 2 ** (coarser - finer)
        pairs = torch.view_as_real(spectrum).flatten(-2).unsqueeze(2)
        wavelets = self.get_buffer(f"wavelets_{finer}_{coarser}")
        blocks = zip(_blocks(pairs, size, 2 * size), _blocks(wavelets, size, 2 * size), strict=True)
        block, wavelet = next(blocks)
        folded = block * wavelet
        for block, wavelet in blocks:
            folded.addcmul_(block, wavelet)
        waves = torch.fft.ifft2(torch.view_as_complex(folded.unflatten(-1, (-1, 2))))
        real, imaginary = torch.view_as_real(waves).unbind(-1)
        return real.square().addcmul_(imaginary, imaginary).sqrt_().flatten(1, 2)

    def _average(self, maps: torch.Tensor, scale: int) -> torch.Tensor:
        lowpass = self.get_buffer(f"lowpass_{scale}")
        return lowpass @ maps @ lowpass.T
