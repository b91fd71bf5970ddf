"""What models share that train a head on fixed features."""

from abc import ABC, abstractmethod
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import nn

from medx.dataset import InputSpec
from medx.model import FixedFeatures, Objective
from medx.model.layers import LinearHead, initialise
from medx.model.objectives import objective_for
from medx.model.phantoms import PhantomBasis, phantom_basis, phantom_head, phantoms_fit
from medx.model.projection import ProjectedFeatures
from medx.schema import component


@component
class HeadOnFeatures(ABC):
    """Features on a public basis of drawn phantoms, and a trained head.

    ``basis`` none: all features, unprojected. ``hidden`` 0: a linear head; else one tanh layer of that width before it.
    ``phantom_start``: a linear head starts at this multiple of the head that phantoms' own labels give, where the data
    set says that its labels mean the same (``dataset.phantoms`` of own images), else at zero.
    """

    basis: Literal["phantom", "none"]
    num_phantoms: Annotated[int, Ge(2)]
    phantom_seed: Annotated[int, Ge(0)]
    num_components: Annotated[int, Ge(1)]
    whitening_exponent: Annotated[float, Ge(0)]
    bias: Annotated[float, Gt(0)]
    hidden: Annotated[int, Ge(0)]
    phantom_start: Annotated[float, Ge(0)]

    @abstractmethod
    def features(self, spec: InputSpec) -> FixedFeatures:
        """The features; a basis is fitted on first use, then read from the cache."""

    @abstractmethod
    def empty_features(self, spec: InputSpec) -> FixedFeatures:
        """The features with their tensors unset, to load a saved state into."""

    @abstractmethod
    def width(self, spec: InputSpec) -> int:
        """Length of a feature vector, its constant included."""

    def objective(self, spec: InputSpec) -> Objective:
        """The loss and the probabilities for this task."""
        return objective_for(spec)

    @property
    def components(self) -> int:
        """Of the basis; 0 without one."""
        return 0 if self.basis == "none" else self.num_components

    def on_basis(self, features: ProjectedFeatures, basis_of: FixedFeatures, spec: InputSpec) -> None:
        """Set the basis of ``features`` to that of phantoms under ``basis_of``, where there is to be one."""
        if self.basis == "phantom":
            how = PhantomBasis(self.num_phantoms, self.phantom_seed, self.num_components, self.whitening_exponent)
            features.load_state_dict(phantom_basis(basis_of, features.num_raw, spec, how), strict=False)

    def build(self, spec: InputSpec, seed: int) -> nn.Module:
        """Features ``[n, width]`` to outputs ``[n, num_outputs]``; see ``phantom_start``."""
        width = self.width(spec)
        with torch.device("meta"):
            if self.hidden == 0:
                # The constant feature is the bias.
                head: nn.Module = LinearHead(width, spec, bias=False)
            else:
                inner = nn.Linear(width, self.hidden, bias=False)
                head = nn.Sequential(inner, nn.Tanh(), LinearHead(self.hidden, spec, bias=True))
        head = initialise(head, seed)
        if self.phantom_start and self.hidden == 0 and phantoms_fit(spec):
            self._approach_phantoms(head, spec)
        return head

    def _approach_phantoms(self, head: nn.Module, spec: InputSpec) -> None:
        features = self.features(spec)
        fitted = phantom_head(features, spec, self.num_phantoms, self.phantom_seed)
        state = head.state_dict()
        head.load_state_dict({name: torch.lerp(state[name], fitted[name], self.phantom_start) for name in state})
