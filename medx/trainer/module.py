"""The Lightning module. Importing it takes seconds, so nothing else imports lightning and this comes last."""

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from medx.aggregation.integer_noise import NoiseStream
from medx.privacy.base import SampledGaussian
from medx.trainer.gradients import GradientMode
from medx.trainer.gradients.record_loss import RecordLoss, refuse_non_finite
from medx.trainer.release import GaussianRelease


class ClassificationModule(LightningModule):
    """A network with its private step: one Lightning batch is one logical batch, whatever its size, also none.

    ``gradients`` gives the clipped sum of a whole batch. ``step`` None trains without privacy on the same path. With
    ``proximal_mu`` the pull towards ``anchor``, the weights at construction where it is None, is added after the noise
    (FedProx, Li et al. 2020): it depends on no record.
    """

    def __init__(
        self,
        record_loss: RecordLoss,
        gradients: GradientMode,
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        *,
        step: SampledGaussian | None,
        expected_batch_size: float,
        num_records: int,
        noise_stream: NoiseStream,
        proximal_mu: float,
        anchor: list[torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = record_loss.module
        self.trained = record_loss.parameters()
        self.optimizer = optimizer(self.trained)
        self.clip_norm = math.inf if step is None else step.clip_norm
        self.expected_batch_size = expected_batch_size
        self.gradients = gradients
        self.release = None
        if step is not None:
            self.release = GaussianRelease(self.optimizer, step, expected_batch_size, num_records, noise_stream)
        self.proximal_mu = proximal_mu
        self.anchor = [p.detach().clone() for p in self.trained] if anchor is None else anchor

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """``[batch, num_outputs]`` from ``[batch, ...]``."""
        outputs: torch.Tensor = self.network(inputs)
        return outputs

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer under the release."""
        return self.optimizer

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        """One private step on one logical batch, counted by the Lightning Trainer or Fabric that runs it."""
        optimizer: Any = self.optimizers()
        self.take_step(*batch, optimizer.step)

    def take_step(self, inputs: torch.Tensor, labels: torch.Tensor, update: Callable[[], Any] | None = None) -> None:
        """One private step; ``update`` moves the weights by their ``.grad`` (None: the optimizer itself).

        Raises NonFiniteGradientError, before any noise or change, where a per-record gradient is not finite.
        """
        for parameter in self.trained:
            parameter.grad = None  # the last step's gradients must not take up memory in this one
        sums = self.gradients.clipped_sum(inputs, labels, self.clip_norm)
        refuse_non_finite(sums)
        self._set_gradients(sums)
        (update or self.optimizer.step)()

    def _set_gradients(self, sums: list[torch.Tensor]) -> None:
        if self.release is None:
            for parameter, total in zip(self.trained, sums, strict=True):
                parameter.grad = (total / self.expected_batch_size).to(parameter.dtype)
        else:
            self.release.release(sums)
        if self.proximal_mu:
            with torch.no_grad():
                for parameter, start in zip(self.trained, self.anchor, strict=True):
                    assert parameter.grad is not None
                    parameter.grad += self.proximal_mu * (parameter - start.to(parameter))
