"""Per-record gradient norms and weighted sums, layer by layer, from activations and output gradients.

Bu et al. 2023, "Differentially private optimization on large model at small cost" (book-keeping, mixed ghost
norm); Goodfellow 2015 for the linear layer. A rule takes a module, its input ``[batch, ...]`` and the gradient of
the summed loss with respect to its output ``[batch, ...]``, and answers for each parameter of the module.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from medx.model.heads import CutPoints
from medx.trainer.gradients.record_loss import squared_norms

Tensor = torch.Tensor


@dataclass(frozen=True)
class Contribution:
    """One parameter's part: squared gradient norms ``[batch]`` (float64) and the sum weighted by ``[batch]``."""

    parameter: Tensor
    squared_norms: Tensor
    weighted_sum: Callable[[Tensor], Tensor]


Rule = Callable[[nn.Module, Tensor, Tensor], list[Contribution]]


def materialised(parameter: Tensor, per_record: Tensor) -> Contribution:
    """From the per-record gradients themselves, ``[batch, *parameter.shape]``."""
    flat = per_record.reshape(len(per_record), -1)
    return Contribution(parameter, squared_norms(flat), lambda factors: (factors @ flat).view_as(parameter))


def linear(module: nn.Module, inputs: Tensor, gradient: Tensor) -> list[Contribution]:
    """``nn.Linear`` on ``[batch, ..., in_features]``."""
    assert isinstance(module, nn.Linear)
    weight, bias = module.weight, module.bias
    if inputs.dim() > 2:
        inputs, gradient = inputs.flatten(1, -2), gradient.flatten(1, -2)
    contributions = []
    if weight.requires_grad:
        contributions.append(_linear_weight(weight, inputs, gradient))
    if bias is not None and bias.requires_grad:
        contributions.append(materialised(bias, gradient.sum(1) if gradient.dim() > 2 else gradient))
    return contributions


def _linear_weight(weight: Tensor, inputs: Tensor, gradient: Tensor) -> Contribution:
    def weighted_sum(factors: Tensor) -> Tensor:
        scaled = gradient * factors.view(-1, *[1] * (gradient.dim() - 1))
        return scaled.flatten(0, -2).mT @ inputs.flatten(0, -2)

    if inputs.dim() == 2:
        return Contribution(weight, squared_norms(inputs) * squared_norms(gradient), weighted_sum)
    positions, (outputs, features) = inputs.shape[1], weight.shape
    if positions * (outputs + features) > 8 * outputs * features / positions:
        return materialised(weight, gradient.mT @ inputs)
    # Terms of both signs cancel in this sum, which in float32 loses digits of the norm.
    inputs64, gradient64 = inputs.double(), gradient.double()
    squared = ((inputs64 @ inputs64.mT) * (gradient64 @ gradient64.mT)).sum((1, 2)).clamp(min=0)
    return Contribution(weight, squared, weighted_sum)


def conv2d(module: nn.Module, inputs: Tensor, gradient: Tensor) -> list[Contribution]:
    """``nn.Conv2d`` with zero padding and one group, on ``[batch, channels, height, width]``."""
    assert isinstance(module, nn.Conv2d)
    contributions = []
    if module.weight.requires_grad:
        contributions.append(_conv2d_weight(module, inputs, gradient))
    if module.bias is not None and module.bias.requires_grad:
        contributions.append(materialised(module.bias, gradient.sum((2, 3))))
    return contributions


def _conv2d_weight(module: nn.Conv2d, inputs: Tensor, gradient: Tensor) -> Contribution:
    weight = module.weight
    if not _gram_is_cheaper(module, inputs, gradient):
        return materialised(weight, _conv2d_per_record(module, inputs, gradient))

    def weighted_sum(factors: Tensor) -> Tensor:
        return _weight_gradient(module, inputs, gradient * factors.view(-1, 1, 1, 1), tuple(weight.shape), 1)

    return Contribution(weight, _conv2d_gram(module, inputs, gradient), weighted_sum)


def _gram_is_cheaper(module: nn.Conv2d, inputs: Tensor, gradient: Tensor) -> bool:
    """Multiply-adds of the Gram matrices against 8 for each materialised element (fitted on one CPU core)."""
    (top, left), channels = _padding(module), inputs.shape[1]
    pixels = (inputs.shape[2] + 2 * top) * (inputs.shape[3] + 2 * left)
    positions = gradient.shape[2] * gradient.shape[3]
    kernel = module.kernel_size[0] * module.kernel_size[1]
    gram = pixels**2 * channels + positions**2 * (gradient.shape[1] + kernel)
    return gram < 8 * module.weight.numel()


def _conv2d_gram(module: nn.Conv2d, inputs: Tensor, gradient: Tensor) -> Tensor:
    """Squared norms ``[batch]`` without the gradients: ``sum_ts <g_t, g_s> <patch_t, patch_s>``.

    The patches' Gram matrix is a sum of shifted windows of the pixels' one. All of it is in float64: the
    gradients that come out of a normalisation layer nearly cancel over positions, and squares lose twice the digits.
    """
    (top, left), (batch, _, out_height, out_width) = _padding(module), gradient.shape
    padded = functional.pad(inputs.double(), (left, left, top, top))
    height, width = padded.shape[2:]
    pixels = padded.flatten(2)
    gram = (pixels.mT @ pixels).view(batch, height, width, height, width)
    rows, columns = (
        [slice(offset * dilation, offset * dilation + (count - 1) * stride + 1, stride) for offset in range(kernel)]
        for kernel, dilation, stride, count in zip(
            module.kernel_size, module.dilation, module.stride, (out_height, out_width), strict=True
        )
    )
    patches = gram.new_zeros(batch, out_height, out_width, out_height, out_width)
    for row in rows:
        for column in columns:
            patches += gram[:, row, column, row, column]
    flat = gradient.flatten(2).double()
    return (patches.flatten(3).flatten(1, 2) * (flat.mT @ flat)).sum((1, 2)).clamp(min=0)


