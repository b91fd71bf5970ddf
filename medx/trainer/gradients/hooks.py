"""Per-record gradients by Opacus's grad samplers, with samplers for this package's own layers."""

import copy
from contextlib import suppress
from typing import Any

import torch
from opacus.grad_sample import GradSampleHooks, register_grad_sampler
from opacus.grad_sample.conv import compute_conv_grad_sample
from opacus.grad_sample.functorch import prepare_layer
from torch import nn

from medx.model.layers import CutPoints, StandardisedConv2d, raw_weight_gradient
from medx.trainer.gradients.record_loss import RecordLoss, UnsupportedModuleError, clip_and_sum


class _TensorHooks(GradSampleHooks):  # type: ignore[misc]
    """Opacus's hooks on tensors instead of modules.

    A module's backward hook makes its output a view, which the in-place additions of residual networks forbid;
    a tensor's hook sees the gradient from before the in-place change.
    """

    def add_hooks(
        self, *, loss_reduction: str = "sum", batch_first: bool = True, force_functorch: bool = False
    ) -> None:
        self._module.autograd_grad_sample_hooks = self.autograd_grad_sample_hooks = []
        for module in self.iterate_submodules(self._module):
            if force_functorch or type(module) not in self.GRAD_SAMPLERS:
                prepare_layer(module, batch_first=batch_first)
            self.autograd_grad_sample_hooks.append(module.register_forward_hook(self._capture))
        self.enable_hooks()

    def _capture(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if not isinstance(output, torch.Tensor):
            raise UnsupportedModuleError(f"gradient_mode=hooks: {type(module).__name__} gives more than one tensor")
        # Opacus cuts patches by strides that hold for contiguous images alone: others gave wrong gradients.
        self.capture_activations_hook(module, tuple(tensor.contiguous() for tensor in inputs), output)

        def backward(gradient: torch.Tensor) -> None:
            self.capture_backprops_hook(module, None, (gradient,), loss_reduction="sum", batch_first=True)

        output.register_hook(backward)  # type: ignore[no-untyped-call]


class Hooks:
    """Opacus's GradSampleHooks, attached for the length of one call and removed after it; norms in float32."""

    def __init__(self, record_loss: RecordLoss) -> None:
        self.record_loss = record_loss
        self._checked = False

    def clipped_sum(self, inputs: torch.Tensor, labels: torch.Tensor, clip_norm: float) -> list[torch.Tensor]:
        """Sum of clipped per-record gradients; raises UnsupportedModuleError where Opacus has no answer."""
        module = self.record_loss.module
        if len(labels) == 0:
            return self.record_loss.zeros()
        if not module.training:
            raise UnsupportedModuleError("gradient_mode=hooks needs the module in training mode; it is in eval mode")
        try:
            hooks = _TensorHooks(module, loss_reduction="sum")
        except NotImplementedError as error:
            raise UnsupportedModuleError(f"gradient_mode=hooks: {error}") from error
        try:
            per_record = self._per_record(inputs, labels)
        finally:
            hooks.cleanup()
            _forget_activations(module)
        return clip_and_sum(per_record, clip_norm)

    def _per_record(self, inputs: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        parameters, views = self.record_loss.parameters(), self.record_loss.views
        losses = self.record_loss(inputs, labels)
        used = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
        gradients = []
        for parameter, gradient in zip(parameters, used, strict=True):
            sample = parameter.grad_sample  # type: ignore[attr-defined]
            if sample is None:
                sample = parameter.new_zeros(len(labels) * views, *parameter.shape)
            if not self._checked and gradient is not None:
                _refuse_partial(sample, gradient)
            gradients.append(sample.view(len(labels), views, *parameter.shape).sum(1) if views > 1 else sample)
        self._checked = True
        return gradients


def _refuse_partial(per_record: Any, total: torch.Tensor) -> None:
    """Per-record gradients must add up to the ordinary one; a weight used by a function escapes the hooks."""
    whole = isinstance(per_record, torch.Tensor)
    if whole and torch.isfinite(total).all():
        difference = torch.linalg.vector_norm(per_record.float().sum(0) - total)
        whole = bool(difference <= 0.05 * torch.linalg.vector_norm(total) + 1e-6)
    if not whole:
        raise UnsupportedModuleError(
            "gradient_mode=hooks: a parameter is used outside its module's forward; use gradient_mode=vmap"
        )


def _forget_activations(module: nn.Module) -> None:
    for child in module.modules():
        for name in ("activations", "max_batch_len"):
            with suppress(AttributeError):
                delattr(child, name)


@register_grad_sampler(CutPoints)
def cut_points_grad_sample(
    layer: CutPoints, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[nn.Parameter, torch.Tensor]:
    """``[batch, cuts]``: the cut points are added to every output, so each record's gradient is its own."""
    return {layer.cutpoints: backprops} if layer.cutpoints.requires_grad else {}


@register_grad_sampler(StandardisedConv2d)
def standardised_conv_grad_sample(
    layer: StandardisedConv2d, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[torch.Tensor, torch.Tensor]:
    """``[batch, *weight.shape]`` for the raw weight: the standardisation depends on it alone, not on a record."""
    plain: nn.Conv2d = copy.copy(layer)  # the same parameters under the exact type that Opacus's rule asks for
    plain.__class__ = nn.Conv2d
    samples: dict[torch.Tensor, torch.Tensor] = compute_conv_grad_sample(plain, activations, backprops)
    if layer.weight.requires_grad:
        samples[layer.weight] = raw_weight_gradient(layer.weight.detach(), samples[layer.weight])
    return samples
