"""Inverting gradients (Geiping et al. 2020): images whose gradient is the received one.

What the attack is given is public, model, configuration and images of the kind, but for the gradient. In place of
signed Adam from noise and the cosine of the whole gradient: L-BFGS from the mean of the public images, with the total
variation taken back in stages, and every layer's gradient in units of its own length. At 64 pixels the start decides.
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

SCALE = 1e4  # of the loss: its differences stay above float32's rounding of one
OUTSIDE = 1e-2  # weight of what lies beyond black and white
APART = 0.05  # of white: what tells the starts of several records apart
NOTHING = 1e-9  # of the gradient's length: a layer with less has none, as in the first round, where the head is zero


@dataclass(frozen=True)
class Search:
    """How an attack looks: ``steps`` of L-BFGS at each weight of the total ``variation``, one after the other.

    ``layered`` counts every layer's gradient in units of its own length. Where there is noise, which is alike on all
    weights, that would be wrong, and small weights at the end would fit it: see ``NOISY``.
    """

    variation: tuple[float, ...] = (1e-2, 3e-3, 1e-3, 1e-5)
    steps: int = 120
    layered: bool = True
    seed: int = 0


NOISY = Search(variation=(3e-2,), layered=False)


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

    ``splits`` gives shape and normalisation of images, and the validation images, which stand for public ones. The
    labels of several records are taken as known, which favours the attack; of one, see ``label_of``.
    """

    def __init__(
        self, module: nn.Module, objective: Objective, splits: DataSplits, step: Step, labels: Sequence[int]
    ) -> None:
        self._module, self._objective, self._step = module, objective, step
        self._names = [name for name, _ in trained_parameters(module)]
        self._labels = torch.tensor(list(labels))
        self._mean, self._std = (torch.tensor(values).view(1, -1, 1, 1) for values in (splits.mean, splits.std))
        images = splits.validation.images
        white = int(np.iinfo(images.dtype).max)
        self._public = torch.from_numpy(images).permute(0, 3, 1, 2).float() / white

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
        """What all stages lead to, at the contrast of public images."""
        generator = torch_generator(derive_seed(how.seed, "inversion"))
        start = self._public.mean(0).expand(len(self._labels), -1, -1, -1)
        if len(self._labels) > 1:
            start = start + APART * torch.randn(start.shape, generator=generator)
        inputs = self._normalised(start).requires_grad_()
        distance = self._distances(torch.float32, layered=how.layered)
        for weight in how.variation:
            descend(lambda weight=weight: self._loss(distance, inputs, weight), inputs, how.steps)  # type: ignore[misc]
        pixels = self._at_usual_contrast(inputs.detach() * self._std + self._mean)
        images = pixels.clamp(0, 1).permute(0, 2, 3, 1).numpy()
        return Found(images, tuple(self._labels.tolist()), distance(inputs).item())

    def _loss(self, distance: "Distance", inputs: torch.Tensor, weight: float) -> torch.Tensor:
        outside = ((inputs * self._std + self._mean - 0.5).abs() - 0.5).clamp(min=0).square().mean()
        return SCALE * (distance(inputs) + weight * variation(inputs) + OUTSIDE * outside)

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels - self._mean) / self._std

    def _at_usual_contrast(self, pixels: torch.Tensor) -> torch.Tensor:
        """The images at the median contrast of public ones.

        A convolution without bias and the norm behind it give one gradient at every contrast about the mean of the
        normalisation, up to the floor of the norm's variance: that the gradient as good as does not tell.
        """

        def contrast(some: torch.Tensor) -> torch.Tensor:
            return (some - self._mean).square().mean((1, 2, 3), keepdim=True).sqrt()

        factor = contrast(self._public).median() / contrast(pixels).clamp(min=torch.finfo(torch.float32).tiny)
        return (pixels - self._mean) * factor + self._mean

    def _distances(self, kind: torch.dtype, *, layered: bool = True) -> "Distance":
        return Distance(
            self._module, self._names, self._objective, self._step, labels=self._labels, kind=kind, layered=layered
        )


class Distance:
    """The squared distance between directions, of the whole gradient, so that clipping does not move it.

    ``layered``: the mean over layers, each in units of what the layer has of the received one.
    """

    def __init__(
        self,
        module: nn.Module,
        names: Sequence[str],
        objective: Objective,
        step: Step,
        *,
        labels: torch.Tensor,
        kind: torch.dtype,
        layered: bool,
    ) -> None:
        self._module, self._objective, self._labels = module, objective, labels
        self._weights = {n: part.to(kind).requires_grad_() for n, part in step.model.parameter_tensors().items()}
        self._trained = [self._weights[name] for name in names]
        direction = torch.from_numpy(step.gradient / np.linalg.norm(step.gradient)).to(kind)
        self._wanted = [step.model.layout.split(direction)[name] for name in names]
        self._units = [part.norm() if layered else torch.ones((), dtype=kind) for part in self._wanted]

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Of these images' mean gradient from the received one."""
        outputs = torch.func.functional_call(self._module, self._weights, (inputs,))
        loss = self._objective.loss(outputs, self._labels).mean()
        found = torch.autograd.grad(loss, self._trained, create_graph=True)
        whole = torch.stack([part.square().sum() for part in found]).sum().sqrt()
        layers = zip(found, self._wanted, self._units, strict=True)
        apart = [((p / whole - w) / unit).square().sum() for p, w, unit in layers if unit > NOTHING]
        return torch.stack(apart).mean()


def descend(loss: Callable[[], torch.Tensor], sought: torch.Tensor, steps: int) -> None:
    """L-BFGS, in place, for so many steps: no tolerance ends it earlier."""
    optimizer = torch.optim.LBFGS(
        [sought], max_iter=steps, max_eval=2 * steps, history_size=100, line_search_fn="strong_wolfe",
        tolerance_grad=0, tolerance_change=0,
    )  # fmt: skip

    def closure() -> torch.Tensor:
        reached = loss()
        (sought.grad,) = torch.autograd.grad(reached, [sought])
        return reached

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def variation(images: torch.Tensor) -> torch.Tensor:
    """The total variation by pixel."""
    across = (images[..., 1:] - images[..., :-1]).abs().mean()
    return across + (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
