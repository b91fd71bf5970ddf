"""Clipped sums in one backward pass: norms from activations and output gradients, then one weighted sum a layer."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from medx.trainer.gradients.layer_rules import Contribution, Rule, find_rule
from medx.trainer.gradients.record_loss import RecordLoss, UnsupportedModuleError, clip_factors, sum_dtype


@dataclass(frozen=True)
class _Capture:
    """A layer's input and the place of its output in the graph, which later in-place changes do not move."""

    name: str
    module: nn.Module
    rule: Rule
    inputs: torch.Tensor
    version: int
    output: GradientEdge


class BookKeeping:
    """Book-keeping (Bu et al. 2023, algorithm 1) for modules whose trained layers all have a rule.

    Weight gradients are never computed by autograd: the backward pass only visits layer outputs. Sensitivity of
    the sum: ``clip_norm``. Raises UnsupportedModuleError for a layer without a rule, a parameter with two owners,
    or (at the first batch) one that takes part in the forward pass twice.
    """

    def __init__(self, record_loss: RecordLoss) -> None:
        self.record_loss = record_loss
        self._layers = supported_layers(record_loss.module)
        self._uses_checked = False

    def clipped_sum(self, inputs: torch.Tensor, labels: torch.Tensor, clip_norm: float) -> list[torch.Tensor]:
        """Sum of clipped per-record gradients; see GradientMode."""
        parameters = self.record_loss.parameters()
        if len(labels) == 0:
            return self.record_loss.zeros()
        contributions = self._contributions(inputs, labels)
        squared = torch.stack([part.squared_norms for part in contributions]).sum(0)
        factors = clip_factors(squared, clip_norm)
        sums = {part.parameter: part.weighted_sum(factors.to(sum_dtype(part.parameter))) for part in contributions}
        return [sums[p] if p in sums else torch.zeros_like(p, requires_grad=False) for p in parameters]

    def _contributions(self, inputs: torch.Tensor, labels: torch.Tensor) -> list[Contribution]:
        captures, losses = self._forward(inputs, labels)
        if not self._uses_checked:
            refuse_reused_parameters(losses, captures, self.record_loss.parameters())
            self._uses_checked = True
        gradients = torch.autograd.grad(losses.sum(), [capture.output for capture in captures], allow_unused=True)
        parts: list[Contribution] = []
        for capture, gradient in zip(captures, gradients, strict=True):
            if capture.inputs._version != capture.version:
                raise UnsupportedModuleError(f"gradient_mode=book_keeping: input of {capture.name} changed in place")
            if gradient is not None:
                kind = sum_dtype(gradient)
                parts += capture.rule(capture.module, capture.inputs.to(kind), gradient.to(kind))
        return parts

    def _forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[list[_Capture], torch.Tensor]:
        captures: list[_Capture] = []
        handles = []
        for name, module, rule in self._layers:

            def capture(
                called: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor,
                name: str = name, rule: Rule = rule,
            ) -> None:  # fmt: skip
                given = args[0].detach()
                captures.append(_Capture(name, called, rule, given, given._version, get_gradient_edge(output)))

            handles.append(module.register_forward_hook(capture))
        try:
            return captures, self.record_loss(inputs, labels)
        finally:
            for handle in handles:
                handle.remove()


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


def refuse_reused_parameters(losses: torch.Tensor, captures: list[_Capture], parameters: list[nn.Parameter]) -> None:
    """Raise UnsupportedModuleError unless every parameter enters the graph once, through its captured layer.

    A second use, by a second call or by a function on the weight, would be missing from the norms.
    """
    uses = _count_uses(losses.grad_fn)
    captured = {p for capture in captures for p in capture.module.parameters(recurse=False)}
    reused = [p for p in parameters if uses.get(p, 0) > (1 if p in captured else 0)]
    if reused or len({id(capture.module) for capture in captures}) < len(captures):
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
