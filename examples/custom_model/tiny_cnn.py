"""A model of your own: a network that is trained whole."""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, MultipleOf
from torch import nn

from medx.dataset import InputSpec
from medx.model.network import WholeNetwork
from medx.schema import component


@component("model/tiny_cnn")
class TinyCnn(WholeNetwork):
    """Two convolutions and a linear layer. ``norm`` batch is there to show how it is refused."""

    width: Annotated[int, Ge(2), MultipleOf(2)]
    norm: Literal["group", "batch"]

    def build(self, spec: InputSpec, seed: int) -> nn.Module:
        """Images ``[n, channels, size, size]`` to outputs ``[n, num_outputs]``, one for two classes."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # every process builds the same weights
            norm = nn.BatchNorm2d(self.width) if self.norm == "batch" else nn.GroupNorm(2, self.width)
            first = nn.Conv2d(spec.num_channels, self.width, 3, stride=2, padding=1)
            second = nn.Conv2d(self.width, self.width, 3, stride=2, padding=1)
            last = nn.Linear(16 * self.width, self.objective(spec).num_outputs)
            return nn.Sequential(first, norm, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), last)
