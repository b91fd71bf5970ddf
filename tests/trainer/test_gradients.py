"""Every gradient mode against the per-record loop in float64, and against a neighbouring data set."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from medx.schema import PrivacyError
from medx.trainer.gradients import MODES, Auto, BookKeeping, Hooks, Plain
from medx.trainer.gradients.record_loss import (
    NonFiniteGradientError,
    RecordLoss,
    UnsupportedModuleError,
    float32_slack,
    refuse_non_finite,
    squared_norms,
    sum_of_rows,
)
from medx.trainer.micro_batches import MicroBatches
from tests.trainer.examples import MODE_NAMES, build_batch, norm, record_loss, reference, relative_error


def per_record_square(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return outputs.flatten(1).square().sum(1) * (1 + labels)


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_sum_equals_the_loop_also_in_ragged_pieces(case, mode):
    loss, inputs, labels, clip_norm, exact = case
    gradients = MODES[mode](loss)
    whole = gradients.clipped_sum(inputs, labels, clip_norm)
    assert relative_error(whole, exact) < 1e-5
    assert [total.shape for total in whole] == [p.shape for p in loss.module.parameters()]
    assert relative_error(MicroBatches(gradients, 3).clipped_sum(inputs, labels, clip_norm), exact) < 1e-5
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in loss.module.parameters())
    # The planted fault: the same comparison sees a clip that was left out, and one that is a little off.
    for wrong in (math.inf, 1.001 * clip_norm):
        assert relative_error(gradients.clipped_sum(inputs, labels, wrong), exact) > 1e-5


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_one_record_moves_the_sum_by_at_most_the_clip_norm(case, mode):
    loss, inputs, labels, clip_norm, _ = case
    gradients = MODES[mode](loss)
    own = [norm(gradients.clipped_sum(x[None], y[None], math.inf)) for x, y in zip(inputs, labels, strict=True)]
    order = torch.tensor(own).argsort()  # the record with the largest gradient last, so that leaving it out shows
    inputs, labels = inputs[order], labels[order]

    def moved_by_last_record(inputs: torch.Tensor, clip_norm: float) -> float:
        all_of_them = gradients.clipped_sum(inputs, labels, clip_norm)
        without = gradients.clipped_sum(inputs[:-1], labels[:-1], clip_norm)
        return norm([a.double() - b.double() for a, b in zip(all_of_them, without, strict=True)])

    outlier = torch.cat((inputs[:-1], 1e6 * inputs[-1:]))
    for data in (inputs, outlier):
        assert moved_by_last_record(data, clip_norm / 10) <= clip_norm / 10 * (1 + 1e-5)
    assert moved_by_last_record(inputs, math.inf) > clip_norm / 10 * 1.1  # the planted fault: no clip


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_empty_batch_gives_zeros_and_a_bad_record_is_seen(mode):
    loss = record_loss("cnn")
    inputs, labels = build_batch("cnn", 3)
    empty = MODES[mode](loss).clipped_sum(inputs[:0], labels[:0], 1.0)
    assert [total.shape for total in empty] == [p.shape for p in loss.module.parameters()]
    assert norm(empty) == 0
    for bad in (math.nan, math.inf):
        inputs[1, 0, 3, 3] = bad
        with pytest.raises(NonFiniteGradientError):
            refuse_non_finite(MODES[mode](loss).clipped_sum(inputs, labels, 1.0))


@pytest.mark.parametrize("places", [[torch.nan], [torch.inf], [-torch.inf], [torch.inf, -torch.inf], [torch.nan, 1.0]])
@pytest.mark.parametrize("apart", [True, False])
def test_one_bad_number_among_many_is_refused(places, apart):
    sums = [torch.randn(3, 700), torch.randn(40000), torch.zeros(())]
    refuse_non_finite(sums)
    refuse_non_finite([tensor * 1e30 for tensor in sums])
    for number, value in enumerate(places):
        sums[1 - number if apart else 1].view(-1)[500 + number] = value
    with pytest.raises(NonFiniteGradientError):
        refuse_non_finite(sums)


@pytest.mark.parametrize("mode", MODE_NAMES)
@pytest.mark.parametrize("strides", [(784, 784, 28, 1), (784, 1, 28, 1)])
def test_channels_last_images_have_the_same_gradient(strides, mode):
    """With one channel both strides are contiguous, but after the second every layer answers with channels last."""
    loss = record_loss("cnn")
    inputs, labels = build_batch("cnn", 3)
    given = torch.empty_strided(inputs.shape, strides).copy_(inputs)
    sums = MODES[mode](loss).clipped_sum(given, labels, 0.1)
    assert relative_error(sums, reference(loss, inputs, labels, 0.1)) < 1e-5


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_frozen_parameters_are_left_out_everywhere(mode):
    loss = record_loss("cnn")
    inputs, labels = build_batch("cnn", 3)
    for parameter in list(loss.module.parameters())[:4]:
        parameter.requires_grad_(False)
    loss.module[9].bias.requires_grad_(False)
    given = MODES[mode](loss).clipped_sum(inputs, labels, 0.1)
    assert relative_error(given, reference(loss, inputs, labels, 0.1)) < 1e-5


LAYERS = {
    "conv stride 2": (nn.Conv2d(3, 5, 3, stride=2, padding=1), (3, 9, 8)),
    "conv dilated": (nn.Conv2d(3, 5, (3, 2), padding=(2, 1), dilation=2), (3, 9, 8)),
    "conv large map": (nn.Conv2d(2, 3, 3, padding=1, dilation=(1, 2), stride=(1, 2)), (2, 24, 36)),
    "conv small map": (nn.Conv2d(32, 64, 3, stride=2, padding=1), (32, 4, 5)),
    "conv many channels": (nn.Conv2d(9, 5, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), (9, 12, 10)),
    "conv middling map": (nn.Conv2d(32, 64, 3, padding=1), (32, 7, 7)),
    "conv pixels": (nn.Conv2d(64, 64, (3, 2), padding=1, dilation=(1, 2)), (64, 5, 4)),
    "conv small dilated": (nn.Conv2d(64, 64, 2, dilation=2, padding=1), (64, 4, 3)),
    "linear on a sequence": (nn.Linear(6, 4), (7, 6)),
    "linear on a short sequence": (nn.Linear(64, 96), (2, 64)),
    "linear on a grid": (nn.Linear(6, 4), (3, 2, 6)),
    "group norm": (nn.GroupNorm(3, 6), (6, 5, 4)),
    "layer norm": (nn.LayerNorm((5, 4)), (6, 5, 4)),
}


@pytest.mark.parametrize("mode", ["book_keeping", "hooks", "vmap"])
@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_option(layer, mode):
    module, shape = copy.deepcopy(LAYERS[layer])
    generator = torch.Generator().manual_seed(1)
    inputs = 2 + torch.randn(5, *shape, generator=generator)
    loss, labels = RecordLoss(module, per_record_square), torch.arange(5) % 2
    clip_norm = 0.9 * norm(reference(loss, inputs[:1], labels[:1], math.inf))
    given = MODES[mode](loss).clipped_sum(inputs, labels, clip_norm)
    assert relative_error(given, reference(loss, inputs, labels, clip_norm)) < 2e-6


class Residual(nn.Module):
    """In-place changes of layer outputs, as in torchvision's residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.norm = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4)
        self.relu, self.last = nn.ReLU(inplace=True), nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.relu(self.norm(self.first(images)))
        added = self.second(hidden)
        added += hidden
        return self.last(added.mean((2, 3)))


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_in_place_changes_do_not_move_the_gradient(mode):
    inputs, labels = build_batch("cnn", 4)
    loss = RecordLoss(Residual(), functional_cross_entropy)
    given = MODES[mode](loss).clipped_sum(inputs, labels, 0.1)
    assert relative_error(given, reference(loss, inputs, labels, 0.1)) < 1e-5


