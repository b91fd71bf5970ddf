"""What all gradient modes share: the loss of each record, the clip factors, and what they refuse."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from medx.schema import MedxError, PrivacyError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
BLOCK = 16  # records whose float32 sum goes into one of float64
ROUNDINGS = 36
NORM_ROUNDINGS = 520


class UnsupportedModuleError(PrivacyError):
    """A module whose per-record gradients a mode cannot compute."""


class NonFiniteGradientError(MedxError):
    """A per-record gradient that is NaN or infinite: the client must abstain from the round."""


@dataclass(frozen=True)
class RecordLoss:
    """A module with its loss per record: ``loss(outputs, labels)`` gives ``[batch]``, without any reduction.

    With ``bf16`` the forward pass runs under bfloat16 autocast; the loss, norms and sums stay in float32.
    With ``views`` > 1 inputs are ``[batch, views, ...]`` and a record's loss is the mean over its own views. With
    ``images`` > 1 a record is a patient: labels are ``[batch, images, ...]``, each of ``views / images`` views, and -1
    where there is no image.
    """

    module: nn.Module
    loss: Loss
    bf16: bool = False
    views: int = 1
    images: int = 1

    def __call__(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """``[batch]`` losses; raises PrivacyError where the loss is reduced and so couples records."""
        if self.images > 1:
            return self._patients(inputs, labels)
        if self.views > 1:
            losses = self._losses(inputs.flatten(0, 1), labels.repeat_interleave(self.views, 0))
            return losses.view(len(labels), self.views).mean(1)
        return self._losses(inputs, labels)

    def _patients(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        each = labels.repeat_interleave(self.views // self.images, 1)
        there = (each >= 0) if each.ndim == 2 else (each >= 0).any(2)
        marked = each.clamp(min=0) if each.ndim == 2 else each  # -1 is a label of several that is not known
        losses = self._losses(inputs.flatten(0, 1), marked.flatten(0, 1)).view(there.shape)
        return (losses * there).sum(1) / there.sum(1).clamp(min=1)

    def _losses(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # Without the cast cache every use of a parameter is its own edge of the graph, so uses can be counted.
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            outputs = self.module(inputs)
        losses = self.loss(outputs.float() if self.bf16 else outputs, labels)
        if losses.shape != labels.shape[:1]:
            raise PrivacyError(
                f"the loss has shape {list(losses.shape)} for {len(labels)} records: "
                "use one loss per record (reduction='none'), since a reduced loss couples records"
            )
        return losses

    def gradient(self, inputs: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        """The gradient of the summed losses, one tensor for each trainable parameter, float32 or wider."""
        loss = self(inputs, labels).sum()
        found = torch.autograd.grad(loss, self.parameters(), allow_unused=True, materialize_grads=True)
        return [gradient.to(sum_dtype(gradient)) for gradient in found]

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters in order of ``module.parameters()``."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def zeros(self) -> list[torch.Tensor]:
        """The sum over no records."""
        return [torch.zeros_like(p, dtype=sum_dtype(p), requires_grad=False) for p in self.parameters()]


def sum_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The type that sums and norms are kept in: float32, or float64 for a float64 module."""
    return torch.promote_types(tensor.dtype, torch.float32)


def squared_norms(rows: torch.Tensor, block: int = 1024) -> torch.Tensor:
    """Squared l2 norms ``[batch]`` in float64 of ``[batch, n]``: float32 within blocks, float64 over them.

    One float32 accumulation over the 2.4 million elements of a 512-channel convolution is off by up to 9e-5.
    """
    if rows.shape[1] <= block:
        short: torch.Tensor = torch.linalg.vector_norm(rows, dim=1)
        return short.double().square()
    whole = rows.shape[1] // block * block
    blocks = rows[:, :whole].reshape(len(rows), -1, block)
    squared: torch.Tensor = torch.linalg.vector_norm(blocks, dim=2).double().square().sum(1)
    if whole == rows.shape[1]:
        return squared
    rest: torch.Tensor = torch.linalg.vector_norm(rows[:, whole:], dim=1).double().square()
    return squared.add_(rest)


def factor_norms(rows: torch.Tensor) -> torch.Tensor:
    """As ``squared_norms``, also of rows so small that their squares are nothing in float32.

    For what is multiplied by another norm, which may be huge. Above 1e-24 the squares that float32 loses, each below
    2^-126, are less than a rounding of the sum.
    """
    squared = squared_norms(rows)
    small = squared < 1e-24
    if small.any():
        squared[small] = rows[small].double().square().sum(1)
    return squared


