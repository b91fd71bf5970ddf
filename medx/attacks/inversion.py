"""Inverting gradients (Geiping et al. 2020): images whose gradient points where the received one does.

What the attack is given is public, model and configuration, but for the gradient. It knows that there is noise where
the configuration says so, and then leaves out the last stage, which would fit the noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from medx.attacks.received import Received, Step
from medx.dataset import DataSplits
from medx.federation.setup import build_module
from medx.model import Objective
from medx.randomness import derive_seed, torch_generator
from medx.schema import ConfigError
from medx.trainer.state import trained_parameters

DROPS = (3 / 8, 5 / 8, 7 / 8)  # of the steps, where the rate falls to a tenth (Geiping et al. 2020, their code)
CONTRAST = 100.0  # a unit of the last stage's contrast, in logarithms
SCALE = 1e4  # of its loss


@dataclass(frozen=True)
class Search:
    """How long and how an attack looks.

    ``restarts`` begin at other images of noise; ``variation`` weighs the total variation, and ``polish`` are the steps
    of the last stage, without it.
    """

    steps: int = 1500
    restarts: int = 2
    rate: float = 0.1
    variation: float = 3e-4
    polish: int = 750
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """Images ``[n, height, width, channels]`` from 0 to 1, their labels, and the distance that was reached."""

    images: np.ndarray
    labels: tuple[int, ...]
    distance: float


def label_of(step: Step, classes: int, bias: str) -> int:
    """The label of a single record, from the gradient of the last layer's ``bias`` (Zhao et al. 2020, iDLG).

    That is probability minus label: below zero at the label's own output alone; of one logit, below zero for class 1.
    """
    gradient = step.model.layout.split(step.gradient)[bias]
    if len(gradient) == 1:
        return int(gradient[0] < 0)
    if len(gradient) != classes:
        raise ConfigError(f"model: {len(gradient)} outputs of {classes} classes; accepted: one an output, or one logit")
    return int(np.argmin(gradient))


class Inversion:
    """An attack on one round's gradient, by who has the model and the configuration.

    ``splits`` gives the public shape and normalisation of images, and none of them. The labels of several records are
    taken as known, which favours the attack; of one, see ``label_of``.
    """

    def __init__(
        self, module: nn.Module, objective: Objective, splits: DataSplits, step: Step, labels: Sequence[int]
    ) -> None:
        self._module, self._objective, self._step = module, objective, step
        self._names = [name for name, _ in trained_parameters(module)]
        self._labels = torch.tensor(list(labels))
        spec = splits.spec
        self._shape = (len(labels), spec.num_channels, spec.image_size, spec.image_size)
        self._mean, self._std = (torch.tensor(values).view(1, -1, 1, 1) for values in (splits.mean, splits.std))

    @classmethod
    def of(cls, received: Received, step: Step, labels: Sequence[int] | None = None) -> "Inversion":
        """Of what a run's server received; None takes it for one record's, and reads its label off it."""
        prepared = received.prepared
        module = build_module(received.job.setup, prepared.spec)
        if labels is None:
            *_, (bias, _) = trained_parameters(module)
            labels = [label_of(step, prepared.spec.num_classes, bias)]
        return cls(module, prepared.objective, prepared.splits, step, labels)

    def best(self, how: Search) -> Found:
        """Of all restarts the one of the least distance, which the attacker sees; then the last stage."""
        tries = [self._search(how, restart) for restart in range(how.restarts)]
        pixels = min(tries, key=lambda found: found[0])[1]
        if how.polish:
            pixels = self._polished(pixels, how.polish)
        distance = self._distances(torch.float64)(self._normalised(pixels).double()).item()
        images = pixels.clamp(0, 1).permute(0, 2, 3, 1).numpy()
        return Found(images, tuple(self._labels.tolist()), distance)

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels - self._mean) / self._std

    def _search(self, how: Search, restart: int) -> tuple[float, torch.Tensor]:
        """From one image of noise by signed Adam, within black and white: what it came to, and the pixels."""
        generator = torch_generator(derive_seed(how.seed, "inversion", restart))
        pixels = torch.rand(self._shape, generator=generator).requires_grad_()
        optimizer = torch.optim.Adam([pixels], lr=how.rate)
        drops = [round(how.steps * part) for part in DROPS]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops, 0.1)
        distance, best = self._distances(torch.float32), (float("inf"), pixels.detach())
        for _ in range(how.steps):
            inputs = self._normalised(pixels)
            total = distance(inputs) + how.variation * variation(inputs)
            if (reached := total.item()) < best[0]:
                best = reached, pixels.detach().clone()
            (gradient,) = torch.autograd.grad(total, [pixels])
            pixels.grad = gradient.sign()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                pixels.clamp_(0, 1)
        return best

    def _polished(self, pixels: torch.Tensor, steps: int) -> torch.Tensor:
        """The least distance near by, in double precision.

        Normalisation layers all but take an image's contrast out of its gradient: what is left of it is far below all
        else. So the contrast waits until all else is found, and then is a number of its own, in units in which the
        search is as quick to move it.
        """
        distance = self._distances(torch.float64)
        inputs = self._normalised(pixels).double().requires_grad_()
        contrast = torch.zeros(len(inputs), 1, 1, 1, dtype=torch.float64, requires_grad=True)

        def scaled() -> torch.Tensor:
            return inputs * torch.exp(CONTRAST * contrast)

        def loss() -> torch.Tensor:
            images = scaled()
            outside = ((images * self._std + self._mean - 0.5).abs() - 0.5).clamp(min=0)
            return SCALE * distance(images) + outside.square().mean()

        for sought in ([inputs], [inputs, contrast]):
            descend(loss, sought, steps // 2)
        return (scaled().detach() * self._std + self._mean).float()

    def _distances(self, kind: torch.dtype) -> "Distance":
        return Distance(self._module, self._names, self._objective, self._step, labels=self._labels, kind=kind)


class Distance:
    """Half of the squared distance between directions, which is one minus their cosine; clipping does not move it."""

    def __init__(
        self,
        module: nn.Module,
        names: Sequence[str],
        objective: Objective,
        step: Step,
        *,
        labels: torch.Tensor,
        kind: torch.dtype,
    ) -> None:
        self._module, self._objective, self._labels = module, objective, labels
        self._weights = {n: part.to(kind).requires_grad_() for n, part in step.model.parameter_tensors().items()}
        self._trained = [self._weights[name] for name in names]
        direction = torch.from_numpy(step.gradient / np.linalg.norm(step.gradient)).to(kind)
        self._wanted = [step.model.layout.split(direction)[name] for name in names]

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Of these images' mean gradient from the received one."""
        outputs = torch.func.functional_call(self._module, self._weights, (inputs,))
        loss = self._objective.loss(outputs, self._labels).mean()
        found = torch.autograd.grad(loss, self._trained, create_graph=True)
        length = torch.stack([part.square().sum() for part in found]).sum().sqrt()
        apart = [(p / length - w).square().sum() for p, w in zip(found, self._wanted, strict=True)]
        return torch.stack(apart).sum() / 2


def descend(loss: Callable[[], torch.Tensor], sought: list[torch.Tensor], steps: int) -> None:
    """L-BFGS, in place, for so many steps: no tolerance ends it earlier."""
    optimizer = torch.optim.LBFGS(
        sought, max_iter=steps, max_eval=2 * steps, history_size=100, line_search_fn="strong_wolfe",
        tolerance_grad=0, tolerance_change=0,
    )  # fmt: skip

    def closure() -> torch.Tensor:
        reached = loss()
        for tensor, gradient in zip(sought, torch.autograd.grad(reached, sought), strict=True):
            tensor.grad = gradient
        return reached

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def variation(images: torch.Tensor) -> torch.Tensor:
    """The total variation by pixel."""
    across = (images[..., 1:] - images[..., :-1]).abs().mean()
    return across + (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
