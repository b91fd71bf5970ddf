"""Scattering features and those of a public network side by side, under one head."""

import hashlib
from dataclasses import fields
from typing import Annotated

import torch
from annotated_types import Gt
from torch.nn import functional

from medx.dataset import InputSpec
from medx.model import FixedFeatures
from medx.model.pretrained import Pretrained
from medx.model.projection import ProjectedFeatures
from medx.model.scatternet import ScatterNet
from medx.model.storage import source_digest
from medx.schema import component

CODE = source_digest(__file__)


class SideBySide(FixedFeatures):
    """Two vectors of norm one, each with its constant last, to one: each by its public factor, norm one, a constant.

    ``[n, a + 1]`` and ``[n, b + 1]`` to ``[n, a + b + 1]`` of l2 norm ``sqrt(1 + bias**2)``.
    """

    def __init__(
        self, scattering: ProjectedFeatures, pretrained: ProjectedFeatures, factors: tuple[float, float], bias: float
    ) -> None:
        super().__init__()
        self.scattering, self.pretrained, self.factors, self.bias = scattering, pretrained, factors, bias

    @property
    def parts(self) -> tuple[FixedFeatures, ...]:
        """Both."""
        return self.scattering, self.pretrained

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the parts, the factors and the constant."""
        named = [part.fingerprint for part in self.parts]
        return hashlib.sha256(f"{CODE} {named} {self.factors} {self.bias}".encode()).hexdigest()

    def joined(self, *outputs: torch.Tensor) -> torch.Tensor:
        """``[n, a + b + 1]`` from the parts' features."""
        scaled = [factor * output[:, :-1] for factor, output in zip(self.factors, outputs, strict=True)]
        return functional.pad(functional.normalize(torch.cat(scaled, 1)), (0, 1), value=self.bias)


@component("model/ensemble")
class Ensemble(ScatterNet, Pretrained):
    """The features of ``scatternet`` and of ``pretrained``, each with these settings, and a trained head on both.

    Each part has norm one and is multiplied by its weight, then the whole is brought to norm one.
    """

    scattering_weight: Annotated[float, Gt(0)]
    pretrained_weight: Annotated[float, Gt(0)]

    @property
    def scatternet(self) -> ScatterNet:
        """The one part."""
        return ScatterNet(**{field.name: getattr(self, field.name) for field in fields(ScatterNet)})  # type: ignore[arg-type]

    @property
    def network(self) -> Pretrained:
        """The other."""
        return Pretrained(**{field.name: getattr(self, field.name) for field in fields(Pretrained)})  # type: ignore[arg-type]

    def features(self, spec: InputSpec) -> SideBySide:  # type: ignore[override]
        """Both parts' features, each from its own cache."""
        return self._side_by_side(self.scatternet.features(spec), self.network.features(spec))

    def empty_features(self, spec: InputSpec) -> SideBySide:  # type: ignore[override]
        """The features with their tensors unset, to load a saved state into; needs no file."""
        return self._side_by_side(self.scatternet.empty_features(spec), self.network.empty_features(spec))

    def width(self, spec: InputSpec) -> int:
        """Length of a feature vector, its one constant included."""
        return self.scatternet.width(spec) + self.network.width(spec) - 1

    def _side_by_side(self, scattering: ProjectedFeatures, pretrained: ProjectedFeatures) -> SideBySide:
        factors = (self.scattering_weight, self.pretrained_weight)
        return SideBySide(scattering, pretrained, factors, self.bias)
