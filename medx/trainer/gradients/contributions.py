"""What a layer's rule is given and what it answers, for the clipped sum by book-keeping."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.graph import Node

from medx.trainer.gradients.record_loss import squared_norms, sum_of_rows

Tensor = torch.Tensor


@dataclass(frozen=True)
class Call:
    """One forward call of a layer: its input ``[batch, ...]`` and the node of the graph that made its output."""

    module: nn.Module
    inputs: Tensor
    node: Node | None


@dataclass(frozen=True)
class Contribution:
    """One parameter's part: squared gradient norms ``[batch]`` (float64) and the sum weighted by ``[batch]``.

    ``weighted_sum`` holds what it needs, and no more: activation and output gradient, or per-record gradients.
    """

    parameter: Tensor
    squared_norms: Tensor
    weighted_sum: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rows:
    """One small parameter's per-record gradients ``[batch, n]``: those of all layers are normed and summed at once."""

    parameter: Tensor
    per_record: Tensor


Rule = Callable[[Call, Tensor], list[Contribution | Rows]]
FEW = 1024  # numbers of a parameter whose own operations would cost more than the arithmetic in them


def materialised(parameter: Tensor, per_record: Tensor) -> Contribution | Rows:
    """From the per-record gradients themselves, ``[batch, *parameter.shape]``."""
    flat = per_record.flatten(1)
    if flat.shape[1] <= FEW:
        return Rows(parameter, flat)
    return Contribution(parameter, squared_norms(flat), lambda factors: sum_of_rows(factors, flat).view_as(parameter))


def gram_is_cheaper(multiply_adds: int, weights: int) -> bool:
    """Whether float64 Gram matrices beat writing, squaring and summing ``weights`` gradients of every record.

    The product that materialises costs as much as the weighted sum that Gram matrices need besides, so it drops
    out; 16 is fitted on one CPU core (60 ps a multiply-add, 1 ns an element).
    """
    return multiply_adds < 16 * weights
