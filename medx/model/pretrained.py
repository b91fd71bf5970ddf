"""A linear or shallow head on features of a public network."""

from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from medx.dataset import DataSplits, InputSpec
from medx.model.backbone import Backbone, BackboneSettings, Normalisation, Pooling, loaded, settings_for
from medx.model.heads import HeadOnFeatures
from medx.model.networks import check_name
from medx.model.projection import ProjectedFeatures
from medx.model.weights import PACKAGED, Sha256, declared, packaged_file, refuse_seen
from medx.results import PublicWeights
from medx.schema import ConfigError, Place, component


@component("model/pretrained")
class Pretrained(HeadOnFeatures):
    """Features of a public network on a public phantom basis, and a trained head (after Tramer and Boneh 2021).

    ``weights`` null: those of the network's package. A file's ``sha256``, ``licence`` and ``trained_on`` (data sets by
    name) are declared, as epsilon does not cover the images behind them: a run on data that they name is refused.
    ``layer`` null: what the network's last linear layer sees; a layer that is a map is ``pooling``-ed over its cells.
    """

    places = ("weights",)

    backbone: str
    weights: Place | None
    sha256: Sha256 | None
    licence: str | None
    trained_on: tuple[str, ...] | None
    layer: str | None
    pooling: Pooling
    resolution: Annotated[int, Ge(32), Le(1024)]
    normalisation: Normalisation | None

    def __post_init__(self) -> None:
        check_name(self.backbone)
        if self.weights is None and self.sha256 is None:
            if self.backbone not in PACKAGED:
                raise ConfigError(f"model.weights=null: {self.backbone} has no package; accepted: a local file")
            if self.licence is not None or self.trained_on is not None:
                raise ConfigError("model.trained_on and model.licence: accepted with model.weights=FILE alone")
            return
        self._declared()

    @property
    def public_weights(self) -> PublicWeights:
        """What is declared of the weights."""
        return PACKAGED[self.backbone] if self.sha256 is None else self._declared()

    def _declared(self) -> PublicWeights:
        return declared(self.backbone, self.weights, self.sha256, licence=self.licence, trained_on=self.trained_on)

    def check_data(self, splits: DataSplits) -> None:
        """Refuse data that the weights have seen, by name, and pixels on another scale than phantoms'."""
        refuse_seen(self.public_weights, splits)
        if {*splits.mean, *splits.std} != {0.5}:
            raise ConfigError(f"model=pretrained: takes images of mean and std .5, not {splits.mean} and {splits.std}")

    def backbone_settings(self, spec: InputSpec) -> BackboneSettings:
        """What the network's features of such images are made of."""
        more = {"layer": self.layer, "pooling": self.pooling, "resolution": self.resolution}
        return settings_for(spec, self.backbone, self.normalisation, **more)

    def features(self, spec: InputSpec) -> ProjectedFeatures:
        """The features; the first call computes those of all phantoms (minutes), later ones read the cache."""
        backbone = loaded(self.backbone_settings(spec), self._file(), self.public_weights.sha256)
        features = self._projected(backbone)
        self.on_basis(features, backbone, spec)
        return features

    def empty_features(self, spec: InputSpec) -> ProjectedFeatures:
        """The features with weights and basis unset, to load a saved state into; needs no file."""
        return self._projected(Backbone(self.backbone_settings(spec)))

    def width(self, spec: InputSpec) -> int:
        """Length of a feature vector, its constant included."""
        return (self.components or Backbone(self.backbone_settings(spec)).num_features) + 1

    def _projected(self, backbone: Backbone) -> ProjectedFeatures:
        return ProjectedFeatures(backbone, backbone.num_features, self.components, self.bias)

    def _file(self) -> Path:
        if self.weights is None and self.sha256 is not None:  # of a saved model, whose file has the tensors
            raise ConfigError(f"model.weights=null: accepted: the file with SHA-256 {self.sha256}")
        return self.weights or packaged_file()