def functional_cross_entropy(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(outputs, labels, reduction="none")


class Twice(nn.Module):
    """One layer called twice, or its weight used once more by a function."""

    def __init__(self, by_function: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.by_function = nn.Linear(12, 12), by_function

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.layer(inputs).tanh()
        return functional.linear(hidden, self.layer.weight) if self.by_function else self.layer(hidden)


def test_a_parameter_used_twice_is_right_or_refused():
    inputs, labels = build_batch("linear", 4)
    for by_function in (False, True):
        loss = RecordLoss(Twice(by_function), functional_cross_entropy)
        exact = reference(loss, inputs, labels, 0.1)
        with pytest.raises(UnsupportedModuleError, match="twice"):
            BookKeeping(loss).clipped_sum(inputs, labels, 0.1)
        assert relative_error(MODES["vmap"](loss).clipped_sum(inputs, labels, 0.1), exact) < 1e-5
        if by_function:
            with pytest.raises(UnsupportedModuleError, match="outside"):
                Auto(loss).clipped_sum(inputs, labels, 0.1)
        else:
            assert relative_error(Auto(loss).clipped_sum(inputs, labels, 0.1), exact) < 1e-5
    tied: nn.Sequential = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12))
    tied[1].weight = tied[0].weight
    with pytest.raises(UnsupportedModuleError, match="1 shares a parameter"):
        BookKeeping(RecordLoss(tied, functional_cross_entropy))


