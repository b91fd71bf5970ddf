"""Per-sample gradients of this package's own layers for Opacus. Import it only where Opacus is used."""

import copy

import torch
from opacus.grad_sample import register_grad_sampler
from opacus.grad_sample.conv import compute_conv_grad_sample
from torch import nn

from medx.model.layers import CutPoints, StandardisedConv2d, raw_weight_gradient


@register_grad_sampler(CutPoints)
def cut_points_grad_sample(
    layer: CutPoints, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[nn.Parameter, torch.Tensor]:
    """``[batch, cuts]``: the cut points are added to every output, so each record's gradient is its own."""
    return {layer.cutpoints: backprops} if layer.cutpoints.requires_grad else {}


@register_grad_sampler(StandardisedConv2d)
def standardised_conv_grad_sample(
    layer: StandardisedConv2d, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[torch.Tensor, torch.Tensor]:
    """``[batch, *weight.shape]`` for the raw weight: the standardisation depends on it alone, not on a record."""
    plain: nn.Conv2d = copy.copy(layer)  # the same parameters under the exact type that Opacus's rule asks for
    plain.__class__ = nn.Conv2d
    samples: dict[torch.Tensor, torch.Tensor] = compute_conv_grad_sample(plain, activations, backprops)
    if layer.weight.requires_grad:
        samples[layer.weight] = raw_weight_gradient(layer.weight.detach(), samples[layer.weight])
    return samples
