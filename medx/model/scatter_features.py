"""Log-scattering features: normalised, projected on a public basis, averaged over views."""

import hashlib
import math
from dataclasses import asdict, dataclass

import torch
from torch.nn import functional

from medx.model import scattering
from medx.model.base import FixedFeatures
from medx.model.scattering import Scattering
from medx.model.storage import Tensors, source_digest, tensors_digest

# Rotation in degrees, magnification, and shift right and down as a fraction of half the image.
VIEWS = ((0, 1, 0, 0), (6, 1.05, 0.04, 0.04), (-6, 0.95, -0.04, 0.04), (6, 0.95, -0.04, -0.04), (-6, 1.05, 0.04, -0.04))

OPPONENT_COLOURS = (
    (1 / math.sqrt(3), 1 / math.sqrt(3), 1 / math.sqrt(3)),
    (1 / math.sqrt(2), -1 / math.sqrt(2), 0),
    (1 / math.sqrt(6), 1 / math.sqrt(6), -2 / math.sqrt(6)),
)

SMALLEST_NORM = 1e-6

CODE = source_digest(__file__, scattering.__file__)


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


class ScatterFeatures(FixedFeatures):
    """Images ``[n, channels, size, size]`` to features ``[n, num_features]`` of l2 norm ``sqrt(1 + bias**2)``.

    Scattering (Bruna and Mallat 2013) of the standardised image, of opponent colours where there are three;
    its logarithm, normalised per image and order; the mean over small affine views; projected on ``basis``
    and partly whitened; pooled colours appended; scaled to norm one; a constant ``bias`` appended.
    The tensors of the basis are buffers: a saved state needs nothing else. They are unset until loaded.
    """

    centre: torch.Tensor
    basis: torch.Tensor
    scales: torch.Tensor

    def __init__(self, settings: ScatterSettings) -> None:
        super().__init__()
        self.settings = settings
        self.scattering = Scattering(settings.image_size, settings.num_scales, settings.num_angles)
        coefficients, components = settings.num_coefficients, settings.num_components
        if components:
            self.register_buffer("centre", torch.zeros(coefficients))
            self.register_buffer("basis", torch.zeros(coefficients, components, dtype=torch.float16))
            self.register_buffer("scales", torch.zeros(components))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over settings, this code and the basis."""
        tensors: Tensors = self.state_dict()
        return hashlib.sha256(f"{CODE} {asdict(self.settings)} {tensors_digest(tensors)}".encode()).hexdigest()

    def coefficients(self, images: torch.Tensor) -> torch.Tensor:
        """``[n, num_coefficients]`` normalised log-scattering, the mean over the views."""
        images = self._standardise(images)
        total = self._scatter(images)
        for view in VIEWS[1 : self.settings.num_views]:
            total += self._scatter(_affine(images, view))
        return total / self.settings.num_views

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``[n, channels, size, size]`` to ``[n, num_features]``."""
        settings = self.settings
        features = self.coefficients(images)
        if settings.num_components:
            features = (features - self.centre) @ self.basis.float() * self.scales
        features = functional.normalize(features)
        if settings.num_colours:
            colours = functional.adaptive_avg_pool2d(images, settings.colour_cells).flatten(1)
            features = functional.normalize(torch.cat((features, settings.colour_weight * colours), 1))
        return functional.pad(features, (0, 1), value=settings.bias)

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


def _affine(images: torch.Tensor, view: tuple[float, float, float, float]) -> torch.Tensor:
    """The images turned, magnified and shifted, bilinear, borders reflected."""
    degrees, magnification, right, down = view
    cosine = math.cos(math.radians(degrees)) / magnification
    sine = math.sin(math.radians(degrees)) / magnification
    matrix = images.new_tensor([[cosine, -sine, right], [sine, cosine, down]]).expand(len(images), 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
