"""What is settled before a step: how exactly products are computed, and whether the gradient mode takes the model."""

import pytest
import torch
from torch import nn

from medx.model.objectives import objective_for
from medx.schema import PrivacyError
from medx.trainer.gradients import MODES, try_mode
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


class Attending(nn.Module):
    """Positions and attention: two layers that Opacus's hooks cannot take."""

    def __init__(self):
        super().__init__()
        self.places = nn.Embedding(28, 28)
        self.rows = nn.MultiheadAttention(28, 2, batch_first=True)
        self.head = nn.Linear(28, 1)

    def forward(self, images):
        rows = images[:, 0] + self.places(torch.arange(28))
        return self.head(self.rows(rows, rows, rows, need_weights=False)[0].mean(1))


class Places(nn.Module):
    """As many places as records are tried: hooks would take a place for a record."""

    def __init__(self):
        super().__init__()
        self.places = nn.Embedding(3, 28)
        self.head = nn.Linear(28, 1)

    def forward(self, images):
        return self.head(torch.tanh(images[:, 0, :3] + self.places(torch.arange(3))).mean(1))


def attempt(mode, network, views=1):
    try_mode(mode, network, objective_for(BINARY), views=views, shape=torch.Size([1, 28, 28]), num_classes=2)


@pytest.mark.parametrize(
    ("network", "mode", "accepted"),
    [
        (Recurrent, "auto", "vmap or naive"),
        (Attending, "auto", "vmap or naive"),
        (Places, "hooks", "vmap or naive"),
        (lambda: nn.Sequential(nn.Flatten(1, 2), nn.GRU(28, 1)), "vmap", "another model"),  # gives a tuple: no output
    ],
)
@pytest.mark.parametrize("seed", range(5))  # the weights decide how alike the records' norms are
def test_a_mode_that_cannot_work_is_refused_and_those_that_can_are_named(network, mode, accepted, seed):
    torch.manual_seed(seed)
    said = rf"gradient_mode={mode}: gives no gradient per record .*accepted: (trainer\.gradient_mode=)?{accepted}$"
    with pytest.raises(PrivacyError, match=said):
        attempt(mode, network())
    if accepted.startswith("vmap"):
        attempt("vmap", network())


@pytest.mark.parametrize("fresh", [True, False])
def test_a_wrong_sum_is_found_below_a_head_at_zero_and_at_any_clip_norm(fresh, monkeypatch):
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 4), nn.Tanh(), nn.Linear(4, 1))
    if fresh:  # as this package's heads start: then no gradient reaches what lies below
        nn.init.zeros_(network[3].weight)
    attempt("vmap", network)
    right = MODES["vmap"].clipped_sum

    def doubled_below(*given):
        first, *others = right(*given)
        return [2 * first, *others]

    monkeypatch.setattr(MODES["vmap"], "clipped_sum", doubled_below)
    with pytest.raises(PrivacyError, match=r"1\.weight: no right gradient per record.*book_keeping or hooks or naive"):
        attempt("vmap", network)


def test_the_mode_is_tried_with_the_views_that_the_run_will_take():
    attempt("book_keeping", build_network("cnn"))
    attempt("auto", build_network("cnn"), views=2)
    with pytest.raises(PrivacyError, match=r"takes one view of a record.*hooks or vmap or naive"):
        attempt("book_keeping", build_network("cnn"), views=2)
