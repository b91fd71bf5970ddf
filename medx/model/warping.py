"""Small random affine changes of images: turned, magnified, shifted; borders reflected."""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class AffineRange:
    """The largest turn in degrees, magnification and shift; the last as a fraction of half the image."""

    degrees: float
    magnification: float
    shift: float


def affine_matrices(uniforms: torch.Tensor, largest: AffineRange) -> torch.Tensor:
    """``[n, 2, 3]`` from numbers in -1..1, ``[n, 4]``: turn, magnification, shift right and down."""
    turn, magnify, right, down = uniforms.unbind(1)
    angle, scale = math.radians(largest.degrees) * turn, 1 + largest.magnification * magnify
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    rows = (cosine, -sine, largest.shift * right, sine, cosine, largest.shift * down)
    return torch.stack(rows, 1).view(-1, 2, 3)


def warp(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Images ``[n, channels, height, width]`` seen through ``matrices [n, 2, 3]``, bilinear, borders reflected."""
    grid = functional.affine_grid(matrices.to(images), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
