"""A linear or shallow head on fixed scattering features: most of what can be learnt under a small epsilon."""

import math
from dataclasses import replace
from typing import Annotated

from annotated_types import Ge, Gt, Le

from medx.dataset import InputSpec
from medx.model.heads import HeadOnFeatures
from medx.model.scattering import VIEWS, ScatterCoefficients, ScatterFeatures, ScatterSettings
from medx.schema import component

GRID = 7  # cells on a side that the automatic number of scales aims at


@component("model/scatternet")
class ScatterNet(HeadOnFeatures):
    """Scattering features on a public phantom basis, and a trained head (after Tramer and Boneh 2021).

    ``num_scales`` null: as many as leave about 7x7 cells. Pooled colours need 3 channels.
    """

    num_scales: Annotated[int, Ge(1)] | None
    num_angles: Annotated[int, Ge(1)]
    num_views: Annotated[int, Ge(1), Le(len(VIEWS))]
    log_offset: Annotated[float, Gt(0)]
    colour_cells: Annotated[int, Ge(0)]
    colour_weight: Annotated[float, Ge(0)]

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
            num_components=self.components,
            colour_cells=self.colour_cells,
            colour_weight=self.colour_weight,
            bias=self.bias,
        )

    def features(self, spec: InputSpec) -> ScatterFeatures:
        """The features; fits the phantom basis on first use (half a minute), then reads it from the cache."""
        features = self.empty_features(spec)
        # The projection is linear: the views of a phantom would add little that another phantom does not.
        self.on_basis(features, ScatterCoefficients(replace(features.settings, num_views=1)), spec)
        return features

    def empty_features(self, spec: InputSpec) -> ScatterFeatures:
        """The features with the basis unset, to load a saved state into."""
        return ScatterFeatures(self.settings(spec))

    def width(self, spec: InputSpec) -> int:
        """Length of a feature vector, its constant included."""
        return self.settings(spec).num_features
