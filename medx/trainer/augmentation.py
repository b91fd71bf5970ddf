"""Random views of each record, whose mean loss has the gradient that is clipped: K views cost the budget of one."""

from dataclasses import dataclass
from typing import Literal

import torch

from medx.model.warping import AffineRange, affine_matrices, warp

AugmentationName = Literal["none", "shift", "affine"]

SHIFT = 2 / 28  # of the image's side, either way
AFFINE = AffineRange(degrees=8, magnification=0.06, shift=2 * SHIFT)  # of half the image: the same two pixels of 28


@dataclass(frozen=True)
class RandomViews:
    """Augmentation multiplicity (De et al. 2022): ``multiplicity`` random views of a record in every step.

    A view depends on ``generator`` alone, never on a record; no view is mirrored, as a chest has a heart side.
    ``shift`` moves by whole pixels, up to 2 of 28; ``affine`` also turns (8 degrees) and magnifies (6 %).
    """

    kind: Literal["shift", "affine"]
    multiplicity: int
    generator: torch.Generator

    def draw(self, count: int) -> torch.Tensor:
        """What makes the views of ``count`` records: uniform in -1..1, ``[count, multiplicity, 4]``."""
        shape = (count, self.multiplicity, 4)
        return torch.rand(shape, generator=self.generator, device=self.generator.device).mul_(2).sub_(1)

    def apply(self, images: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """``[n, multiplicity, c, h, w]`` from ``[n, c, h, w]`` and ``draw``; ``[n, c, h, w]`` for one view."""
        drawn = drawn.to(images.device)
        if self.kind == "shift":
            views = shifted(images, drawn[..., 2:])
        else:
            repeated = images.repeat_interleave(self.multiplicity, 0)
            views = warp(repeated, affine_matrices(drawn.flatten(0, 1), AFFINE))
            views = views.view(len(images), self.multiplicity, *images.shape[1:])
        return views[:, 0] if self.multiplicity == 1 else views


def shifted(images: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """``[n, views, c, h, w]``: whole-pixel shifts right and down from ``uniforms [n, views, 2]``, borders reflected."""
    height, width = images.shape[2:]
    columns, rows = (
        _reflected(_pixels(part, size), size) for part, size in zip(uniforms.unbind(-1), (width, height), strict=True)
    )
    index = torch.arange(len(images), device=images.device)[:, None, None, None]
    views = images.permute(0, 2, 3, 1)[index, rows[:, :, :, None], columns[:, :, None, :]]
    return views.movedim(-1, 2).contiguous()


def _pixels(uniforms: torch.Tensor, size: int) -> torch.Tensor:
    """Every whole number of pixels up to the largest shift, either way, with equal chance."""
    largest = round(SHIFT * size)
    return ((uniforms + 1) / 2 * (2 * largest + 1)).floor().clamp(max=2 * largest).long() - largest


def _reflected(shift: torch.Tensor, size: int) -> torch.Tensor:
    """``[n, views, size]``: from which pixel each comes, the border pixel not doubled."""
    place = (torch.arange(size, device=shift.device) - shift[..., None]).abs()
    return torch.where(place >= size, 2 * (size - 1) - place, place)
