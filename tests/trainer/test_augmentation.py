"""Several views of a record: one gradient, their mean, clipped as a whole."""

import copy
import math

import pytest
import torch

from medx.model.layers import standardise_convolutions
from medx.randomness import torch_generator
from medx.schema import ConfigError
from medx.trainer.augmentation import RandomViews, shifted
from medx.trainer.gradients import MODES, Auto, BookKeeping, Hooks, Plain
from medx.trainer.gradients.record_loss import RecordLoss, UnsupportedModuleError
from medx.trainer.micro_batches import MicroBatches
from tests.trainer.examples import build_batch, build_network, norm, objective, relative_error
from tests.trainer.test_local_training import make_plan, make_trainer, run

VIEWS, MODES_WITH_VIEWS = 3, ("hooks", "vmap", "naive")


def make_loss(views: int = VIEWS, standardised: bool = False) -> RecordLoss:
    network = build_network("cnn")
    if standardised:
        standardise_convolutions(network)
    return RecordLoss(network, objective("cnn").loss, views=views)


def make_views(kind: str = "affine", views: int = VIEWS, seed: int = 3) -> RandomViews:
    return RandomViews(kind, views, torch_generator(seed))


def loop(loss: RecordLoss, views: torch.Tensor, labels: torch.Tensor, clip_norm: float, clip_views: bool = False):
    """Every view's gradient alone in float64, averaged over a record's views, then clipped, then added up."""
    module = copy.deepcopy(loss.module).double()
    parameters = list(module.parameters())
    sums = [torch.zeros_like(p, requires_grad=False) for p in parameters]
    for record, label in zip(views.double(), labels, strict=True):
        single = [torch.autograd.grad(loss.loss(module(v[None]), label[None]).sum(), parameters) for v in record]
        if clip_views:
            single = [[g * min(1.0, clip_norm / norm(list(grads))) for g in grads] for grads in single]
        mean = [torch.stack(parts).mean(0) for parts in zip(*single, strict=True)]
        factor = min(1.0, clip_norm / norm(mean))
        sums = [total + factor * gradient for total, gradient in zip(sums, mean, strict=True)]
    return sums


@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize("mode", MODES_WITH_VIEWS)
def test_the_mean_over_views_is_clipped(mode, standardised):
    loss, views = make_loss(standardised=standardised), make_views()
    inputs, labels = build_batch("cnn", 4)
    images = views.apply(inputs, views.draw(4))
    assert images.shape == (4, VIEWS, 1, 28, 28)
    largest = norm(loop(loss, images[:1], labels[:1], math.inf))
    for clip_norm in (0.8 * largest, math.inf):
        exact = loop(loss, images, labels, clip_norm)
        assert relative_error(MODES[mode](loss).clipped_sum(images, labels, clip_norm), exact) < 1e-5
    # The planted fault: every view clipped by itself.
    exact, wrong = (loop(loss, images, labels, 0.8 * largest, clip_views) for clip_views in (False, True))
    assert relative_error(wrong, exact) > 1e-3


@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize("mode", MODES_WITH_VIEWS)
def test_a_huge_record_moves_the_sum_by_at_most_the_clip_norm(mode, standardised):
    loss, views = make_loss(standardised=standardised), make_views()
    inputs, labels = build_batch("cnn", 4)
    inputs[-1] *= 1e6
    images, gradients = views.apply(inputs, views.draw(4)), MODES[mode](loss)

    def moved(clip_norm: float) -> float:
        all_of_them = gradients.clipped_sum(images, labels, clip_norm)
        without = gradients.clipped_sum(images[:-1], labels[:-1], clip_norm)
        return norm([a.double() - b.double() for a, b in zip(all_of_them, without, strict=True)])

    clip_norm = 0.1 * norm(gradients.clipped_sum(images[-1:], labels[-1:], math.inf))
    assert moved(clip_norm) == pytest.approx(clip_norm, rel=1e-4)
    assert moved(math.inf) > 5 * clip_norm  # the planted fault: no clip


