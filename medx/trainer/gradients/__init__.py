"""Ways to get the sum of clipped per-record gradients, and the trial of one on the very model of a run.

The modes that leave the work to torch stand here; book-keeping and Opacus's hooks have files of their own.
"""

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal, Protocol

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from medx.model import Objective
from medx.model.moments import Moments
from medx.privacy.preflight import check_gradients, perturbed
from medx.schema import PrivacyError
from medx.trainer.gradients.book_keeping import BookKeeping
from medx.trainer.gradients.hooks import Hooks
from medx.trainer.gradients.moment_sums import MomentSums
from medx.trainer.gradients.record_loss import (
    RecordLoss,
    UnsupportedModuleError,
    clip_and_sum,
    clip_factors,
)

GradientModeName = Literal["auto", "book_keeping", "hooks", "vmap", "naive"]
CUT = 0.7  # of the median norm
OTHERS: tuple[GradientModeName, ...] = ("book_keeping", "hooks", "vmap", "naive")


class GradientMode(Protocol):
    """A way to get the sum of clipped per-record gradients; built once for a module and its loss per record."""

    def clipped_sum(self, inputs: torch.Tensor, labels: torch.Tensor, clip_norm: float) -> list[torch.Tensor]:
        """Sum over the records of the micro-batch of ``min(1, clip_norm / norm) * gradient``, float32.

        Inputs ``[batch, ...]`` and labels ``[batch]``; one tensor for every trainable parameter, in order of
        ``module.parameters()``. Norms are over all parameters together, in float32. An empty batch gives zeros.
        """
        ...


class Auto:
    """Book-keeping where every trained layer has a rule and is used once, else hooks; of moments a closed form."""

    def __init__(self, record_loss: RecordLoss) -> None:
        self.record_loss = record_loss
        self.chosen: GradientMode
        if isinstance(record_loss.module, Moments):
            self.chosen = MomentSums(record_loss)
            return
        try:
            self.chosen = BookKeeping(record_loss)
        except UnsupportedModuleError:
            self.chosen = Hooks(record_loss)

    def clipped_sum(self, inputs: torch.Tensor, labels: torch.Tensor, clip_norm: float) -> list[torch.Tensor]:
        """Sum of clipped per-record gradients; see GradientMode."""
        try:
            return self.chosen.clipped_sum(inputs, labels, clip_norm)
        except UnsupportedModuleError:
            # Only a forward pass shows that a layer is called twice.
            if not isinstance(self.chosen, BookKeeping):
                raise
            self.chosen = Hooks(self.record_loss)
            return self.chosen.clipped_sum(inputs, labels, clip_norm)


class Naive:
    """Per-record loop (Abadi et al. 2016, algorithm 1): slow, right for every module; float64 in, float64 out."""

    def __init__(self, record_loss: RecordLoss) -> None:
        self.record_loss = record_loss

    def clipped_sum(self, inputs: torch.Tensor, labels: torch.Tensor, clip_norm: float) -> list[torch.Tensor]:
        """Sum of clipped per-record gradients; see GradientMode."""
        sums = [zero.double() for zero in self.record_loss.zeros()]
        for row in range(len(labels)):
            gradients = self.record_loss.gradient(inputs[row : row + 1], labels[row : row + 1])
            squared = torch.stack([g.double().square().sum() for g in gradients]).sum()
            factor = clip_factors(squared, clip_norm)
            for total, gradient in zip(sums, gradients, strict=True):
                total.add_(factor * gradient)
        return [total.to(zero.dtype) for total, zero in zip(sums, self.record_loss.zeros(), strict=True)]


class Plain:
    """One backward pass over the sum of losses: nothing is clipped, so only an infinite clip norm is accepted."""

    def __init__(self, record_loss: RecordLoss) -> None:
        self.record_loss = record_loss

    def clipped_sum(self, inputs: torch.Tensor, labels: torch.Tensor, clip_norm: float) -> list[torch.Tensor]:
        """Sum of per-record gradients; raises PrivacyError for a finite ``clip_norm``."""
        if clip_norm != math.inf:
            raise PrivacyError(f"gradient_mode=plain clips nothing, but clip_norm={clip_norm}: use another mode")
        if len(labels) == 0:
            return self.record_loss.zeros()
        return self.record_loss.gradient(inputs, labels)


