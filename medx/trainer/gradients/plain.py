"""The plain gradient, for training without privacy."""

import math

import torch

from medx.schema import PrivacyError
from medx.trainer.gradients.record_loss import RecordLoss, sum_dtype


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
        losses = self.record_loss(inputs, labels)
        gradients = torch.autograd.grad(
            losses.sum(), self.record_loss.parameters(), allow_unused=True, materialize_grads=True
        )
        return [gradient.to(sum_dtype(gradient)) for gradient in gradients]
