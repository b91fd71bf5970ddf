"""Models: optional fixed features, a trainable module, and an objective that couples no two records."""

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import nn

from medx.dataset import InputSpec
from medx.results import PublicWeights


class Objective(Protocol):
    """How outputs become a loss per record and probabilities. Stateless; never mixes records."""

    @property
    def num_outputs(self) -> int:
        """Columns of the outputs."""
        ...

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """``[batch]`` losses from outputs ``[batch, num_outputs]`` and labels ``int64 [batch]``; no reduction.

        Of the task multilabel labels are ``[batch, labels]``: 1, 0, or -1 where it is not known.
        """
        ...

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """``[batch, num_classes]`` class probabilities that sum to one; of several labels each its own."""
        ...


class FixedFeatures(nn.Module, ABC):
    """A transform with no trained parameter, computed once per image: ``[n, c, h, w]`` to ``[n, ...]``.

    ``fingerprint`` names everything that its output depends on besides the image; caches are keyed by it.
    What is made of other features has them as ``parts``, which are computed and cached each for itself, and says in
    ``joined`` what becomes of theirs. ``costly`` features of phantoms are cached too. ``images_at_once`` is for one
    thread (None: as many as have 25,000 pixels).
    """

    costly = False
    images_at_once: int | None = None

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 in hexadecimal over the transform's settings, code and tensors."""

    @property
    def parts(self) -> tuple["FixedFeatures", ...]:
        """The features that this is made of; none where it is computed from images."""
        return ()

    def joined(self, *outputs: torch.Tensor) -> torch.Tensor:
        """``[n, ...]`` from the features ``[n, ...]`` of each part."""
        raise NotImplementedError

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``[n, c, h, w]`` to ``[n, ...]``."""
        return self.joined(*(part(images) for part in self.parts))


class Model(Protocol):
    """A configured model: one class, one yaml.

    It may have ``check_data(splits)``, which refuses data before anything is computed of them, and ``public_weights``
    (``medx.results.PublicWeights``), what is declared of weights from elsewhere.
    """

    def objective(self, spec: InputSpec) -> Objective:
        """The loss and the probabilities for this task."""
        ...

    def features(self, spec: InputSpec) -> FixedFeatures | None:
        """The fixed part, or None where the whole network is trained."""
        ...

    def empty_features(self, spec: InputSpec) -> FixedFeatures | None:
        """``features`` with its tensors unset, to load a saved state into; costs no computation."""
        ...

    def build(self, spec: InputSpec, seed: int) -> nn.Module:
        """The trainable module on top of ``features`` (or on images), initialised from ``seed`` alone."""
        ...


def weights_of(model: Model) -> PublicWeights | None:
    """What a model declares of weights from elsewhere; None where it has none."""
    found: PublicWeights | None = getattr(model, "public_weights", None)
    return found
