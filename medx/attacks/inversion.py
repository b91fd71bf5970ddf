"""Inverting gradients (Geiping et al. 2020): images whose gradient points where the received one does.

What the attack is given is public, model and configuration, but for the gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from medx.attacks.received import Step
from medx.dataset import DataSplits
from medx.model import Objective
from medx.randomness import derive_seed, torch_generator
from medx.schema import ConfigError
from medx.trainer.state import trained_parameters

DROPS = (3 / 8, 5 / 8, 7 / 8)  # of the steps, where the rate falls to a tenth (Geiping et al. 2020, their code)
Distance = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Search:
    """How long and how an attack looks; ``variation`` weighs the total variation, ``restarts`` begin at other noise."""

    steps: int = 2400
    restarts: int = 2
    rate: float = 0.1
    variation: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """Images ``[n, height, width, channels]`` from 0 to 1, their labels, and the distance that was reached."""

    images: np.ndarray
    labels: tuple[int, ...]
    distance: float


def invert(
    module: nn.Module, objective: Objective, splits: DataSplits, steps: Sequence[Step], labels: Sequence[int], how: Search
) -> Found:
    """The best of all restarts, by the distance, which the attacker sees.

    ``splits`` gives the public shape and normalisation, and no image. Labels of several records are given to the
    attack: Yin et al. 2021 and others read them off the gradient too. See ``label_of`` for one record's.
    """
    tries = []
    for restart in range(how.restarts):
        generator = torch_generator(derive_seed(how.seed, "inversion", restart))
        tries.append(_search(module, objective, splits, steps, labels, how, generator))
    return min(tries, key=lambda found: found.distance)


def label_of(step: Step, classes: int, bias: str) -> int:
    """The label of a single record, from the gradient of the last layer's bias (Zhao et al. 2020, iDLG).

    That is probability minus label: below zero at the label's own output alone; of one logit, below zero for class 1.
    """
    gradient = step.model.layout.split(step.gradient)[bias]
    if len(gradient) == 1:
        return int(gradient[0] < 0)
    if len(gradient) != classes:
        raise ConfigError(f"model: {len(gradient)} outputs of {classes} classes; accepted: one an output, or one logit")
    return int(np.argmin(gradient))


def _search(
    module: nn.Module,
    objective: Objective,
    splits: DataSplits,
    steps: Sequence[Step],
    labels: Sequence[int],
    how: Search,
    generator: torch.Generator,
) -> Found:
    """One start: signed Adam on pixels within 0 and 1."""
    spec = splits.spec
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (splits.mean, splits.std))
    shape = (len(labels), spec.num_channels, spec.image_size, spec.image_size)
    pixels = torch.rand(shape, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([pixels], lr=how.rate)
    drops = [round(how.steps * part) for part in DROPS]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops, 0.1)
    distances = [_distance(module, objective, step, torch.tensor(labels)) for step in steps]
    best, kept = float("inf"), pixels.detach().clone()
    for _ in range(how.steps):
        image = (pixels - mean) / std
        distance = torch.stack([each(image) for each in distances]).mean()
        total = distance + how.variation * _variation(image)
        if (reached := total.item()) < best:
            best, kept = reached, pixels.detach().clone()
        (gradient,) = torch.autograd.grad(total, [pixels])
        pixels.grad = gradient.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            pixels.clamp_(0, 1)
    return Found(kept.permute(0, 2, 3, 1).numpy(), tuple(labels), best)


def _distance(module: nn.Module, objective: Objective, step: Step, labels: torch.Tensor) -> Distance:
    """One minus the cosine between the gradient of images and the received one; clipping does not move it."""
    layout = step.model.layout
    weights = {name: part.requires_grad_() for name, part in step.model.parameter_tensors().items()}
    names = [name for name, _ in trained_parameters(module)]
    received = torch.from_numpy(step.gradient)
    wanted = [(received[s : s + weights[n].numel()] / received.norm()).float().view_as(weights[n]) for n, s in
              zip(names, [0, *layout._ends], strict=False)]  # fmt: skip

    def distance(images: torch.Tensor) -> torch.Tensor:
        outputs = torch.func.functional_call(module, weights, (images,))
        loss = objective.loss(outputs, labels).mean()
        found = torch.autograd.grad(loss, [weights[name] for name in names], create_graph=True)
        along = sum((part * want).sum() for part, want in zip(found, wanted, strict=True))
        length = sum(part.square().sum() for part in found) ** 0.5
        result: torch.Tensor = 1 - along / length
        return result

    return distance


def _variation(images: torch.Tensor) -> torch.Tensor:
    """The total variation by pixel."""
    across = (images[..., 1:] - images[..., :-1]).abs().mean()
    return across + (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