def test_auto_takes_book_keeping_and_falls_back_to_hooks():
    assert isinstance(Auto(record_loss("resnet18")).chosen, BookKeeping)
    torch.manual_seed(0)
    other = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(20, 3))
    inputs, labels = build_batch("linear", 4)
    loss = RecordLoss(other, functional_cross_entropy)
    with pytest.raises(UnsupportedModuleError, match=r"0 \(Conv1d\)"):
        BookKeeping(loss)
    assert isinstance(Auto(loss).chosen, Hooks)
    exact = reference(loss, inputs[:, None], labels, 0.1)
    assert relative_error(Auto(loss).clipped_sum(inputs[:, None], labels, 0.1), exact) < 1e-5


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_bfloat16_forward_keeps_the_sensitivity(mode):
    loss = record_loss("cnn")
    half = RecordLoss(loss.module, loss.loss, bf16=True)
    inputs, labels = build_batch("cnn", 4)
    for row in range(4):
        one = MODES[mode](half).clipped_sum(inputs[row : row + 1], labels[row : row + 1], 1e-3)
        assert norm(one) == pytest.approx(1e-3, rel=1e-5)
    exact = reference(loss, inputs, labels, 1e-3)
    assert 1e-4 < relative_error(MODES[mode](half).clipped_sum(inputs, labels, 1e-3), exact) < 0.1


def test_losses_that_couple_records_are_refused():
    inputs, labels = build_batch("cnn", 4)
    weights = torch.tensor([1.0, 9.0])
    reduced = nn.CrossEntropyLoss(weight=weights, reduction="mean")
    with pytest.raises(PrivacyError, match="reduced loss couples"):
        Auto(RecordLoss(Residual(), reduced)).clipped_sum(inputs, labels, 0.1)


def test_plain_gradient_refuses_to_pass_for_a_clipped_one():
    loss = record_loss("linear")
    inputs, labels = build_batch("linear", 4)
    assert relative_error(
        Plain(loss).clipped_sum(inputs, labels, math.inf), reference(loss, inputs, labels, math.inf)
    ) < 1e-5  # fmt: skip
    with pytest.raises(PrivacyError, match="clip_norm=1"):
        Plain(loss).clipped_sum(inputs, labels, 1.0)


def test_norms_of_long_rows_are_exact_where_one_float32_sum_is_not():
    rows = torch.randn(2, 2**21 + 77, generator=torch.Generator().manual_seed(0))
    exact = rows.double().square().sum(1)
    assert float(((squared_norms(rows) - exact) / exact).abs().max()) < 1e-7
    naive = torch.linalg.vector_norm(rows, dim=1).double().square()
    assert float(((naive - exact) / exact).abs().max()) > 1e-6


@pytest.mark.parametrize(("batch", "pieces"), [(64, [64]), (80, [80]), (81, [41, 40]), (942, [79] * 6 + [78] * 6)])
def test_a_batch_is_cut_evenly_and_not_for_a_few_records(batch, pieces):
    sizes = []

    class Counting(BookKeeping):
        def clipped_sum(self, inputs, labels, clip_norm):
            sizes.append(len(labels))
            return super().clipped_sum(inputs, labels, clip_norm)

    inputs, labels = build_batch("linear", batch)
    MicroBatches(Counting(record_loss("linear")), 64).clipped_sum(inputs, labels, 0.1)
    assert sizes == pieces


