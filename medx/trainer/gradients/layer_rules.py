"""Per-record gradient norms and weighted sums, layer by layer, from activations and output gradients.

Bu et al. 2023, "Differentially private optimization on large model at small cost" (book-keeping, mixed ghost
norm); Goodfellow 2015 for the linear layer. A rule takes a layer's call and the gradient of the summed loss with
respect to the layer's output ``[batch, ...]``, and answers for each parameter of the layer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.graph import Node
from torch.nn import functional

from medx.trainer.gradients.record_loss import (
    factor_norms,
    gram_norms,
    squared_norms,
    sum_of_products,
    sum_of_rows,
)

Tensor = torch.Tensor
group_norm_backward = torch.ops.aten.native_group_norm_backward.default


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


def linear(call: Call, gradient: Tensor) -> list[Contribution | Rows]:
    """``nn.Linear`` on ``[batch, ..., in_features]``."""
    module, inputs = call.module, call.inputs
    assert isinstance(module, nn.Linear)
    weight, bias = module.weight, module.bias
    if inputs.dim() > 2:
        inputs, gradient = inputs.flatten(1, -2), gradient.flatten(1, -2)
    contributions: list[Contribution | Rows] = []
    if weight.requires_grad:
        contributions.append(_linear_weight(weight, inputs, gradient))
    if bias is not None and bias.requires_grad:
        contributions.append(materialised(bias, gradient.sum(1) if gradient.dim() > 2 else gradient))
    return contributions


def _linear_weight(weight: Tensor, inputs: Tensor, gradient: Tensor) -> Contribution | Rows:
    def weighted_sum(factors: Tensor) -> Tensor:
        if inputs.dim() == 2:
            return sum_of_products(gradient * factors[:, None], inputs)
        # In float64: what cancels within a record is not bounded by the norm that it is clipped by.
        scaled = (gradient.double() * factors[:, None, None]).flatten(0, -2)
        return (scaled.mT @ inputs.double().flatten(0, -2)).to(weight.dtype)

    if inputs.dim() == 2:
        return Contribution(weight, factor_norms(inputs) * factor_norms(gradient), weighted_sum)
    positions, (outputs, features) = inputs.shape[1], weight.shape
    if not gram_is_cheaper(positions**2 * (outputs + features), weight.numel()):
        return materialised(weight, gradient.mT @ inputs)
    # Terms of both signs cancel in this sum, which in float32 loses digits of the norm.
    inputs64, gradient64 = inputs.double(), gradient.double()
    squared = gram_norms(inputs64 @ inputs64.mT, gradient64 @ gradient64.mT, outputs, features)
    return Contribution(weight, squared, weighted_sum)


def group_norm(call: Call, gradient: Tensor) -> list[Contribution | Rows]:
    """``nn.GroupNorm`` on ``[batch, channels, ...]``."""
    module, inputs = call.module, call.inputs
    assert isinstance(module, nn.GroupNorm)
    (batch, channels), size = inputs.shape[:2], inputs[0, 0].numel()
    mean, deviation = _group_moments(call, module)
    # Seen as one record of batch x channels channels, its native backward gives each record's own gradient.
    wide = (1, batch * channels, size)
    _, weight, bias = group_norm_backward(
        gradient.reshape(wide), inputs.reshape(wide), mean.view(1, -1), deviation.view(1, -1), None,
        1, batch * channels, size, batch * module.num_groups, [False, True, True],
    )  # fmt: skip
    return _affine(module.weight, module.bias, weight.view(batch, -1), bias.view(batch, -1))


def _group_moments(call: Call, module: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Means and inverse standard deviations ``[batch, groups]``: the forward pass's own where it kept them."""
    inputs = call.inputs
    if type(call.node).__name__ == "NativeGroupNormBackward0":
        saved: tuple[Tensor, Tensor] = (call.node._saved_result1, call.node._saved_result2)  # type: ignore[union-attr]
        if saved[0].dtype == inputs.dtype:
            return saved
    batch, channels = inputs.shape[:2]
    _, mean, deviation = torch.native_group_norm(
        inputs.contiguous(), None, None, batch, channels, inputs[0, 0].numel(), module.num_groups, module.eps
    )
    return mean, deviation


def layer_norm(call: Call, gradient: Tensor) -> list[Contribution | Rows]:
    """``nn.LayerNorm`` on ``[batch, ..., *normalized_shape]``."""
    module, inputs = call.module, call.inputs
    assert isinstance(module, nn.LayerNorm)
    shape = list(module.normalized_shape)
    scaled = functional.layer_norm(inputs, shape, eps=module.eps) * gradient
    per_record = [value.reshape(len(inputs), -1, *shape).sum(1) for value in (scaled, gradient)]
    return _affine(module.weight, module.bias, *per_record)


def _affine(
    weight: Tensor, bias: Tensor | None, weight_gradient: Tensor, bias_gradient: Tensor
) -> list[Contribution | Rows]:
    pairs = ((weight, weight_gradient), (bias, bias_gradient))
    return [materialised(p, gradient) for p, gradient in pairs if p is not None and p.requires_grad]


def added_parameter(call: Call, gradient: Tensor) -> list[Contribution | Rows]:
    """A module whose output is its one parameter plus (or minus) a broadcast function of the input."""
    (parameter,) = call.module.parameters(recurse=False)
    extra = gradient.dim() - 1 - parameter.dim()
    per_record = gradient.sum(tuple(range(1, 1 + extra))) if extra else gradient
    kept = [dim + 1 for dim, size in enumerate(parameter.shape) if size == 1 and per_record.shape[dim + 1] != 1]
    return [materialised(parameter, per_record.sum(kept, keepdim=True) if kept else per_record)]
