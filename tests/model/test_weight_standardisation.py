"""Standardised convolutions: the formula, and per-record gradients for the raw weight."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from medx.model.layers import (
    StandardisedConv2d,
    raw_weight_gradient,
    standardise_convolutions,
    standardised,
)
from medx.trainer.gradients import MODES
from medx.trainer.gradients.record_loss import RecordLoss
from tests.model.test_networks import option
from tests.trainer.examples import BINARY, norm, objective, perturbed, reference, relative_error, smooth

LAYERS = {
    "plain": {"padding": 1},
    "strided, with bias": {"stride": 2, "bias": True},
    "groups, dilated": {"groups": 2, "dilation": 2, "padding": 2},
}


def make_loss(**options: object) -> RecordLoss:
    torch.manual_seed(0)
    layer = StandardisedConv2d(4, 6, 3, **({"bias": False} | options))
    return RecordLoss(
        nn.Sequential(layer, nn.GroupNorm(2, 6), nn.Tanh(), nn.Flatten()),
        lambda outputs, labels: (outputs * torch.linspace(-1, 1, outputs.shape[1]).to(outputs)).sum(1) * (1 + labels),
    )


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 4, 9, 8, generator=generator), torch.arange(4) % 2


def test_forward_uses_filters_of_mean_zero_and_variance_one():
    layer = StandardisedConv2d(3, 5, 3)
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    variance, mean = torch.var_mean(layer.weight, (1, 2, 3), correction=0, keepdim=True)
    expected = functional.conv2d(images, (layer.weight - mean) / (variance + 1e-5).sqrt(), layer.bias)
    torch.testing.assert_close(layer(images), expected)
    assert not torch.allclose(layer(images), functional.conv2d(images, layer.weight, layer.bias), atol=0.1)


def test_raw_gradient_is_the_transposed_jacobian():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64).mul_(0.1).requires_grad_()
    for scale in (1.0, 1e-2):  # the second so small that the floor under the variance counts
        small = (scale * weight).detach().requires_grad_()
        gradients = torch.randn(5, 4, 3, 2, 2, generator=generator, dtype=torch.float64)
        exact = [torch.autograd.grad(standardised(small)[0], small, gradient)[0] for gradient in gradients]
        torch.testing.assert_close(raw_weight_gradient(small.detach(), gradients), torch.stack(exact))


@pytest.mark.parametrize("mode", ["hooks", "vmap", "naive", "auto"])
@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_every_mode_equals_the_loop_and_bounds_a_huge_record(options, mode):
    loss, (inputs, labels) = make_loss(**options), batch()
    gradients = {**MODES}[mode](loss)
    clip_norm = 0.9 * norm(reference(loss, inputs[:1], labels[:1], math.inf))
    exact = reference(loss, inputs, labels, clip_norm)
    assert relative_error(gradients.clipped_sum(inputs, labels, clip_norm), exact) < 1e-5
    inputs[-1] *= 1e6
    both, without = (gradients.clipped_sum(inputs[:n], labels[:n], clip_norm / 10) for n in (4, 3))
    assert norm([a.double() - b.double() for a, b in zip(both, without, strict=True)]) <= clip_norm / 10 * (1 + 1e-4)


def test_the_comparison_sees_a_gradient_for_the_wrong_weight():
    loss, (inputs, labels) = make_loss(), batch()
    plain = RecordLoss(nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), *loss.module[1:]), loss.loss)
    plain.module[0].weight = nn.Parameter(standardised(loss.module[0].weight.detach())[0])
    for_standardised = MODES["hooks"](plain).clipped_sum(inputs, labels, math.inf)
    assert relative_error(for_standardised, reference(loss, inputs, labels, math.inf)) > 0.1


@pytest.mark.parametrize("name", ["cnn", "resnet18"])
def test_networks_take_it_as_an_option_with_the_same_names(name):
    network = option(name, weight_standardisation=True).build(BINARY, 1)
    without = option(name).build(BINARY, 1)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert {type(m) for m in convolutions} == {StandardisedConv2d}
    assert network.state_dict().keys() == without.state_dict().keys()
    loss = RecordLoss(smooth(perturbed(network)), objective("cnn").loss)
    generator = torch.Generator().manual_seed(5)
    inputs, labels = torch.randn(3, 1, 14, 14, generator=generator), torch.arange(3) % 2
    given = MODES["hooks"](loss).clipped_sum(inputs, labels, 0.5)
    assert relative_error(given, reference(loss, inputs, labels, 0.5)) < 2e-5
    again = nn.Sequential(nn.Conv2d(1, 1, 1))
    standardise_convolutions(again)
    assert type(again[0]) is StandardisedConv2d
