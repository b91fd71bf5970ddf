"""Small networks, batches and exact references for the trainer's tests."""

import copy
import math
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from medx.dataset import InputSpec
from medx.model import Objective
from medx.model.cnn import Cnn
from medx.model.layers import LinearHead, initialise
from medx.model.objectives import objective_for
from medx.model.resnet18 import ResNet18
from medx.trainer.batches import poisson_batches
from medx.trainer.gradients import MODES
from medx.trainer.gradients.record_loss import RecordLoss

SPEC = InputSpec(num_channels=1, image_size=28, num_classes=3, task="ordinal")
BINARY = InputSpec(num_channels=1, image_size=28, num_classes=2, task="binary")
PLAIN: dict[str, Any] = {
    "weight_standardisation": False,
    "pretrain": "none",
    "num_phantoms": 40,
    "pretrain_epochs": 1,
    "pretrain_seed": 0,
    "train": "all",
}
MODE_NAMES = sorted(MODES.keys() - {"auto"})


def perturbed(network: nn.Module) -> nn.Module:
    """Heads start at zero, which would hide every layer below them from the gradient."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network.train()


def smooth(network: nn.Module) -> nn.Module:
    """Softplus for ReLU: one unit of 10**-6 whose sign float32 turns over moves the whole gradient by 10**-3."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Softplus(beta=5))
    return network


def build_network(name: str) -> nn.Module:
    if name == "linear":
        with torch.device("meta"):
            head = LinearHead(12, SPEC, bias=True)
        return perturbed(initialise(head, seed=0))
    if name == "cnn":
        return perturbed(Cnn(widths=(16, 32, 64, 64), num_groups=4, activation="tanh", **PLAIN).build(BINARY, seed=0))
    return smooth(perturbed(ResNet18(num_groups=32, weights=None, **PLAIN).build(BINARY, seed=0)))


def build_batch(name: str, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    # ResNet-18 is fully convolutional: small images keep its tests short.
    shape = {"linear": (12,), "cnn": (1, 28, 28), "resnet18": (1, 14, 14)}[name]
    classes = 3 if name == "linear" else 2
    inputs = torch.randn(batch, *shape, generator=generator)
    return inputs, torch.arange(batch) % classes


def objective(name: str) -> Objective:
    return objective_for(SPEC if name == "linear" else BINARY)


def record_loss(name: str) -> RecordLoss:
    return RecordLoss(build_network(name), objective(name).loss)


def relative_error(given: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    difference = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(given, wanted, strict=True))
    return math.sqrt(difference / sum(float(b.double().square().sum()) for b in wanted))


def norm(sums: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float(total.double().square().sum()) for total in sums))


def reference(loss: RecordLoss, inputs: torch.Tensor, labels: torch.Tensor, clip_norm: float) -> list[torch.Tensor]:
    """The per-record loop in float64."""
    exact = RecordLoss(copy.deepcopy(loss.module).double(), loss.loss)
    return MODES["naive"](exact).clipped_sum(inputs.double(), labels, clip_norm)


def poisson_loader(
    inputs: torch.Tensor, labels: torch.Tensor, sampling_probability: float, steps: int, generator: torch.Generator
) -> DataLoader[Any]:
    """A loader of ``steps`` logical batches, for ``lightning.Trainer.fit``: one batch is one private step."""
    batches = list(poisson_batches(len(labels), sampling_probability, steps, generator))
    return DataLoader(TensorDataset(inputs, labels), sampler=batches, batch_size=None)
