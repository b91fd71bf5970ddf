"""A linear or shallow head on fixed scattering features: most of what can be learnt under a small epsilon."""

import math
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import nn

from medx.dataset import InputSpec
from medx.model import Objective
from medx.model.layers import LinearHead, initialise
from medx.model.objectives import objective_for
from medx.model.phantoms import phantom_basis, phantom_head, phantoms_fit
from medx.model.scattering import VIEWS, ScatterFeatures, ScatterSettings
from medx.schema import component

GRID = 7  # cells on a side that the automatic number of scales aims at


@component("model/scatternet")
class ScatterNet:
    """Scattering features on a public phantom basis, and a trained head (after Tramer and Boneh 2021).

    ``num_scales`` null: as many as leave about 7x7 cells. ``basis`` none: all coefficients, unprojected.
    ``hidden`` 0: a linear head; else one tanh layer of that width before it. Pooled colours need 3 channels.
    ``phantom_start``: a linear head starts at this multiple of the head that phantoms' own labels give, where the data
    set says that its labels mean the same (``dataset.phantoms`` of own images), else at zero.
    """

    num_scales: Annotated[int, Ge(1)] | None
    num_angles: Annotated[int, Ge(1)]
    num_views: Annotated[int, Ge(1), Le(len(VIEWS))]
    log_offset: Annotated[float, Gt(0)]
    basis: Literal["phantom", "none"]
    num_phantoms: Annotated[int, Ge(2)]
    phantom_seed: Annotated[int, Ge(0)]
    num_components: Annotated[int, Ge(1)]
    whitening_exponent: Annotated[float, Ge(0)]
    colour_cells: Annotated[int, Ge(0)]
    colour_weight: Annotated[float, Ge(0)]
    bias: Annotated[float, Gt(0)]
    hidden: Annotated[int, Ge(0)]
    phantom_start: Annotated[float, Ge(0)]

    def objective(self, spec: InputSpec) -> Objective:
        """The loss and the probabilities for this task."""
        return objective_for(spec)

    def settings(self, spec: InputSpec) -> ScatterSettings:
        """What the features of such images are made of."""
        automatic = max(1, round(math.log2(spec.image_size / GRID)))
        return ScatterSettings(
            image_size=spec.image_size,
            num_channels=spec.num_channels,
            num_scales=automatic if self.num_scales is None else self.num_scales,
            num_angles=self.num_angles,
            num_views=self.num_views,
            log_offset=self.log_offset,
            num_components=0 if self.basis == "none" else self.num_components,
            colour_cells=self.colour_cells,
            colour_weight=self.colour_weight,
            bias=self.bias,
        )

    def features(self, spec: InputSpec) -> ScatterFeatures:
        """The features; fits the phantom basis on first use (half a minute), then reads it from the cache."""
        features = self.empty_features(spec)
        if self.basis == "phantom":
            settings = (self.num_phantoms, self.whitening_exponent, self.phantom_seed)
            features.load_state_dict(phantom_basis(features.settings, *settings))
        return features

    def empty_features(self, spec: InputSpec) -> ScatterFeatures:
        """The features with the basis unset, to load a saved state into."""
        return ScatterFeatures(self.settings(spec))

    def build(self, spec: InputSpec, seed: int) -> nn.Module:
        """Features ``[n, num_features]`` to outputs ``[n, num_outputs]``; see ``phantom_start``."""
        width = self.settings(spec).num_features
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