def gram_rounding(inputs: torch.Tensor, gradient: torch.Tensor, outputs: int, features: int) -> torch.Tensor:
    """``[batch]``: by how much a squared norm from Gram matrices in float64 can be too small; add it to the norm.

    From both diagonals ``[batch, positions]``, which are ``|x_t|^2`` and ``|g_t|^2``. A sum of k products is off by at
    most ``k 2^-53`` of the sum of their sizes in any order (Higham 2002, section 3.1). Here k is features + outputs +
    positions^2, the sizes add up to at most ``(sum_t |x_t| |g_t|)^2``, and 2^-52 leaves room for the diagonals' own.
    """
    sizes = (inputs.clamp(min=0).sqrt() * gradient.clamp(min=0).sqrt()).sum(1)
    return (features + outputs + inputs.shape[1] ** 2) * 2.0**-52 * sizes.square()


def gram_norms(inputs: torch.Tensor, gradient: torch.Tensor, outputs: int, features: int) -> torch.Tensor:
    """``[batch]`` squared norms, rounded up, from Gram matrices ``[batch, positions, positions]`` in float64."""
    diagonals = inputs.diagonal(dim1=1, dim2=2), gradient.diagonal(dim1=1, dim2=2)
    return (inputs * gradient).sum((1, 2)).clamp_(min=0) + gram_rounding(*diagonals, outputs, features)


def clip_factors(squared_norms: torch.Tensor, clip_norm: float) -> torch.Tensor:
    """``min(1, clip_norm / norm)`` from squared norms ``[batch]``, in float64.

    A norm that is not finite gives NaN, never 0, so that the sum shows it and the client abstains.
    """
    squared = squared_norms.double()
    return (clip_norm * squared.rsqrt()).clamp(max=1.0) + 0 * squared  # 0 * inf is NaN, and 0 * NaN too


def sum_of_products(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``[a, b]``: the sum over records of ``left [n, a]`` times ``right [n, b]``, in float64 over blocks of records."""
    whole = len(left) // BLOCK * BLOCK
    if whole == 0:
        return left.mT @ right
    blocks = torch.bmm(left[:whole].view(-1, BLOCK, left.shape[1]).mT, right[:whole].view(-1, BLOCK, right.shape[1]))
    total = blocks.sum(0, dtype=torch.float64)
    if whole < len(left):
        total += left[whole:].mT @ right[whole:]
    return total.to(right.dtype)


def sum_of_rows(factors: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """``[b]``: the sum of ``rows [n, b]``, each times its factor ``[n]``; see ``sum_of_products``."""
    return sum_of_products(factors.to(rows.dtype)[:, None], rows)[0]


def float32_slack(num_records: int) -> float:
    """By what part of the clip norm sums that differ in one of ``num_records`` may differ more, because of float32.

    Taking out what a record says leaves the shapes of all tensors, and so the bits of the other records' gradients. A
    sum of b products in float32 is off by at most ``b 2^-24`` of the sum of their sizes, in any order (Higham 2002,
    section 3.1); blocks of 16 are added up in float64 and rounded once more. So each of the two sums is off by ``17 n
    2^-24`` clip norms at the most, and 36 leave room for the factors' own rounding. A layer's rule that sums over
    positions too does so in float64; ``gram_rounding`` bounds what cancels within a record by 2^26 over the square root
    of the terms, in norms, so ``2^-53`` of it fits into that room. The one record that differs may also be longer than
    its norm says: by at most 513 ``2^-24``, half of a float32 sum of 1024 squares, in any order.
    """
    return (ROUNDINGS * num_records + NORM_ROUNDINGS) * 2.0**-24


def clip_and_sum(per_record: list[torch.Tensor], clip_norm: float) -> list[torch.Tensor]:
    """The clipped sum of materialised gradients: one ``[batch, ...]`` for each parameter."""
    flat = [gradient.flatten(1).to(sum_dtype(gradient)) for gradient in per_record]
    squared = torch.stack([squared_norms(gradient) for gradient in flat]).sum(0)
    factors = clip_factors(squared, clip_norm)
    return [
        sum_of_rows(factors, gradient).view(original.shape[1:])
        for gradient, original in zip(flat, per_record, strict=True)
    ]


def refuse_non_finite(sums: Sequence[torch.Tensor]) -> None:
    """Raise NonFiniteGradientError unless every coordinate of the sums is finite, and so is what they add up to."""
    # Added up, NaN and infinity never become finite again: a tenth of what isfinite costs.
    totals = torch.stack([total.detach().sum() for total in sums])
    if not math.isfinite(totals.sum().item()):
        raise NonFiniteGradientError("a per-record gradient is not finite: the client abstains from this round")
