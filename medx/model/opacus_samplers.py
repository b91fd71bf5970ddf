"""Per-sample gradients of this package's own layers for Opacus. Import it only where Opacus is used."""

import torch
from opacus.grad_sample import register_grad_sampler
from torch import nn

from medx.model.heads import CutPoints


@register_grad_sampler(CutPoints)
def cut_points_grad_sample(
    layer: CutPoints, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[nn.Parameter, torch.Tensor]:
    """``[batch, cuts]``: the cut points are added to every output, so each record's gradient is its own."""
    return {layer.cutpoints: backprops} if layer.cutpoints.requires_grad else {}