def test_out_of_memory_halves_the_micro_batch_and_goes_on():
    loss = record_loss("linear")
    inputs, labels = build_batch("linear", 11)

    class Small(BookKeeping):
        def clipped_sum(self, inputs, labels, clip_norm):
            if len(labels) > self.limit:
                raise torch.OutOfMemoryError
            return super().clipped_sum(inputs, labels, clip_norm)

    mode = Small(loss)
    mode.limit = 3
    pieces = MicroBatches(mode, 64)
    assert relative_error(pieces.clipped_sum(inputs, labels, 0.1), reference(loss, inputs, labels, 0.1)) < 1e-5
    assert pieces.size <= 3
    mode.limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        pieces.clipped_sum(inputs, labels, 0.1)


@pytest.mark.parametrize("records", [1, 15, 16, 100, 4805])
def test_a_sum_over_records_keeps_its_bound(records: int) -> None:
    """Rows that all point one way, which rounding moves most: within the proof's 17 n 2^-24, far from a plain sum's."""
    generator = torch.Generator().manual_seed(records)
    rows = torch.rand(1, 50, generator=generator).expand(records, 50) + 0.5
    rows = rows / rows.norm(dim=1, keepdim=True)
    factors = torch.rand(records, generator=generator)
    exact = factors.double() @ rows.double()
    bound = 17 * records * 2.0**-24
    assert (sum_of_rows(factors, rows) - exact).norm() <= bound < float32_slack(records) / 2
    one_by_one = torch.zeros(50)
    for factor, row in zip(factors, rows, strict=True):
        one_by_one += factor * row
    assert records < 4805 or (one_by_one - exact).norm() > 10 * (sum_of_rows(factors, rows) - exact).norm()


class Contrast(nn.Module):
    """Two outputs of a layer over positions, subtracted: what the positions share cancels in the weight's gradient."""

    def __init__(self, layer: nn.Module, sign: torch.Tensor) -> None:
        super().__init__()
        self.layer, self.sign = layer, sign

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = self.layer(inputs)
        if outputs.dim() == 4:
            outputs = outputs.flatten(2).mT
        return ((outputs[..., 0] - outputs[..., 1]) * self.sign).sum(1)


@pytest.mark.parametrize("layer", [
    nn.Linear(1024, 256, bias=False), nn.Conv2d(1024, 256, 1, bias=False), nn.Conv2d(256, 64, 3, padding=1, bias=False)
])  # fmt: skip
def test_a_gradient_that_cancels_below_the_last_bit_is_clipped_all_the_same(layer: nn.Module) -> None:
    positions = (2,) if isinstance(layer, nn.Linear) else (2, 1)
    features = layer.weight.shape[1]
    inputs = (torch.rand(1, 1, features, generator=torch.Generator().manual_seed(1)) + 1) * 2.0**34
    inputs = inputs.repeat(1, 2, 1)
    inputs[0, 1, 7] += 2.0**11  # one unit in the last place, which is 2^11 clip norms
    if len(positions) == 2:
        inputs = inputs.mT.reshape(1, features, *positions)
    module = Contrast(layer, torch.tensor([1.0, -1.0]))
    (total,) = BookKeeping(RecordLoss(module, lambda outputs, labels: outputs)).clipped_sum(inputs, torch.zeros(1), 1.0)
    assert 0 < total.double().norm() <= 1 + float32_slack(1)


def test_a_tiny_gradient_beside_huge_activations_is_clipped_all_the_same() -> None:
    loss = RecordLoss(nn.Linear(64, 8, bias=False), lambda outputs, labels: (outputs * 2e-23).sum(1))
    (total,) = BookKeeping(loss).clipped_sum(torch.full((1, 64), 1e18), torch.zeros(1), 1e-5)
    assert total.double().norm() == pytest.approx(1e-5, rel=1e-6)


def test_a_norm_is_too_small_by_less_than_its_part_of_the_allowance() -> None:
    rows = torch.rand(2, 100_003, generator=torch.Generator().manual_seed(3)) + 0.5
    for same in (rows, rows.repeat_interleave(2, dim=1)[:, ::2], rows.mT.contiguous().mT):
        norms = squared_norms(same).sqrt()
        assert bool((rows.double().norm(dim=1) <= norms * (1 + float32_slack(0))).all())
    assert 513 * 2.0**-24 < float32_slack(0) < 1e-4  # half of 1024 squares, one after another
