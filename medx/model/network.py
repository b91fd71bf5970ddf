"""What models share that train the whole network on images."""

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge
from torch import nn

from medx.dataset import InputSpec
from medx.model import FixedFeatures, Objective
from medx.model.layers import head_names
from medx.model.low_rank import add_low_rank_changes
from medx.model.objectives import objective_for
from medx.model.phantoms import pretrained_body
from medx.schema import component


class WholeNetwork:
    """A model without fixed features, whose objective follows from the task."""

    def objective(self, spec: InputSpec) -> Objective:
        """The loss and the probabilities for this task."""
        return objective_for(spec)

    def features(self, spec: InputSpec) -> FixedFeatures | None:
        """None: images go straight into the network."""
        return None

    def empty_features(self, spec: InputSpec) -> FixedFeatures | None:
        """None: there is no saved transform to load."""
        return None


@component
class ConvolutionalStart(ABC):
    """Where a convolutional network starts from, and what of it is trained.

    ``weight_standardisation`` standardises every convolution's weights (Qiao et al. 2019). ``pretrain`` phantom
    starts from a body trained on drawn phantoms, the head at zero (``phantoms.py``). ``train`` head leaves the
    convolutions as they start, and trains the head and the norms' scales and shifts; low_rank trains beside these a
    change of each convolution that has no more than ``rank`` (``low_rank.py``).
    """

    added: ClassVar[tuple[str, ...]] = ("rank",)

    weight_standardisation: bool
    pretrain: Literal["none", "phantom"]
    num_phantoms: Annotated[int, Ge(1)]
    pretrain_epochs: Annotated[int, Ge(1)]
    pretrain_seed: Annotated[int, Ge(0)]
    train: Literal["all", "head", "low_rank"]
    rank: Annotated[int, Ge(1)] = 8

    @abstractmethod
    def start(self, spec: InputSpec, seed: int) -> nn.Module:
        """The network at its initial weights, before any pretraining on phantoms."""

    def build(self, spec: InputSpec, seed: int) -> nn.Module:
        """Images ``[n, channels, size, size]`` to outputs ``[n, num_outputs]``; what is not trained has no gradient.

        The first call with ``pretrain`` phantom trains the body (minutes), later ones read it from the cache.
        """
        network = self.start(spec, seed)
        if self.pretrain == "phantom":
            settings = (self.num_phantoms, self.pretrain_epochs, self.pretrain_seed)
            body = pretrained_body(lambda task: self.start(task, self.pretrain_seed), spec, *settings)
            missing, unexpected = network.load_state_dict(body, strict=False)
            assert not unexpected
            assert set(missing) == head_names(network)
        if self.train != "all":
            freeze_body(network)
        if self.train == "low_rank":
            add_low_rank_changes(network, self.rank, seed)
        return network


def freeze_body(network: nn.Module) -> None:
    """Leave only the head and the norms' scales and shifts to be trained."""
    kept = head_names(network)
    for name, module in network.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            parameter.requires_grad_(isinstance(module, nn.GroupNorm) or f"{name}.{own}" in kept)
