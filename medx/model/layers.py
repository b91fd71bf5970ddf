"""Layers of this package's own, the last one for each task among them, and initial values from a seed alone."""

import math

import torch
from torch import nn

from medx.dataset import InputSpec
from medx.model.objectives import objective_for
from medx.randomness import torch_generator

FLOOR = 1e-5  # added to a variance before its root is taken


class CutPoints(nn.Module):
    """The thresholds of proportional odds: scores ``[batch, 1]`` to cumulative logits ``[batch, cuts]``."""

    def __init__(self, num_cuts: int) -> None:
        super().__init__()
        self.cutpoints = nn.Parameter(torch.empty(num_cuts))

    def forward(self, score: torch.Tensor) -> torch.Tensor:
        """``cutpoints - score``: a high score makes low classes unlikely."""
        return self.cutpoints - score

    def space_evenly(self) -> None:
        """Set the cut points so that a score of zero gives every class the same probability."""
        count = len(self.cutpoints) + 1
        with torch.no_grad():
            self.cutpoints.copy_(torch.tensor([math.log(k / (count - k)) for k in range(1, count)]))


class LinearHead(nn.Sequential):
    """A linear map to the task's outputs; one score and its cut points where classes are ordered."""

    def __init__(self, in_features: int, spec: InputSpec, bias: bool) -> None:
        num_outputs = objective_for(spec).num_outputs
        if spec.task == "ordinal":
            super().__init__(nn.Linear(in_features, 1, bias=False), CutPoints(num_outputs))
        else:
            super().__init__(nn.Linear(in_features, num_outputs, bias=bias))

    def start_at_zero(self) -> None:
        """All weights zero: the first predictions are the same for every class."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        for module in self.modules():
            if isinstance(module, CutPoints):
                module.space_evenly()


def head_names(network: nn.Module) -> set[str]:
    """Names of the tensors of the LinearHead."""
    heads = [f"{name}." for name, module in network.named_modules() if isinstance(module, LinearHead)]
    return {name for name in network.state_dict() if name.startswith(tuple(heads))}


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


def initialise(module: nn.Module, seed: int) -> nn.Module:
    """Draw every weight from ``seed`` alone and return ``module`` on the CPU, also when built on "meta".

    Layers: Gaussian of variance 2 / fan_in (He et al. 2015); norms: one and zero; biases and heads: zero.
    Raises TypeError for a layer it has no rule for.
    """
    if any(parameter.is_meta for parameter in module.parameters()):
        # What to_empty does, without torch's symbolic shapes, which take it a quarter of a second to import.
        empty = {name: torch.empty(t.shape, dtype=t.dtype, device="cpu") for name, t in module.state_dict().items()}
        module.load_state_dict(empty, assign=True)
    generator = torch_generator(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.GroupNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif not isinstance(layer, CutPoints) and next(layer.parameters(recurse=False), None) is not None:
            raise TypeError(f"no initial values known for {type(layer).__name__}")
    for layer in module.modules():
        if isinstance(layer, LinearHead):
            layer.start_at_zero()
    return module
