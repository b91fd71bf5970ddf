"""Clipped sums of records' moments in closed form: no record's own are ever made."""

from dataclasses import replace

import torch

from medx.model.moments import Moments
from medx.trainer.gradients.record_loss import RecordLoss, clip_factors, gram_norms


class MomentSums:
    """``X^T diag(w) X`` and its like, in float64, with weights from norms that inner products give.

    A record's gradient is ``(a c_0 svec(x x^T), b c x^T)``, where c is its loss's slope in the outputs, which are
    linear in the parameters. The inner product of two is ``a^2 c_0 c'_0 (x x')^2 + b^2 (c c') (x x')``: so a patient's
    norm, whose gradient is a sum over images, is known as well.
    """

    def __init__(self, record_loss: RecordLoss) -> None:
        self.record_loss = record_loss

    def clipped_sum(self, inputs: torch.Tensor, labels: torch.Tensor, clip_norm: float) -> list[torch.Tensor]:
        """Sum of clipped per-record gradients, float64; see GradientMode."""
        if len(labels) == 0:
            return self.record_loss.zeros()
        module = self.record_loss.module
        assert isinstance(module, Moments)
        rows = inputs.double().reshape(len(labels), self.record_loss.views, -1)
        slopes = self._slopes(inputs, labels).view(*rows.shape[:2], -1)
        of_features, of_targets = module.of_features * slopes[..., :1], module.of_targets * slopes[..., 1:]
        products = rows @ rows.mT
        squared = (of_features @ of_features.mT * products.square()).sum((1, 2)).clamp(min=0)
        beside = products + module.constant**2
        squared += gram_norms(beside, of_targets @ of_targets.mT, of_targets.shape[2], rows.shape[2] + 1)
        factors = clip_factors(squared, clip_norm)[:, None, None]
        flat = rows.flatten(0, 1)
        gram = flat.mT @ (flat * (factors * of_features).flatten(0, 1))
        return [module.vector(gram), (factors * of_targets).flatten(0, 1).mT @ module.extended(flat)]

    def _slopes(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """``[rows, 1 + targets]``: each record's loss by the outputs for its images, whatever these are."""
        count = len(labels) * self.record_loss.views
        targets = self.record_loss.module.get_parameter("cross").shape[0]
        outputs = torch.zeros(count, 1 + targets, dtype=torch.float64, device=inputs.device, requires_grad=True)
        free = replace(self.record_loss, module=lambda _: outputs)  # type: ignore[arg-type]
        (found,) = torch.autograd.grad(free(inputs, labels).sum(), outputs)
        return found
