"""The last layer for each task, and initial values drawn from a seed alone."""

import math

import torch
from torch import nn

from medx.dataset import InputSpec
from medx.model.objectives import objective_for
from medx.randomness import torch_generator


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
