"""What is settled before a step: how exactly products are computed, and whether the gradient mode takes the model."""

import pytest
import torch
from torch import nn

from medx.model.objectives import objective_for
from medx.schema import PrivacyError
from medx.trainer.gradients import MODES
from tests.trainer.examples import BINARY, build_network
from tests.trainer.test_local_training import make_plan, make_trainer, run


def test_no_step_rounds_its_factors():
    """TF32 keeps 10 bits of a factor; a record's norm would be off by as much, and so would what it is clipped to."""
    flags = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = True
        run(make_trainer(), make_plan(1))
        assert [flag.allow_tf32 for flag in flags] == [False, False]
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows = nn.LSTM(28, 4, batch_first=True, dropout=0.5, num_layers=2)
        self.head = nn.Linear(4, 1)

    def forward(self, images):
        return self.head(self.rows(images[:, 0])[0][:, -1])


def test_a_gradient_mode_that_fails_on_a_model_is_refused_beforehand(monkeypatch):
    asked = {"shape": torch.Size([1, 28, 28]), "num_classes": 2, "clip_norm": 0.1}
    objective = objective_for(BINARY)
    with pytest.raises(PrivacyError, match=r"trainer\.gradient_mode=hooks: fails on this model .*accepted: naive"):
        make_trainer(gradient_mode="hooks").check_gradients(Recurrent(), objective, **asked)
    make_trainer(gradient_mode="naive").check_gradients(Recurrent(), objective, **asked)
    network = build_network("cnn")
    make_trainer(gradient_mode="vmap").check_gradients(network, objective, **asked)
    right = MODES["vmap"].clipped_sum
    monkeypatch.setattr(MODES["vmap"], "clipped_sum", lambda *given: [2 * total for total in right(*given)])
    with pytest.raises(PrivacyError, match="no right gradient per record"):
        make_trainer(gradient_mode="vmap").check_gradients(network, objective, **asked)
