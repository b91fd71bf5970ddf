"""Per-record gradient norms and weighted sums, layer by layer, from activations and output gradients.

Bu et al. 2023, "Differentially private optimization on large model at small cost" (book-keeping, mixed ghost
norm); Goodfellow 2015 for the linear layer. A rule takes a layer's call and the gradient of the summed loss with
respect to the layer's output ``[batch, ...]``, and answers for each parameter of the layer.
"""

import torch
from torch import nn
from torch.nn import functional

from medx.model.layers import CutPoints
from medx.trainer.gradients.contributions import Call, Contribution, Rows, Rule, gram_is_cheaper, materialised
from medx.trainer.gradients.convolution import conv2d
from medx.trainer.gradients.record_loss import factor_norms, gram_rounding, sum_of_products

Tensor = torch.Tensor
group_norm_backward = torch.ops.aten.native_group_norm_backward.default


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
    left, right = inputs64 @ inputs64.mT, gradient64 @ gradient64.mT
    rounding = gram_rounding(left.diagonal(dim1=1, dim2=2), right.diagonal(dim1=1, dim2=2), outputs, features)
    squared = (left * right).sum((1, 2)).clamp(min=0) + rounding
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
