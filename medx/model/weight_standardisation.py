"""Convolutions whose weights are standardised before use."""

import torch
from torch import nn

FLOOR = 1e-5  # added to a variance before its root is taken


class StandardisedConv2d(nn.Conv2d):
    """``nn.Conv2d`` with weight standardisation (Qiao et al. 2019, equation 5); beside GroupNorm it couples no records.

    The trained parameter is the raw weight, and state-dict keys are those of ``nn.Conv2d``.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``[n, c, h, w]`` to ``[n, out_channels, ...]``."""
        return self._conv_forward(input, standardised(self.weight)[0], self.bias)


def standardised(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``weight [out, ...]`` at mean 0 and variance 1 over each filter, and the deviations ``[out, 1, 1, 1]``."""
    centred = weight - weight.mean((1, 2, 3), keepdim=True)
    deviation = (centred.square().mean((1, 2, 3), keepdim=True) + FLOOR).sqrt()
    return centred / deviation, deviation


def raw_weight_gradient(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Gradients for the raw ``weight [out, in, h, w]`` from those for the standardised one, ``[..., out, in, h, w]``.

    The transposed Jacobian: less its mean and its part along the standardised weight, over the deviation.
    """
    direction, deviation = standardised(weight)
    axes = (-3, -2, -1)
    along = (gradient * direction).mean(axes, keepdim=True)
    return (gradient - gradient.mean(axes, keepdim=True) - direction * along) / deviation


def standardise_convolutions(network: nn.Module) -> None:
    """Make every ``nn.Conv2d`` of the network a StandardisedConv2d, in place: only its forward pass differs."""
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = StandardisedConv2d
