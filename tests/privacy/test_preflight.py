import pytest
import torch
from torch import nn
from torch.nn import functional

from medx.privacy.preflight import check_gradients, check_independence, check_module
from medx.schema import PrivacyError


class Objective:
    num_outputs = 3

    def loss(self, outputs, labels):
        return functional.cross_entropy(outputs, labels, reduction="none")

    def probabilities(self, outputs):
        return outputs.softmax(1)


class Reduced(Objective):
    def loss(self, outputs, labels):
        return functional.cross_entropy(outputs, labels)


class WeightedMean(Objective):
    """Per-record losses divided by the batch's total weight: what weight=... with reduction='mean' hides."""

    def loss(self, outputs, labels):
        weights = torch.tensor([1.0, 5.0, 2.0])[labels]
        return functional.cross_entropy(outputs, labels, reduction="none") * weights / weights.sum()


class BatchMean(Objective):
    def loss(self, outputs, labels):
        return super().loss(outputs, labels) / len(labels)


class Centred(nn.Module):
    """A home-made layer that subtracts the batch's mean: no type check can know it."""

    def forward(self, x):
        return x - x.mean(0, keepdim=True)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += x.abs().sum()
        return x


def network(*extra):
    head = nn.Linear(8, 3)
    nn.init.zeros_(head.weight)  # as this package starts its heads: couples nothing until it is trained
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Dropout(0.5), *extra, nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), head,
    )  # fmt: skip


INPUTS = torch.randn(4, 1, 10, 10, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(8),
        nn.BatchNorm2d(8, affine=False, track_running_stats=False),
        nn.SyncBatchNorm(8),
        nn.LazyBatchNorm2d(),
        nn.InstanceNorm2d(8, track_running_stats=True),
        nn.LazyConv2d(8, 3),
        nn.Embedding(3, 2, sparse=True),
    ],
)
def test_known_couplers_are_refused_by_path_and_without_privacy_those_that_no_run_can_train(layer):
    module = nn.ModuleDict({"block": nn.Sequential(nn.ReLU(), layer)})
    with pytest.raises(PrivacyError, match=r"block\.1 \("):
        check_module(module, private=True)
    if isinstance(layer, nn.InstanceNorm2d | nn.Embedding):
        check_module(module, private=False)
    else:
        with pytest.raises(PrivacyError, match=r"block\.1 \("):
            check_module(module, private=False)


def test_an_honest_module_passes_and_is_left_alone():
    module = network(nn.InstanceNorm2d(8), nn.Identity())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.random.get_rng_state()
    check_module(module, private=True)
    check_independence(module, Objective(), INPUTS)
    check_independence(module, Objective(), INPUTS, torch.tensor([0, 1, 2, 0]))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(8, track_running_stats=False), Centred()])
def test_layers_that_couple_records_are_named(layer):
    with pytest.raises(PrivacyError, match=rf"^4 \({type(layer).__name__}\): its output for one record depends"):
        check_independence(network(layer), Objective(), INPUTS)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(8), Counting()])
def test_buffers_that_remember_records_are_named(layer):
    with pytest.raises(PrivacyError, match=r"buffer 4\."):
        check_independence(network(layer), Objective(), INPUTS)


@pytest.mark.parametrize(
    ("objective", "words"), [(Reduced, "shape"), (WeightedMean, "depends"), (BatchMean, "depends")]
)
def test_losses_that_couple_records_are_refused(objective, words):
    with pytest.raises(PrivacyError, match=rf"loss of {objective.__name__}.*{words}"):
        check_independence(network(), objective(), INPUTS)


def test_a_wrong_gradient_rule_is_named():
    module, labels, clip = nn.Sequential(nn.Flatten(), nn.Linear(100, 3)), torch.tensor([0, 1, 2, 0]), 0.5
    total = [torch.zeros_like(p) for p in module.parameters()]
    for i in range(4):
        loss = Objective().loss(module(INPUTS[i : i + 1]), labels[i : i + 1]).sum()
        found = torch.autograd.grad(loss, list(module.parameters()))
        norm = torch.cat([g.flatten() for g in found]).norm()
        for place, g in zip(total, found, strict=True):
            place.add_(g * min(1.0, clip / float(norm)))

    def losses(inputs, labels):
        return Objective().loss(module(inputs), labels)

    check_gradients(module, losses, total, inputs=INPUTS, labels=labels, clip_norm=clip)
    with pytest.raises(PrivacyError, match=r"1\.bias: no right gradient"):
        check_gradients(module, losses, [total[0], total[1] * 1.5], inputs=INPUTS, labels=labels, clip_norm=clip)
