"""Book-keeping's own ways: how a convolution's norms come about, what the backward pass reaches and keeps."""

import copy
import gc
import math
import weakref
from functools import partial

import pytest
import torch
from torch import nn

from medx.trainer.gradients import BookKeeping, book_keeping, convolution, layer_rules
from medx.trainer.gradients.record_loss import RecordLoss, UnsupportedModuleError
from tests.trainer.examples import build_batch, norm, record_loss, reference, relative_error
from tests.trainer.test_gradients import LAYERS, functional_cross_entropy


@pytest.mark.parametrize("layer", [name for name in LAYERS if name.startswith("conv")])
def test_every_way_to_the_norms_of_a_convolution_agrees(layer, monkeypatch):
    module, shape = copy.deepcopy(LAYERS[layer])
    inputs = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        gradient = torch.sin(37 * module(inputs))
        exact = convolution._per_record(module, inputs.double(), gradient.double())[0].square().sum(1)
        for way in (convolution._patch_gram, convolution._pixel_gram):
            torch.testing.assert_close(way(module, inputs, gradient), exact, rtol=1e-6, atol=0)
        for way in (convolution._by_groups, partial(convolution._by_patches, positions_last=False)):
            norms = way(module, inputs, gradient).double().square().sum(1)
            torch.testing.assert_close(norms, exact, rtol=1e-5, atol=0)
        joined, rows = (tensor.reshape(1, -1, *tensor.shape[2:]) for tensor in (inputs, gradient))
        shape = (5 * len(module.weight), *module.weight.shape[1:])
        results = [
            convolution._weight_gradient(module, joined, rows, torch.full(shape, value), groups=5)
            for value in (0.0, math.nan)
        ]
        assert torch.equal(*results)  # of a weight that was never filled in, only the shape is read
        whole = convolution._per_record(module, inputs, gradient)[0]
        patch_bytes = gradient[0, 0].numel() * module.weight[0].numel() * 4
        monkeypatch.setattr(convolution, "PATCH_BYTES", 2 * patch_bytes)  # blocks of two records, and one left over
        torch.testing.assert_close(convolution._per_record(module, inputs, gradient)[0], whole)


class Branches(nn.Module):
    """Two layers on the images, one above a cut in the graph, and one whose output is not used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.above, self.idle = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        left, right = self.left(inputs).tanh(), self.right(inputs).tanh()
        self.idle(left)
        return left * right + self.above(right.detach())


def test_book_keeping_reaches_every_branch():
    inputs, labels = build_batch("linear", 4)
    loss = RecordLoss(Branches(), functional_cross_entropy)
    given = BookKeeping(loss).clipped_sum(inputs, labels, 0.1)
    assert relative_error(given, reference(loss, inputs, labels, 0.1)) < 1e-5
    assert all(norm([total]) > 0 for total in given[:6])


def test_book_keeping_lets_go_of_output_gradients(monkeypatch):
    loss = record_loss("cnn")
    inputs, labels = build_batch("cnn", 4)
    seen, alive, calls = [], [], []

    def watched(call, gradient):
        alive.append(sum(given() is not None for given in seen))
        seen.append(weakref.ref(gradient))
        calls.append(weakref.ref(call))
        return layer_rules.group_norm(call, gradient)

    monkeypatch.setitem(book_keeping.RULES, nn.GroupNorm, watched)
    BookKeeping(loss).clipped_sum(inputs, labels, 0.1)
    assert alive == [0, 0, 0, 0]
    assert all(call() is None for call in calls)


def test_nothing_is_left_for_the_collector(monkeypatch):
    loss = record_loss("cnn")
    inputs, labels = build_batch("cnn", 4)
    seen = []

    def watched(call, gradient):
        parts = convolution.conv2d(call, gradient)
        seen.extend(weakref.ref(thing) for thing in (gradient, call.inputs, *parts))
        return parts

    monkeypatch.setitem(book_keeping.RULES, nn.Conv2d, watched)
    gc.disable()
    try:
        BookKeeping(loss).clipped_sum(inputs, labels, 0.1)
        assert len(seen) == 12
        assert all(thing() is None for thing in seen)
    finally:
        gc.enable()


class Overwritten(nn.Module):
    """A layer's input is changed after the layer has read it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.first(inputs) * 2
        outputs = self.second(hidden)
        hidden.zero_()
        return outputs


def test_an_input_that_was_overwritten_is_refused():
    inputs, labels = build_batch("linear", 4)
    with pytest.raises(UnsupportedModuleError, match="input of second changed in place"):
        BookKeeping(RecordLoss(Overwritten(), functional_cross_entropy)).clipped_sum(inputs, labels, 0.1)
