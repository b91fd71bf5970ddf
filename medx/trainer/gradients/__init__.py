"""Ways to get the sum of clipped per-record gradients: one contract, and the modes that leave it to torch."""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch.func import functional_call, grad, vmap

from medx.schema import PrivacyError
from medx.trainer.base import GradientMode
from medx.trainer.gradients.book_keeping import BookKeeping
from medx.trainer.gradients.hooks import Hooks
from medx.trainer.gradients.record_loss import (
    RecordLoss,
    UnsupportedModuleError,
    clip_and_sum,
    clip_factors,
)

GradientModeName = Literal["auto", "book_keeping", "hooks", "vmap", "naive"]


class Auto:
    """Book-keeping where every trained layer has a rule and is used once, else Opacus's hooks."""

    def __init__(self, record_loss: RecordLoss) -> None:
        self.record_loss = record_loss
        self.chosen: GradientMode
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