class Vmap:
    """``vmap(grad(loss))`` of the functional module: general, and holds every per-record gradient in memory."""

    def __init__(self, record_loss: RecordLoss) -> None:
        self.record_loss = record_loss
        # torch tells of operations that it does one by one, once a process, among what a person reads of the run.
        warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")

    def clipped_sum(self, inputs: torch.Tensor, labels: torch.Tensor, clip_norm: float) -> list[torch.Tensor]:
        """Sum of clipped per-record gradients; see GradientMode."""
        if len(labels) == 0:
            return self.record_loss.zeros()
        module = self.record_loss.module
        trainable = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}

        def loss(parameters: dict[str, torch.Tensor], row: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            forward = partial(functional_call, module, parameters)
            single = replace(self.record_loss, module=lambda batch: forward((batch,)))  # type: ignore[arg-type]
            return single(row.unsqueeze(0), label.unsqueeze(0)).sum()

        per_record = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(trainable, inputs, labels)
        return clip_and_sum(list(per_record.values()), clip_norm)


MODES: dict[str, Callable[[RecordLoss], GradientMode]] = {
    "auto": Auto,
    "book_keeping": BookKeeping,
    "hooks": Hooks,
    "vmap": Vmap,
    "naive": Naive,
}


def build_mode(name: GradientModeName, record_loss: RecordLoss, private: bool) -> GradientMode:
    """The mode of this name; without privacy nothing is clipped and the plain gradient serves."""
    return MODES[name](record_loss) if private else Plain(record_loss)


def try_mode(
    mode: GradientModeName,
    module: nn.Module,
    objective: Objective,
    *,
    views: int,
    shape: torch.Size,
    num_classes: int,
    images: int = 1,
    several: bool = False,
) -> None:
    """Refuse a gradient mode that fails on ``module``, or clips otherwise than the naive loop; names those that do not.

    Tried on a copy without dropout and with weights off zero, as a last layer at zero would hide every layer below, on
    the CPU, with three random inputs of ``shape``, ``views`` of each; or with three patients of ``images``, of whom one
    lacks the last. With ``several`` labels a record each is yes, no or not known.
    """
    seen = views * images
    loss = RecordLoss(without_dropout(perturbed(module).float()), objective.loss, views=seen, images=images)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, *((seen,) if seen > 1 else ()), *shape, generator=generator)
    labels = torch.arange(3) % num_classes
    if several:  # 0, 1 and not known
        labels = (labels[:, None] + torch.arange(num_classes)) % 3 - 1
    if images > 1:
        labels = labels[:, None].repeat(1, images, *[1] * several)
        labels[0, -1] = -1
    problem = problem_of(mode, loss, inputs, labels)
    if problem is None:
        return
    right = [other for other in OTHERS if other != mode and problem_of(other, loss, inputs, labels) is None]
    accepted = f"trainer.gradient_mode={' or '.join(right)}" if right else "another model"
    raise PrivacyError(
        f"trainer.gradient_mode={mode}: gives no gradient per record of this model ({problem}); accepted: {accepted}"
    )


def problem_of(mode: GradientModeName, loss: RecordLoss, inputs: torch.Tensor, labels: torch.Tensor) -> str | None:
    """Why this mode cannot train the module of ``loss``, in one line; None where it clips as the naive loop does."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of slow operations: here a mode is only asked whether it is right
        try:
            clip_norm = cutting_norm(loss, inputs, labels)
            sums = build_mode(mode, loss, private=True).clipped_sum(inputs, labels, clip_norm)
            check_gradients(loss.module, loss, sums, inputs=inputs, labels=labels, clip_norm=clip_norm)
        except Exception as error:  # of whatever the libraries under the modes make of an unknown module
            return next(iter(str(error).splitlines()), type(error).__name__)
    return None


def cutting_norm(loss: RecordLoss, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """A clip norm below the median norm of the records' gradients, whatever the run's: it surely cuts some records.

    At the median itself, records of nearly equal norms would all be spared, and a mode that takes something else for a
    record would give the right sum.
    """
    alone = [Naive(loss).clipped_sum(inputs[i : i + 1], labels[i : i + 1], math.inf) for i in range(len(inputs))]
    norms = [math.sqrt(sum(float(g.double().square().sum()) for g in gradients)) for gradients in alone]
    return CUT * sorted(norms)[len(norms) // 2] or 1.0


def without_dropout(module: nn.Module) -> nn.Module:
    """A copy in training mode, on the CPU, whose dropout drops nothing, so that two passes are equal."""
    probe = copy.deepcopy(module).cpu().train()
    for part in probe.modules():
        for name in ("p", "dropout"):  # of Dropout, and of recurrent and attention layers
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
    return probe
