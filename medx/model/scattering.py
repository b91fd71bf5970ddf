"""Log-scattering features: Morlet scattering, normalised, projected on a public basis, averaged over views."""

import hashlib
import math
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn
from torch.nn import functional

from medx.model import FixedFeatures, projection, warping
from medx.model.projection import ProjectedFeatures
from medx.model.storage import Tensors, source_digest, tensors_digest
from medx.model.warping import warp
from medx.schema import ConfigError

# Rotation in degrees, magnification, and shift right and down as a fraction of half the image.
VIEWS = ((0, 1, 0, 0), (6, 1.05, 0.04, 0.04), (-6, 0.95, -0.04, 0.04), (6, 0.95, -0.04, -0.04), (-6, 1.05, 0.04, -0.04))

OPPONENT_COLOURS = (
    (1 / math.sqrt(3), 1 / math.sqrt(3), 1 / math.sqrt(3)),
    (1 / math.sqrt(2), -1 / math.sqrt(2), 0),
    (1 / math.sqrt(6), 1 / math.sqrt(6), -2 / math.sqrt(6)),
)

SMALLEST_NORM = 1e-6
PERIODS = 2  # of the frequency plane, or copies of the image, on each side of the origin: beyond, all is zero

CODE = source_digest(__file__, *(str(part.__file__) for part in (projection, warping)))


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


@dataclass(frozen=True)
class ScatterSettings:
    """Everything that a ScatterFeatures is made of, besides the tensors of its basis (no basis: 0 components)."""

    image_size: int
    num_channels: int
    num_scales: int
    num_angles: int
    num_views: int
    log_offset: float
    num_components: int
    colour_cells: int
    colour_weight: float
    bias: float

    @property
    def num_coefficients(self) -> int:
        """Scattering coefficients of one image."""
        scales, angles = self.num_scales, self.num_angles
        paths = 1 + scales * angles + scales * (scales - 1) // 2 * angles**2
        return self.num_channels * paths * math.ceil(self.image_size / 2**scales) ** 2

    @property
    def num_colours(self) -> int:
        """Pooled colour values of one image; none for grey images."""
        return 0 if self.num_channels == 1 else self.num_channels * self.colour_cells**2

    @property
    def num_features(self) -> int:
        """Length of a feature vector, its constant included."""
        return (self.num_components or self.num_coefficients) + self.num_colours + 1


class ScatterCoefficients(FixedFeatures):
    """Images ``[n, channels, size, size]`` to ``[n, num_coefficients]`` normalised log-scattering, the mean over views.

    Scattering (Bruna and Mallat 2013) of the standardised image, of opponent colours where there are three; its
    logarithm, normalised per image and order; the mean over small affine views.
    """

    def __init__(self, settings: ScatterSettings) -> None:
        super().__init__()
        # What comes after the coefficients is no part of them: every choice of it shares one basis.
        self.settings = replace(settings, num_components=0, colour_cells=0, colour_weight=0, bias=0)
        self.scattering = Scattering(settings.image_size, settings.num_scales, settings.num_angles)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over settings and this code."""
        return hashlib.sha256(f"{CODE} {asdict(self.settings)}".encode()).hexdigest()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``[n, channels, size, size]`` to ``[n, num_coefficients]``."""
        images = self._standardise(images)
        total = self._scatter(images)
        for view in VIEWS[1 : self.settings.num_views]:
            total += self._scatter(_affine(images, view))
        return total / self.settings.num_views

    def _standardise(self, images: torch.Tensor) -> torch.Tensor:
        centred = images - images.mean((1, 2, 3), keepdim=True)
        centred = centred / centred.std((1, 2, 3), keepdim=True).clamp(min=SMALLEST_NORM)
        if images.shape[1] != len(OPPONENT_COLOURS):
            return centred
        return torch.einsum("oc,nchw->nohw", centred.new_tensor(OPPONENT_COLOURS), centred)

    def _scatter(self, images: torch.Tensor) -> torch.Tensor:
        orders = self.scattering(images).split(self.scattering.orders, 2)
        logs = [orders[0], *(torch.log(order + self.settings.log_offset) for order in orders[1:])]
        normalised = [functional.layer_norm(order, order.shape[1:]) for order in logs]
        return torch.cat([order.flatten(1) for order in normalised], 1)


class ScatterFeatures(ProjectedFeatures):
    """Images ``[n, channels, size, size]`` to features ``[n, num_features]`` of l2 norm ``sqrt(1 + bias**2)``.

    Scattering coefficients projected on ``basis`` and partly whitened; pooled colours appended; scaled to norm one; a
    constant ``bias`` appended.
    """

    def __init__(self, settings: ScatterSettings) -> None:
        coefficients = ScatterCoefficients(settings)
        super().__init__(coefficients, settings.num_coefficients, settings.num_components, settings.bias)
        self.settings = settings

    @property
    def fingerprint(self) -> str:
        """SHA-256 over settings, this code and the basis."""
        tensors: Tensors = self.state_dict()
        return hashlib.sha256(f"{CODE} {asdict(self.settings)} {tensors_digest(tensors)}".encode()).hexdigest()

    @property
    def parts(self) -> tuple[FixedFeatures, ...]:
        """None: colours are the image's, and all coefficients of all images would fill a disk."""
        return ()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``[n, channels, size, size]`` to ``[n, num_features]``."""
        settings = self.settings
        features = self.projected(self.raw(images))
        if settings.num_colours:
            colours = functional.adaptive_avg_pool2d(images, settings.colour_cells).flatten(1)
            features = functional.normalize(torch.cat((features, settings.colour_weight * colours), 1))
        return functional.pad(features, (0, 1), value=settings.bias)


def _affine(images: torch.Tensor, view: tuple[float, float, float, float]) -> torch.Tensor:
    """The images turned, magnified and shifted, bilinear, borders reflected."""
    degrees, magnification, right, down = view
    cosine = math.cos(math.radians(degrees)) / magnification
    sine = math.sin(math.radians(degrees)) / magnification
    matrix = images.new_tensor([[cosine, -sine, right], [sine, cosine, down]]).expand(len(images), 2, 3)
    return warp(images, matrix)
