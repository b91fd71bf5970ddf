"""ResNet-18 with GroupNorm."""

from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from medx.dataset import DataSplits, InputSpec
from medx.model.layers import LinearHead, initialise, standardise_convolutions
from medx.model.network import ConvolutionalStart, WholeNetwork
from medx.model.weights import Sha256, declared, read_weights, refuse_seen
from medx.results import PublicWeights
from medx.schema import CheckpointError, ConfigError, Place, component

SMALL_IMAGE = 128  # below it, the ordinary stem's division by four would leave too few pixels


class Block(BasicBlock):
    """torchvision's block with nothing in place: hooks for per-record gradients break on in-place changes."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[n, c, h, w]`` to ``[n, width, h / stride, w / stride]``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + shortcut)


@component("model/resnet18")
class ResNet18(ConvolutionalStart, WholeNetwork):
    """ResNet-18 (He et al. 2016) with GroupNorm (Wu and He 2018) in place of BatchNorm, which couples records.

    Below 128 pixels the stem is a 3x3 convolution of stride 1 without pooling. ``weights`` is a local
    file of public weights for everything but the head ``fc``, which starts at zero. Its ``sha256``, ``licence`` and
    ``trained_on`` (data sets by name) are declared, as epsilon does not cover the images behind it.
    """

    places = ("weights",)
    added: ClassVar[tuple[str, ...]] = (*ConvolutionalStart.added, "sha256", "licence", "trained_on")

    num_groups: Annotated[int, Ge(1)]
    weights: Place | None
    sha256: Sha256 | None = None
    licence: str | None = None
    trained_on: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if 64 % self.num_groups:
            raise ConfigError(f"model.num_groups={self.num_groups}: must divide 64, the narrowest layer")
        if self.weights is not None and self.pretrain != "none":
            raise ConfigError(f"model.pretrain={self.pretrain}: accepted with model.weights={self.weights} is none")
        if self.public_weights is None and (self.licence or self.trained_on):
            raise ConfigError("model.trained_on and model.licence: accepted with model.weights=FILE alone")

    @property
    def public_weights(self) -> PublicWeights | None:
        """What is declared of the weights; None where the network starts without any."""
        if self.weights is None and self.sha256 is None:  # a saved model has no file, and says what it began from
            return None
        return declared("resnet18", self.weights, self.sha256, licence=self.licence, trained_on=self.trained_on)

    def check_data(self, splits: DataSplits) -> None:
        """Refuse data that the weights have seen."""
        if self.public_weights is not None:
            refuse_seen(self.public_weights, splits)

    def start(self, spec: InputSpec, seed: int) -> nn.Module:
        """Initial weights from ``seed`` and from the file ``weights``; raises CheckpointError where it does not fit."""
        with torch.device("meta"):
            network = ResNet(Block, [2, 2, 2, 2], norm_layer=partial(nn.GroupNorm, self.num_groups))
            network.relu = nn.ReLU()
            if spec.image_size < SMALL_IMAGE:
                network.conv1 = nn.Conv2d(spec.num_channels, 64, 3, padding=1, bias=False)
                network.maxpool = nn.Identity()
            else:
                network.conv1 = nn.Conv2d(spec.num_channels, 64, 7, stride=2, padding=3, bias=False)
            network.fc = LinearHead(512, spec, bias=True)
            if self.weight_standardisation:
                standardise_convolutions(network)
        initialise(network, seed)
        if self.weights is not None:
            assert self.sha256 is not None
            _load_body(network, self.weights, self.sha256)
        return network


def _load_body(network: nn.Module, path: Path, sha256: str) -> None:
    """Load every tensor but the head's; raises CheckpointError naming the first that does not fit."""
    loaded = read_weights(path, sha256)
    loaded = {name: tensor for name, tensor in loaded.items() if not name.startswith("fc.")}
    expected = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("fc.")}
    for name in sorted(expected.keys() | loaded.keys()):
        wanted, given = (tuple(group[name].shape) if name in group else "nothing" for group in (expected, loaded))
        if wanted != given:
            raise CheckpointError(f"model.weights={path}: {name} is {given}, this network takes {wanted}")
    network.load_state_dict(loaded, strict=False)
