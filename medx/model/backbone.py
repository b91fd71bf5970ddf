"""A public network up to one of its layers, as fixed features: nothing of it is trained, nothing of it changes."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional

from medx.dataset import InputSpec
from medx.model import FixedFeatures, efficientnet_lite
from medx.model.networks import library_of, network_of, up_to
from medx.model.storage import source_digest, tensors_digest
from medx.model.weights import PACKAGED, load_into, read_weights
from medx.schema import ConfigError

Normalisation = Literal["imagenet", "centred"]
Pooling = Literal["mean", "max", "none"]

# Of pixels in 0..1, one a channel.
MEAN_AND_STD: dict[Normalisation, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "centred": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
PIXELS = 200_000  # at a time by one thread, after resizing: its widest layers fit a cache

CODE = source_digest(__file__, str(efficientnet_lite.__file__))


@dataclass(frozen=True)
class BackboneSettings:
    """Everything that a Backbone is made of, besides its weights. ``layer`` None: what the last linear layer sees."""

    name: str
    num_channels: int
    layer: str | None
    pooling: Pooling
    resolution: int
    normalisation: Normalisation


class Backbone(FixedFeatures):
    """Images ``[n, 1 or 3, h, w]`` in -1..1 to ``[n, num_features]``: pooled values of one layer of a public network.

    Images are resized (bilinear, antialiased), grey ones repeated in three channels, and normalised as the network's
    were. BatchNorm stays in evaluation mode, whatever mode is asked for. Weights are unset until loaded.
    """

    costly = True

    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__()
        if settings.num_channels not in (1, 3):
            raise ConfigError(f"model.backbone={settings.name}: takes 1 or 3 channels, not {settings.num_channels}")
        self.settings = settings
        self.images_at_once = max(1, PIXELS // settings.resolution**2)
        with torch.random.fork_rng(devices=[]):  # libraries draw initial weights from the global generator
            torch.manual_seed(0)
            self.network = up_to(network_of(settings.name), settings.name, settings.layer)
        self.requires_grad_(False).eval()
        with torch.no_grad():
            self.num_features = self(torch.zeros(1, settings.num_channels, 8, 8)).shape[1]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over settings, this code, the library whose network it is, and the weights."""
        named = f"{CODE} {library_of(self.settings.name)} {self.settings} {tensors_digest(self.network.state_dict())}"
        return hashlib.sha256(named.encode()).hexdigest()

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``[n, channels, h, w]`` to ``[n, num_features]``."""
        settings = self.settings
        size = (settings.resolution, settings.resolution)
        resized = functional.interpolate(images / 2 + 0.5, size, mode="bilinear", antialias=True).clamp(0, 1)
        mean, std = (resized.new_tensor(each).view(1, 3, 1, 1) for each in MEAN_AND_STD[settings.normalisation])
        # Depthwise convolutions are twice as fast so.
        inputs = ((resized - mean) / std).contiguous(memory_format=torch.channels_last)
        return self._pooled(self.network(inputs)["found"])

    def _pooled(self, found: Any) -> torch.Tensor:
        shape = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        if not isinstance(found, torch.Tensor) or found.ndim not in (2, 4):
            raise ConfigError(
                f"model.layer={self.settings.layer}: gives {shape}; accepted: a layer that gives [n, c] or [n, c, h, w]"
            )
        if found.ndim == 4 and self.settings.pooling != "none":
            return found.mean((2, 3)) if self.settings.pooling == "mean" else found.amax((2, 3))
        return found.flatten(1)


@lru_cache(maxsize=1)
def loaded(settings: BackboneSettings, path: Path, sha256: str) -> Backbone:
    """The features with the weights of a file, which is what ``sha256`` says; read once for all that a run builds."""
    backbone = Backbone(settings)
    load_into(backbone.network, read_weights(path, sha256), path)
    return backbone


def settings_for(spec: InputSpec, name: str, normalisation: Normalisation | None, **more: Any) -> BackboneSettings:
    """The settings for a task; ``normalisation`` None: as the network's images were in its training."""
    usual: Normalisation = "centred" if name in PACKAGED else "imagenet"
    return BackboneSettings(name=name, num_channels=spec.num_channels, normalisation=normalisation or usual, **more)