def _conv2d_per_record(module: nn.Conv2d, inputs: Tensor, gradient: Tensor) -> Tensor:
    """``[batch, out, in, kernel, kernel]``: one group for each record, or a batched product for small maps."""
    batch, shape = len(inputs), module.weight.shape
    if gradient.shape[2] * gradient.shape[3] <= 196:
        return (gradient.flatten(2) @ _patches(module, inputs).mT).view(batch, *shape)
    grouped = _weight_gradient(
        module,
        inputs.reshape(1, -1, *inputs.shape[2:]),
        gradient.reshape(1, -1, *gradient.shape[2:]),
        (batch * shape[0], *shape[1:]),
        batch,
    )
    return grouped.view(batch, *shape)


def _patches(module: nn.Conv2d, inputs: Tensor) -> Tensor:
    """``[batch, channels * kernel, positions]``: strided windows copied once, about twice as fast as unfold."""
    (top, left), (height, width) = _padding(module), module.kernel_size
    (down, right), (along, across) = module.stride, module.dilation
    padded = functional.pad(inputs, (left, left, top, top))
    windows = padded.unfold(2, along * (height - 1) + 1, down).unfold(3, across * (width - 1) + 1, right)
    windows = windows[..., ::along, ::across].permute(0, 1, 4, 5, 2, 3)
    return windows.reshape(len(inputs), inputs.shape[1] * height * width, -1)


def _weight_gradient(
    module: nn.Conv2d, inputs: Tensor, gradient: Tensor, shape: tuple[int, ...], groups: int
) -> Tensor:
    weight = inputs.new_empty(1).expand(shape)  # only its shape is read
    backward = torch.ops.aten.convolution_backward
    result: Tensor = backward(
        gradient, inputs, weight, None, module.stride, _padding(module), module.dilation, False, [0, 0], groups,
        [False, True, False],
    )[1]  # fmt: skip
    return result


def _padding(module: nn.Conv2d) -> tuple[int, int]:
    height, width = (int(size) for size in module.padding)
    return height, width


def group_norm(module: nn.Module, inputs: Tensor, gradient: Tensor) -> list[Contribution]:
    """``nn.GroupNorm`` on ``[batch, channels, ...]``."""
    assert isinstance(module, nn.GroupNorm)
    (batch, channels), groups = inputs.shape[:2], module.num_groups
    flat, size = inputs.contiguous(), inputs[0, 0].numel()
    _, mean, rstd = torch.native_group_norm(flat, None, None, batch, channels, size, groups, module.eps)
    # Seen as one record of batch x channels channels, its native backward gives each record's own gradient.
    backward = torch.ops.aten.native_group_norm_backward
    ones, wide = inputs.new_ones(batch * channels), (1, batch * channels, size)
    _, weight, bias = backward(
        gradient.reshape(wide), flat.view(wide), mean.view(1, -1), rstd.view(1, -1), ones,
        1, batch * channels, size, batch * groups, [False, True, True],
    )  # fmt: skip
    return _affine(module.weight, module.bias, weight.view(batch, -1), bias.view(batch, -1))


def layer_norm(module: nn.Module, inputs: Tensor, gradient: Tensor) -> list[Contribution]:
    """``nn.LayerNorm`` on ``[batch, ..., *normalized_shape]``."""
    assert isinstance(module, nn.LayerNorm)
    shape = list(module.normalized_shape)
    scaled = functional.layer_norm(inputs, shape, eps=module.eps) * gradient
    per_record = [value.reshape(len(inputs), -1, *shape).sum(1) for value in (scaled, gradient)]
    return _affine(module.weight, module.bias, *per_record)


def _affine(weight: Tensor, bias: Tensor | None, weight_gradient: Tensor, bias_gradient: Tensor) -> list[Contribution]:
    pairs = ((weight, weight_gradient), (bias, bias_gradient))
    return [materialised(p, gradient) for p, gradient in pairs if p is not None and p.requires_grad]


def added_parameter(module: nn.Module, inputs: Tensor, gradient: Tensor) -> list[Contribution]:
    """A module whose output is its one parameter plus (or minus) a broadcast function of the input."""
    (parameter,) = module.parameters(recurse=False)
    extra = gradient.dim() - 1 - parameter.dim()
    per_record = gradient.sum(tuple(range(1, 1 + extra))) if extra else gradient
    kept = [dim + 1 for dim, size in enumerate(parameter.shape) if size == 1 and per_record.shape[dim + 1] != 1]
    return [materialised(parameter, per_record.sum(kept, keepdim=True) if kept else per_record)]


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear,
    nn.Conv2d: conv2d,
    nn.GroupNorm: group_norm,
    nn.LayerNorm: layer_norm,
    CutPoints: added_parameter,
}


def register_rule(module_type: type[nn.Module], rule: Rule) -> None:
    """Teach the book-keeping mode another layer; ``rule`` must hold for that exact type."""
    RULES[module_type] = rule


def find_rule(module: nn.Module) -> Rule | None:
    """The rule for this exact type and these options, or None; a subclass may compute something else."""
    if isinstance(module, nn.Conv2d) and (
        module.groups != 1 or module.padding_mode != "zeros" or isinstance(module.padding, str)
    ):
        return None
    return RULES.get(type(module))
