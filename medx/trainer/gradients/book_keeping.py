"""Clipped sums in one backward pass: norms from activations and output gradients, then one weighted sum a layer."""

from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from medx.model.layers import CutPoints
from medx.trainer.gradients.convolution import conv2d
from medx.trainer.gradients.layer_rules import (
    Call,
    Contribution,
    Rows,
    Rule,
    added_parameter,
    group_norm,
    layer_norm,
    linear,
)
from medx.trainer.gradients.record_loss import (
    RecordLoss,
    UnsupportedModuleError,
    clip_factors,
    squared_norms,
    sum_dtype,
    sum_of_rows,
)

RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear,
    nn.Conv2d: conv2d,
    nn.GroupNorm: group_norm,
    nn.LayerNorm: layer_norm,
    CutPoints: added_parameter,
}


class _Tape:
    """The calls of one forward pass; each leaves it for its contributions when its output's gradient arrives.

    So no output gradient outlives its layer's turn in the backward pass but where the rule keeps it.
    """

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []
        self.lowest: list[GradientEdge] = []
        self.contributions: list[Contribution | Rows] = []
        self._waiting: dict[int, tuple[Call, int]] = {}

    def forward_hook(
        self, name: str, rule: Rule, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> None:
        """Note the call, and have its output's gradient, from before any in-place change, sent to its rule."""
        place, given = len(self.modules), args[0].detach()
        self.modules.append(module)
        self._waiting[place] = (Call(module, given, output.grad_fn), given._version)
        if not args[0].requires_grad:
            self.lowest.append(get_gradient_edge(output))
        output.register_hook(partial(self._arrived, place, name, rule))  # type: ignore[no-untyped-call]

    def _arrived(self, place: int, name: str, rule: Rule, gradient: torch.Tensor) -> None:
        call, version = self._waiting.pop(place)
        if call.inputs._version != version:
            raise UnsupportedModuleError(f"gradient_mode=book_keeping: input of {name} changed in place")
        kind = sum_dtype(gradient)
        if not call.inputs.dtype == gradient.dtype == kind:
            call, gradient = replace(call, inputs=call.inputs.to(kind)), gradient.to(kind)
        self.contributions += rule(call, gradient)

    def clear(self) -> None:
        """Forget everything: the tape and the graph hold each other, until the collector comes by."""
        self._waiting.clear()
        self.lowest.clear()
        self.contributions = []


class BookKeeping:
    """Book-keeping (Bu et al. 2023, algorithm 1) for modules whose trained layers all have a rule.

    Weight gradients are never computed by autograd: the backward pass only visits layer outputs. Sensitivity of
    the sum: ``clip_norm``. Raises UnsupportedModuleError for a layer without a rule, a parameter with two owners,
    or (at the first batch) one that takes part in the forward pass twice.
    """

    def __init__(self, record_loss: RecordLoss) -> None:
        if record_loss.views > 1:
            raise UnsupportedModuleError("gradient_mode=book_keeping takes one view of a record; use hooks for several")
        self.record_loss = record_loss
        self._layers = supported_layers(record_loss.module)
        self._parameters = record_loss.parameters()
        self._uses_checked = False

    def clipped_sum(self, inputs: torch.Tensor, labels: torch.Tensor, clip_norm: float) -> list[torch.Tensor]:
        """Sum of clipped per-record gradients; see GradientMode."""
        if len(labels) == 0:
            return self.record_loss.zeros()
        contributions = self._contributions(inputs, labels)
        large = [part for part in contributions if isinstance(part, Contribution)]
        small = [part for part in contributions if isinstance(part, Rows)]
        del contributions  # or it would hold what is let go of below
        squared = [part.squared_norms for part in large]
        sums: list[tuple[torch.Tensor, torch.Tensor]] = []
        with torch.no_grad():
            joined = torch.cat([part.per_record for part in small], 1) if small else None
            if joined is not None:
                squared.append(squared_norms(joined))
            factors = clip_factors(torch.stack(squared).sum(0), clip_norm)
            while large:  # each is let go of when it is summed
                part = large.pop()
                sums.append((part.parameter, part.weighted_sum(factors.to(sum_dtype(part.parameter)))))
            if joined is not None:
                sums += _apart(sum_of_rows(factors, joined), [part.parameter for part in small])
        return self._in_order(sums)

    def _in_order(self, sums: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
        found = dict(sums)
        if len(found) < len(sums):
            raise UnsupportedModuleError("gradient_mode=book_keeping: a parameter is used twice; use hooks")
        return [found[p] if p in found else torch.zeros_like(p, requires_grad=False) for p in self._parameters]

    def _contributions(self, inputs: torch.Tensor, labels: torch.Tensor) -> list[Contribution | Rows]:
        tape = _Tape()
        try:
            losses = self._forward(tape, inputs, labels)
            if not self._uses_checked:
                refuse_reused_parameters(losses, tape.modules, self._parameters)
                self._uses_checked = True
            # Below every layer whose input takes a gradient lies one of the lowest, so this visits all of them.
            torch.autograd.grad(losses.sum(), tape.lowest, allow_unused=True)
            return tape.contributions
        finally:
            tape.clear()

    def _forward(self, tape: _Tape, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        handles = [
            module.register_forward_hook(partial(tape.forward_hook, name, rule)) for name, module, rule in self._layers
        ]
        try:
            return self.record_loss(inputs, labels)
        finally:
            for handle in handles:
                handle.remove()


def _apart(total: torch.Tensor, parameters: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each parameter with its part of their joined sum."""
    parts = total.split([parameter.numel() for parameter in parameters])
    return [(p, part.view_as(p)) for p, part in zip(parameters, parts, strict=True)]


def supported_layers(module: nn.Module) -> list[tuple[str, nn.Module, Rule]]:
    """The layers that own trainable parameters, with their rules; raises UnsupportedModuleError, naming the layer."""
    layers, owners = [], set()
    for name, child in module.named_modules():
        trained = [p for p in child.parameters(recurse=False) if p.requires_grad]
        if not trained:
            continue
        rule = find_rule(child)
        if rule is None:
            raise UnsupportedModuleError(
                f"gradient_mode=book_keeping has no rule for {name or 'the module'} ({type(child).__name__}): use hooks"
            )
        if any(p in owners for p in trained):
            raise UnsupportedModuleError(f"gradient_mode=book_keeping: {name} shares a parameter; use hooks")
        owners.update(trained)
        layers.append((name, child, rule))
    return layers


def find_rule(module: nn.Module) -> Rule | None:
    """The rule for this exact type and these options, or None; a subclass may compute something else."""
    if isinstance(module, nn.Conv2d) and (
        module.groups != 1 or module.padding_mode != "zeros" or isinstance(module.padding, str)
    ):
        return None
    return RULES.get(type(module))


def refuse_reused_parameters(losses: torch.Tensor, called: list[nn.Module], parameters: list[nn.Parameter]) -> None:
    """Raise UnsupportedModuleError unless every parameter enters the graph once, through a layer that was called.

    A second use, by a second call or by a function on the weight, would be missing from the norms.
    """
    uses = _count_uses(losses.grad_fn)
    captured = {p for module in called for p in module.parameters(recurse=False)}
    reused = [p for p in parameters if uses.get(p, 0) > (1 if p in captured else 0)]
    if reused or len({id(module) for module in called}) < len(called):
        raise UnsupportedModuleError(
            "gradient_mode=book_keeping: a parameter is used twice in one forward pass, or outside its layer; use hooks"
        )


def _count_uses(root: Node | None) -> dict[torch.Tensor, int]:
    uses: dict[torch.Tensor, int] = {}
    stack, seen = [root], {root}
    while stack:
        node = stack.pop()
        for following, _ in node.next_functions if node is not None else ():
            if following is None:
                continue
            if hasattr(following, "variable"):
                uses[following.variable] = uses.get(following.variable, 0) + 1
            elif following not in seen:
                seen.add(following)
                stack.append(following)
    return uses
