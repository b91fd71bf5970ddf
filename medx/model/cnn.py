"""A small convolutional network for private training from scratch."""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Len
from torch import nn

from medx.dataset import InputSpec
from medx.model.layers import LinearHead, initialise, standardise_convolutions
from medx.model.network import ConvolutionalStart, WholeNetwork
from medx.schema import ConfigError, component

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


@component("model/cnn")
class Cnn(ConvolutionalStart, WholeNetwork):
    """Blocks of 3x3 convolution, GroupNorm and activation, halving the image between them, then a linear head.

    Tanh bounds the activations, and with them the gradients that clipping would cut (Papernot et al. 2021);
    GroupNorm keeps records apart (Wu and He 2018).
    """

    widths: Annotated[tuple[Annotated[int, Ge(1)], ...], Len(1)]
    num_groups: Annotated[int, Ge(1)]
    activation: Literal["tanh", "relu"]

    def __post_init__(self) -> None:
        for width in self.widths:
            if width % self.num_groups:
                raise ConfigError(f"model.num_groups={self.num_groups}: must divide every width of {self.widths}")

    def start(self, spec: InputSpec, seed: int) -> nn.Module:
        """Initial weights from ``seed``; raises ConfigError for images below 2**(blocks - 1) pixels."""
        smallest = 2 ** (len(self.widths) - 1)
        if spec.image_size < smallest:
            raise ConfigError(f"model.widths={self.widths}: needs images of {smallest} pixels, not {spec.image_size}")
        with torch.device("meta"):
            layers: list[nn.Module] = []
            channels = spec.num_channels
            for width in self.widths:
                layers += [nn.AvgPool2d(2)] if layers else []
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.GroupNorm(self.num_groups, width)]
                layers += [ACTIVATIONS[self.activation]()]
                channels = width
            layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), LinearHead(channels, spec, bias=True)]
            network = nn.Sequential(*layers)
            if self.weight_standardisation:
                standardise_convolutions(network)
        return initialise(network, seed)
