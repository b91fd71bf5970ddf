"""The networks that every gradient mode is held against."""

import math

import pytest
import torch

from medx.trainer.gradients.record_loss import RecordLoss
from tests.trainer.examples import build_batch, norm, record_loss, reference

torch.set_num_threads(1)


@pytest.fixture(scope="session", params=["linear", "cnn", "resnet18"])
def case(request: pytest.FixtureRequest) -> tuple[RecordLoss, torch.Tensor, torch.Tensor, float, list[torch.Tensor]]:
    """A record loss, a batch of 4, a clip norm that cuts some records and spares others, and the exact sum."""
    loss = record_loss(request.param)
    inputs, labels = build_batch(request.param, 4)
    single = [norm(reference(loss, inputs[i : i + 1], labels[i : i + 1], math.inf)) for i in range(4)]
    clip_norm = sum(sorted(single)[1:3]) / 2
    return loss, inputs, labels, clip_norm, reference(loss, inputs, labels, clip_norm)
