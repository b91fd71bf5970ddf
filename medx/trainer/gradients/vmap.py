"""Per-record gradients by ``torch.func``: vmap over grad."""

import warnings
from dataclasses import replace

import torch
from torch.func import functional_call, grad, vmap

from medx.trainer.gradients.record_loss import RecordLoss, clip_and_sum


class Vmap:
    """``vmap(grad(loss))`` of the functional module: general, and holds every per-record gradient in memory."""

    def __init__(self, record_loss: RecordLoss) -> None:
        self.record_loss = record_loss
        # torch tells of operations that it does one by one, once a process, among what a person reads of the run.
        warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")

    def clipped_sum(self, inputs: torch.Tensor, labels: torch.Tensor, clip_norm: float) -> list[torch.Tensor]:
        """Sum of clipped per-record gradients; see GradientMode."""
        if len(labels) == 0:
            return self.record_loss.zeros()
        module = self.record_loss.module
        trainable = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}

        def loss(parameters: dict[str, torch.Tensor], row: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            def forward(batch: torch.Tensor) -> torch.Tensor:
                output: torch.Tensor = functional_call(module, parameters, (batch,))
                return output

            single = replace(self.record_loss, module=_Call(forward))
            return single(row.unsqueeze(0), label.unsqueeze(0)).sum()

        per_record = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(trainable, inputs, labels)
        return clip_and_sum(list(per_record.values()), clip_norm)


class _Call(torch.nn.Module):
    """A function in the clothes of a module."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.function(inputs)  # type: ignore[operator]
        return output
