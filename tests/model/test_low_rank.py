"""Low-rank changes: the network begins as it was, every mode clips it, and a private run moves what it trains alone."""

from pathlib import Path

import pytest
import torch

from medx.model.export import load_model
from medx.model.low_rank import LowRankConv2d
from medx.model.objectives import objective_for
from medx.randomness import derive_seed
from medx.trainer.gradients.record_loss import RecordLoss
from tests.model.test_networks import option
from tests.program import call
from tests.trainer.examples import BINARY, MODE_NAMES, MODES, norm, perturbed, reference, relative_error, smooth

NETWORKS = {
    "cnn": {"widths": [8, 16, 16], "num_groups": 2, "rank": 3},
    "cnn, standardised": {"widths": [8, 16, 16], "num_groups": 2, "rank": 3, "weight_standardisation": True},
    "resnet18": {"rank": 4},
}


def built(name: str, **more: object) -> torch.nn.Module:
    network: torch.nn.Module = option(name.split(",", maxsplit=1)[0], **NETWORKS[name], **more).build(BINARY, 0)
    return network


def shifted(network: torch.nn.Module) -> torch.nn.Module:
    """Off zero in what is trained, or the changes and the head would hide what lies below them."""
    frozen = {name: p.clone() for name, p in network.named_parameters() if not p.requires_grad}
    perturbed(network).load_state_dict(frozen, strict=False)
    return smooth(network)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_begins_as_the_network_that_it_changes_and_trains_little_of_it(name):
    changed, plain = built(name, train="low_rank"), built(name)
    images = torch.randn(3, 1, 28, 28)
    for network in (changed, plain):
        torch.nn.init.ones_(next(p for n, p in reversed(list(network.named_parameters())) if n.endswith("weight")))
    assert torch.allclose(changed(images), plain(images), atol=1e-5)
    layers = [module for module in changed.modules() if isinstance(module, LowRankConv2d)]
    assert layers
    for layer in layers:
        assert layer.down.weight.any()
        assert not layer.up.weight.any()
        # What the two make of one pixel is a matrix of no more than the rank.
        product = layer.up.weight.flatten(1) @ layer.down.weight.flatten(1)
        assert product.shape == layer.fixed.weight.flatten(1).shape
    trained = sum(p.numel() for p in changed.parameters() if p.requires_grad)
    assert trained < sum(p.numel() for p in plain.parameters()) / 2


@pytest.mark.parametrize("mode", MODE_NAMES)
@pytest.mark.parametrize("name", ["cnn", "cnn, standardised", "resnet18"])
def test_every_mode_clips_it_as_the_loop_does_and_an_outlier_moves_the_sum_by_the_clip_norm(name, mode):
    loss = RecordLoss(shifted(built(name, train="low_rank")), objective_for(BINARY).loss)
    size = 14 if name == "resnet18" else 28
    inputs, labels = torch.randn(4, 1, size, size, generator=torch.Generator().manual_seed(1)), torch.arange(4) % 2
    norms = [norm(reference(loss, inputs[i : i + 1], labels[i : i + 1], 1e9)) for i in range(4)]
    clip_norm, gradients = sorted(norms)[1], MODES[mode](loss)
    exact = reference(loss, inputs, labels, clip_norm)
    assert relative_error(gradients.clipped_sum(inputs, labels, clip_norm), exact) < 1e-5
    assert relative_error(gradients.clipped_sum(inputs, labels, 1.001 * clip_norm), exact) > 1e-5
    inputs[-1] *= 1e6
    for bound, holds in ((clip_norm / 10, True), (1e9, False)):  # the second is the planted fault: no clip
        sums = [gradients.clipped_sum(inputs[:count], labels[:count], bound) for count in (4, 3)]
        moved = norm([a.double() - b.double() for a, b in zip(*sums, strict=True)])
        assert (moved <= clip_norm / 10 * (1 + 1e-5)) == holds


def test_a_private_run_moves_the_changes_and_nothing_that_is_fixed(tmp_path):
    options = ("model=cnn", "model.widths=[4,8]", "model.num_groups=2", "model.train=low_rank", "model.rank=2")
    ran = call(tmp_path / "run", *options, "privacy=local_dp", "trainer.learning_rate=0.5")
    assert ran.code == 0, ran.err
    start = option("cnn", widths=[4, 8], num_groups=2, train="low_rank", rank=2)
    start = start.build(BINARY, derive_seed(0, "initialisation"))
    trained = {name for name, p in start.named_parameters() if p.requires_grad}
    assert ran.result.model["parameters"] == sum(p.numel() for p in start.parameters() if p.requires_grad)
    saved, before = load_model(Path(ran.result.checkpoint)).head.state_dict(), start.state_dict()
    for name, tensor in before.items():
        assert torch.equal(saved[name], tensor) == (name not in trained), name