def test_auto_falls_back_to_hooks_where_book_keeping_refuses():
    assert isinstance(Auto(make_loss()).chosen, Hooks)
    assert isinstance(Auto(make_loss(views=1)).chosen, BookKeeping)
    for loss in (make_loss(), make_loss(views=1, standardised=True)):
        with pytest.raises(UnsupportedModuleError, match="use hooks"):
            BookKeeping(loss)


@pytest.mark.parametrize("mode", MODES_WITH_VIEWS)
@pytest.mark.parametrize("kind", ["shift", "affine"])
def test_the_sum_does_not_depend_on_how_the_batch_is_cut(kind, mode):
    loss = make_loss()
    inputs, labels = build_batch("cnn", 5)
    whole, pieces = (
        MicroBatches(MODES[mode](loss), size, make_views(kind)).clipped_sum(inputs, labels, 0.1) for size in (64, 6)
    )
    assert relative_error(pieces, whole) < 1e-5
    other = MicroBatches(MODES[mode](loss), 64, make_views(kind, seed=4)).clipped_sum(inputs, labels, 0.1)
    assert relative_error(other, whole) > 1e-4


def test_views_count_as_images_in_a_micro_batch():
    sizes: list[int] = []

    class Counting(Plain):
        def clipped_sum(self, inputs, labels, clip_norm):
            sizes.append(inputs.flatten(0, 1).shape[0])
            return super().clipped_sum(inputs, labels, clip_norm)

    inputs, labels = build_batch("cnn", 7)
    MicroBatches(Counting(make_loss()), 7, make_views()).clipped_sum(inputs, labels, math.inf)
    assert max(sizes) <= 7
    assert sum(sizes) == 7 * VIEWS


def test_shifts_are_whole_pixels_of_every_size_and_reflect_the_border():
    image = torch.arange(28.0 * 28).view(1, 1, 28, 28)
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2), mode="reflect")
    seen = set()
    for right in (-0.99, -0.5, 0.0, 0.5, 0.99):
        for down in (-0.99, -0.5, 0.0, 0.5, 0.99):
            view = shifted(image, torch.tensor([[[right, down]]]))[0, 0, 0]
            found = [
                (x, y) for x in range(5) for y in range(5) if torch.equal(view, padded[0, 0, y : y + 28, x : x + 28])
            ]
            seen.update(found)
            assert len(found) == 1
    assert len(seen) == 25
    views = make_views("shift", 1)
    assert views.apply(image.expand(6, 2, 28, 28), views.draw(6)).shape == (6, 2, 28, 28)


def test_affine_views_are_small_changes_and_never_mirrored():
    image = torch.zeros(1, 1, 28, 28)
    image[:, :, 8:20, 4:10] = 1  # a bar on one side
    views = make_views("affine", 200)
    drawn = views.apply(image, views.draw(1))[0, :, 0]
    assert float(drawn[:, :, 14:].sum() / drawn.sum()) < 0.01
    assert float((drawn - image[0, 0]).abs().mean((1, 2)).max()) < 0.15
    assert len({float(view.sum()) for view in drawn}) > 190


def test_a_round_with_views_is_reproducible_and_follows_its_own_generator():
    for augmentation, views in (("shift", 1), ("affine", 2)):
        trainer = make_trainer(augmentation=augmentation, augmentation_multiplicity=views)
        first, again, other = (
            run(trainer, make_plan(), view_generator=torch_generator(seed))[1].state for seed in (1, 1, 2)
        )
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not torch.equal(first["0.weight"], other["0.weight"])


def test_what_cannot_have_views_is_refused():
    with pytest.raises(ConfigError, match=r"augmentation_multiplicity=4: needs trainer\.augmentation"):
        make_trainer(augmentation_multiplicity=4)
    with pytest.raises(ConfigError, match=r"trainer\.augmentation=shift: .*fixed features"):
        make_trainer(augmentation="shift").check(num_classes=2, images=False)
