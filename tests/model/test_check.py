"""A model is tried before a run begins: its outputs, and the file that will hold it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from medx.dataset import DataSplits, InputSpec, Split
from medx.model.export import check_export, check_outputs
from medx.model.network import WholeNetwork
from medx.model.objectives import objective_for
from medx.schema import ConfigError, component

BINARY = InputSpec(num_channels=1, image_size=8, num_classes=2, task="binary")
IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
SPLIT = Split(np.zeros((2, 8, 8, 1), np.uint8), np.zeros(2, np.int64))
SPLITS = DataSplits(
    "x", "X", "binary", ("a", "b"), SPLIT, SPLIT, SPLIT, None, "", synthetic=True, mean=(0.5,), std=(0.5,)
)


def flat(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *layers)


class Tuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.head(images.flatten(1)), None


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (flat(nn.Linear(64, 2)), r"gives \[2, 2\] for 2 images; accepted: \[2, 1\]"),
        (Tuple(), r"gives tuple for 2 images; accepted: \[2, 1\]"),
        (flat(nn.Linear(60, 1)), r"fails on inputs of \[2, 1, 8, 8\] \(RuntimeError: mat1"),
        (flat(nn.Linear(64, 1).requires_grad_(False)), "none of its parameters is trained"),
        (flat(nn.utils.parametrizations.spectral_norm(nn.Linear(64, 4)), nn.Linear(4, 1)), "changes buffer .*_u"),
        (
            nn.Sequential(nn.InstanceNorm2d(1, track_running_stats=True), flat(nn.Linear(64, 1))),
            "0.running_mean",
        ),
    ],
)
def test_a_module_that_does_not_fit_is_refused(module: nn.Module, says: str) -> None:
    with pytest.raises(ConfigError, match=f"^model: .*{says}") as refused:
        check_outputs(module, objective_for(BINARY), IMAGES)
    assert "\n" not in str(refused.value)


def test_a_module_that_fits_is_left_as_it_was() -> None:
    module = flat(nn.Linear(64, 1), nn.Dropout()).train()
    state = torch.random.get_rng_state()
    check_outputs(module, objective_for(BINARY), IMAGES)
    assert module.training
    assert torch.equal(state, torch.random.get_rng_state())


class Shared(nn.Module):
    """Two layers of one weight: safetensors writes no tensor twice by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 1)
        self.second.weight = self.first.weight

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.head(torch.tanh(self.second(torch.tanh(self.first(images.flatten(1))))))
        return outputs


class Unsaved(nn.Module):
    """Random projections that state_dict() does not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("projection", torch.randn(64), persistent=False)
        self.head = nn.Linear(64, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.head(images.flatten(1) * self.projection)
        return outputs


@component
class Own(WholeNetwork):
    """Somebody's model."""

    make: str

    def build(self, spec: InputSpec, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return {"shared": Shared, "unsaved": Unsaved}[self.make]()


class NoComponent(WholeNetwork):
    def build(self, spec: InputSpec, seed: int) -> nn.Module:
        return Shared()


@dataclasses.dataclass
class NoPlainField(WholeNetwork):
    layers: Any

    def build(self, spec: InputSpec, seed: int) -> nn.Module:
        return Shared()


def test_a_model_of_shared_weights_comes_back() -> None:
    model = Own(make="shared")
    check_export(model, SPLITS, None, model.build(BINARY, 5), IMAGES)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: Own(make="unsaved"), "saved and loaded it gives other outputs"),
        (NoComponent, "could not be saved and loaded \\(TypeError: .*dataclass"),
        (lambda: NoPlainField(nn.Identity()), "could not be saved and loaded \\(TypeError: .*JSON"),
    ],
)
def test_a_model_whose_file_would_not_give_it_back_is_refused(model: Callable[[], Any], says: str) -> None:
    own = model()
    with pytest.raises(ConfigError, match=f"^model: {says}.*accepted: a @component"):
        check_export(own, SPLITS, None, own.build(BINARY, 5), IMAGES)
