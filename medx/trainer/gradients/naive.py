"""The reference: one backward pass for every record."""

import torch

from medx.trainer.gradients.record_loss import RecordLoss, clip_factors, sum_dtype


class Naive:
    """Per-record loop (Abadi et al. 2016, algorithm 1): slow, right for every module; float64 in, float64 out."""

    def __init__(self, record_loss: RecordLoss) -> None:
        self.record_loss = record_loss

    def clipped_sum(self, inputs: torch.Tensor, labels: torch.Tensor, clip_norm: float) -> list[torch.Tensor]:
        """Sum of clipped per-record gradients; see GradientMode."""
        sums = [zero.double() for zero in self.record_loss.zeros()]
        for row in range(len(labels)):
            gradients = self._gradient(inputs[row : row + 1], labels[row : row + 1])
            squared = torch.stack([g.double().square().sum() for g in gradients]).sum()
            factor = clip_factors(squared, clip_norm)
            for total, gradient in zip(sums, gradients, strict=True):
                total.add_(factor * gradient)
        return [total.to(zero.dtype) for total, zero in zip(sums, self.record_loss.zeros(), strict=True)]

    def _gradient(self, inputs: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        parameters = self.record_loss.parameters()
        gradients = torch.autograd.grad(
            self.record_loss(inputs, labels).sum(), parameters, allow_unused=True, materialize_grads=True
        )
        return [g.to(sum_dtype(g)) for g in gradients]
