"""What cannot be private is refused before any training: modules and losses that couple the records of a batch."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from medx.schema import PrivacyError

if TYPE_CHECKING:
    from medx.model import Objective

TOLERANCE = 1e-4
"""Relative change of record 0 that is not rounding, in double precision or in float32 where a module insists on it."""


def check_module(module: nn.Module, private: bool) -> None:
    """Refuse layers that no run can train, and those that mix records or have no gradient per record, by their path.

    Always BatchNorm of any kind, whose statistics hospitals do not send, and parameters without a shape. With privacy
    on InstanceNorm with running statistics, quantised or sparse parameters, or parameters without a floating type.
    """
    for path, part in module.named_modules():
        name = f"{path or 'the model'} ({type(part).__name__})"
        if isinstance(part, _BatchNorm):
            raise PrivacyError(
                f"{name} mixes the records of a batch, and hospitals do not send its statistics; "
                "use GroupNorm or LayerNorm, under privacy=none too"
            )
        for key, parameter in part.named_parameters(recurse=False):
            if nn.parameter.is_lazy(parameter):
                raise PrivacyError(f"{name} is lazy: {key} has no shape before the first batch; give its size")
            if private and parameter.requires_grad and not parameter.dtype.is_floating_point:
                raise PrivacyError(f"{name} has no gradient per record: {key} is {parameter.dtype}; use a real type")
        if private and isinstance(part, _InstanceNorm) and part.track_running_stats:
            raise PrivacyError(f"{name} keeps running statistics of private records; use track_running_stats=False")
        if private and getattr(part, "sparse", False) and isinstance(part, nn.Embedding | nn.EmbeddingBag):
            raise PrivacyError(f"{name} has sparse gradients, which have no norm per record; use sparse=False")


def check_independence(
    module: nn.Module, objective: "Objective", inputs: torch.Tensor, labels: torch.Tensor | None = None
) -> None:
    """Refuse a module and loss in which one record's loss depends on the others of its batch, in train mode.

    ``inputs [batch >= 2, ...]`` only give shape and scale, and should be public; ``labels`` are 0 unless given. Record
    0 stays while the others' inputs and labels change, then while they leave the batch. Also refused: a loss that
    is not ``[batch]``, and buffers that a forward pass changes. Works on a copy with perturbed parameters, as a last
    layer at zero would hide everything; the first part whose output for record 0 changes is named.
    """
    if len(inputs) < 2:
        raise PrivacyError(f"inputs of {len(inputs)} record(s): independence needs a batch of 2 or more")
    probe = perturbed(module)
    inputs = inputs.detach().cpu()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    labels = torch.zeros(len(inputs), dtype=torch.int64) if labels is None else labels.detach().cpu()
    buffers = {name: value.clone() for name, value in probe.named_buffers()}

    losses, parts = _trace(probe.train(), objective, inputs, labels)
    _check_losses(losses, inputs, objective)
    for name, value in probe.named_buffers():
        if not torch.equal(value, buffers[name]):
            raise PrivacyError(f"buffer {name} is changed by a forward pass: it would carry private statistics")

    classes = _num_classes(probe, objective, inputs)
    others, other_labels = inputs.clone(), labels.clone()
    others[1:] = inputs[1:].flip(0) * 3 + 1 if inputs.is_floating_point() else inputs[1:].flip(0)
    other_labels[1:] = (labels[1:] + 1) % classes
    _compare((losses, parts), _trace(probe.train(), objective, others, other_labels), objective)
    # Without dropout, whose masks depend on the batch's shape: the loss may not count the batch either.
    whole = _trace(probe.eval(), objective, inputs, labels)
    _compare(whole, _trace(probe.eval(), objective, inputs[:1], labels[:1]), objective)


def perturbed(module: nn.Module) -> nn.Module:
    """A double-precision copy on the CPU whose parameters are all moved off zero and off symmetry."""
    probe = copy.deepcopy(module).cpu().double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in probe.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((0.1 * noise).to(parameter.dtype))
    return probe


Trace = tuple[torch.Tensor, list[tuple[str, torch.Tensor]]]


def _trace(module: nn.Module, objective: "Objective", inputs: torch.Tensor, labels: torch.Tensor) -> Trace:
    """Losses, and the output for record 0 of every part in the order in which they finish."""
    parts: list[tuple[str, torch.Tensor]] = []
    with _recorded(module, len(inputs), parts), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)  # dropout draws from the global generator: the same masks in both runs
        losses = objective.loss(module(inputs), labels)
    return losses, parts


@contextmanager
def _recorded(module: nn.Module, batch: int, parts: list[tuple[str, torch.Tensor]]) -> Iterator[None]:
    def record(path: str, part: nn.Module) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.dim() and len(output) == batch:
                parts.append((f"{path or 'the model'} ({type(part).__name__})", output[0].clone()))

        return part.register_forward_hook(hook)

    handles = [record(path, part) for path, part in module.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_losses(losses: torch.Tensor, inputs: torch.Tensor, objective: "Objective") -> None:
    if losses.shape != (len(inputs),):
        raise PrivacyError(
            f"loss of {type(objective).__name__} has shape {list(losses.shape)}, not one value a record: "
            "a loss reduced over the batch couples its records; use reduction='none'"
        )
    if not torch.isfinite(losses).all():
        raise PrivacyError(f"loss of {type(objective).__name__} is not finite on example inputs")


def _num_classes(module: nn.Module, objective: "Objective", inputs: torch.Tensor) -> int:
    with torch.no_grad():
        return int(objective.probabilities(module.eval()(inputs[:2])).shape[1])


def _compare(first: Trace, second: Trace, objective: "Objective") -> None:
    if len(first[1]) == len(second[1]):
        for (name, before), (_, after) in zip(first[1], second[1], strict=True):
            if _differs(before, after):
                raise PrivacyError(
                    f"{name}: its output for one record depends on the other records of the batch, "
                    "so the clip norm does not bound a record's influence"
                )
    if _differs(first[0][0], second[0][0]):
        raise PrivacyError(
            f"loss of {type(objective).__name__}: the loss of one record depends on the other records of the batch, "
            "so the clip norm does not bound a record's influence"
        )


def _differs(before: torch.Tensor, after: torch.Tensor) -> bool:
    if before.shape != after.shape:
        return True
    if not before.is_floating_point():
        return not torch.equal(before, after)
    return not torch.allclose(before, after, rtol=TOLERANCE, atol=TOLERANCE * 1e-2, equal_nan=True)


def check_gradients(
    module: nn.Module,
    losses: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    clipped_sum: Sequence[torch.Tensor],
    *,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    clip_norm: float,
) -> None:
    """Refuse a gradient mode whose ``clipped_sum`` on these records is not the naive loop's, by module path.

    ``clipped_sum`` is what a GradientMode gave for the trainable parameters on ``inputs [batch, ...]``, and ``losses``
    of inputs and labels gives ``[batch]``; a module without a right per-record rule shows here.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    expected = [torch.zeros_like(p, dtype=torch.float32) for _, p in named]
    for i in range(len(inputs)):
        loss = losses(inputs[i : i + 1], labels[i : i + 1]).sum()
        found = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
        gradients = [torch.zeros_like(e) if g is None else g.float() for e, g in zip(expected, found, strict=True)]
        norm = torch.stack([g.norm() for g in gradients]).norm()
        factor = (clip_norm / norm).clamp(max=1.0)
        for total, gradient in zip(expected, gradients, strict=True):
            total.add_(gradient * factor)
    for (name, _), right, given in zip(named, expected, clipped_sum, strict=True):
        error = (right - given.to(right)).norm() / clip_norm
        if not error <= 1e-3 * len(inputs):
            raise PrivacyError(f"{name}: no right gradient per record: the clipped sum is {error:.2g} clip norms off")
