"""Ways to get the sum of clipped per-record gradients: one module each, one contract."""

from collections.abc import Callable
from typing import Literal, Protocol

import torch

from medx.trainer.gradients.book_keeping import BookKeeping
from medx.trainer.gradients.hooks import Hooks
from medx.trainer.gradients.naive import Naive
from medx.trainer.gradients.plain import Plain
from medx.trainer.gradients.record_loss import RecordLoss, UnsupportedModuleError
from medx.trainer.gradients.vmap import Vmap

GradientModeName = Literal["auto", "book_keeping", "hooks", "vmap", "naive"]


class GradientMode(Protocol):
    """A way to get the sum of clipped per-record gradients; built once for a module and its loss per record."""

    def clipped_sum(self, inputs: torch.Tensor, labels: torch.Tensor, clip_norm: float) -> list[torch.Tensor]:
        """Sum over the records of the micro-batch of ``min(1, clip_norm / norm) * gradient``, float32.

        Inputs ``[batch, ...]`` and labels ``[batch]``; one tensor for every trainable parameter, in order of
        ``module.parameters()``. Norms are over all parameters together, in float32. An empty batch gives zeros.
        """
        ...


class Auto:
    """Book-keeping where every trained layer has a rule and is used once, else Opacus's hooks."""

    def __init__(self, record_loss: RecordLoss) -> None:
        self.record_loss = record_loss
        self.chosen: GradientMode
        try:
            self.chosen = BookKeeping(record_loss)
        except UnsupportedModuleError:
            self.chosen = Hooks(record_loss)

    def clipped_sum(self, inputs: torch.Tensor, labels: torch.Tensor, clip_norm: float) -> list[torch.Tensor]:
        """Sum of clipped per-record gradients; see GradientMode."""
        try:
            return self.chosen.clipped_sum(inputs, labels, clip_norm)
        except UnsupportedModuleError:
            # Only a forward pass shows that a layer is called twice.
            if not isinstance(self.chosen, BookKeeping):
                raise
            self.chosen = Hooks(self.record_loss)
            return self.chosen.clipped_sum(inputs, labels, clip_norm)


MODES: dict[str, Callable[[RecordLoss], GradientMode]] = {
    "auto": Auto,
    "book_keeping": BookKeeping,
    "hooks": Hooks,
    "vmap": Vmap,
    "naive": Naive,
}


def build_mode(name: GradientModeName, record_loss: RecordLoss, private: bool) -> GradientMode:
    """The mode of this name; without privacy nothing is clipped and the plain gradient serves."""
    return MODES[name](record_loss) if private else Plain(record_loss)
