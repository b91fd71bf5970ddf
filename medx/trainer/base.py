"""What a client sends back, and how a gradient mode presents itself."""

from dataclasses import dataclass, field
from typing import Protocol

import torch


@dataclass(frozen=True)
class ClientUpdate:
    """One client's answer to one round.

    ``state`` maps parameter names (and ``momentum/<name>`` for the optimiser's buffers) to tensors.
    ``steps`` counts the releases executed. ``finite`` is false where the client must abstain: then ``state``
    is what it was given. Nothing else that depends on records leaves a client.
    """

    state: dict[str, torch.Tensor]
    steps: int
    finite: bool = True
    seconds: dict[str, float] = field(default_factory=dict)


class GradientMode(Protocol):
    """A way to get the sum of clipped per-record gradients; built once for a module and its loss per record."""

    def clipped_sum(self, inputs: torch.Tensor, labels: torch.Tensor, clip_norm: float) -> list[torch.Tensor]:
        """Sum over the records of the micro-batch of ``min(1, clip_norm / norm) * gradient``, float32.

        Inputs ``[batch, ...]`` and labels ``[batch]``; one tensor for every trainable parameter, in order of
        ``module.parameters()``. Norms are over all parameters together, in float32. An empty batch gives zeros.
        """
        ...
