"""A patient as the unit: the mean gradient of the drawn images, clipped as one, and batches drawn of patients."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from medx.aggregation.integer_noise import NoiseStream
from medx.randomness import derive_key, torch_generator
from medx.trainer.batches import MicroBatches, Patients, drawn_batches
from medx.trainer.gradients import MODES
from medx.trainer.gradients.record_loss import RecordLoss, float32_slack
from medx.trainer.state import ModelState
from tests.trainer.examples import build_batch, build_network, norm, objective, relative_error
from tests.trainer.test_augmentation import make_views
from tests.trainer.test_local_training import CPU, is_standard_normal, make_plan, make_trainer

OWNERS = np.array([7, 3, 7, 9, 7, 3, 9, 7, 7, 4])  # 7 has five images, 3 and 9 two, 4 one
MODES_OF_PATIENTS = ("hooks", "vmap", "naive")


def plan_of(patients: Patients, probability: float = 1.0, noise_multiplier: float = 2.0, clip_norm: float = 0.5):
    """A plan of one step whose units are the patients."""
    plan = make_plan(steps=1, probability=probability, records=len(OWNERS))
    assert plan.step is not None
    step = replace(plan.step, noise_multiplier=noise_multiplier, clip_norm=clip_norm)
    return replace(plan, step=step, num_patients=len(patients), expected_batch_size=probability * len(patients))


def drawn(patients: Patients, inputs: torch.Tensor, labels: torch.Tensor, seed: int = 5, probability: float = 1.0):
    """One batch as a round draws it."""
    plan = plan_of(patients, probability)
    ((images, marked),) = drawn_batches(inputs, labels, patients, plan, steps=1, generator=torch_generator(seed))
    return images, marked


def loop(loss: RecordLoss, images: torch.Tensor, labels: torch.Tensor, clip_norm: float, clip_images: bool = False):
    """Every image's gradient alone in float64; their mean over a patient's, clipped, added up."""
    module = copy.deepcopy(loss.module).double()
    parameters = list(module.parameters())
    sums = [torch.zeros_like(p, requires_grad=False) for p in parameters]
    for record, own in zip(images.double(), labels, strict=True):
        there = [(v, label) for v, label in zip(record, own, strict=True) if label >= 0]
        single = [torch.autograd.grad(loss.loss(module(v[None]), label[None]).sum(), parameters) for v, label in there]
        if clip_images:  # the planted fault
            single = [[g * min(1.0, clip_norm / norm(list(grads))) * len(there) for g in grads] for grads in single]
        mean = [torch.stack(parts).mean(0) for parts in zip(*single, strict=True)]
        factor = 1.0 if clip_images else min(1.0, clip_norm / norm(mean))
        sums = [total + factor * gradient for total, gradient in zip(sums, mean, strict=True)]
    return sums


@pytest.mark.parametrize("mode", MODES_OF_PATIENTS)
def test_the_mean_over_a_patients_drawn_images_is_clipped(mode: str) -> None:
    inputs, labels = build_batch("cnn", len(OWNERS))
    patients = Patients(OWNERS, 3)
    images, marked = drawn(patients, inputs, labels)
    assert images.shape == (4, 3, 1, 28, 28)
    assert (marked >= 0).sum(1).tolist() == [2, 1, 3, 2]  # of 3, 4, 7, 9
    loss = RecordLoss(build_network("cnn"), objective("cnn").loss, views=patients.views, images=patients.views)
    largest = norm(loop(loss, images[:1], marked[:1], math.inf))
    for clip_norm in (0.5 * largest, math.inf):
        exact = loop(loss, images, marked, clip_norm)
        assert relative_error(MODES[mode](loss).clipped_sum(images, marked, clip_norm), exact) < 1e-5
    exact, wrong = (loop(loss, images, marked, 0.5 * largest, each) for each in (False, True))
    assert relative_error(wrong, exact) > 1e-2


@pytest.mark.parametrize("most", [1, 3, None])
def test_taking_a_patient_out_moves_the_released_sum_by_at_most_the_clip_norm(most: int | None) -> None:
    """Images of the largest patient are huge, or all alike, so that each alone would reach the clip norm."""
    trainer, clip_norm = make_trainer(gradient_mode="auto"), 0.5
    patients = Patients(OWNERS, most)
    plan = plan_of(patients, clip_norm=clip_norm)
    module = build_network("cnn")
    state = ModelState.of(module, momentum=True)

    def released(inputs: torch.Tensor, labels: torch.Tensor, whose: Patients = patients) -> torch.Tensor:
        sums = trainer.clipped_gradient(
            module,
            objective("cnn"),
            inputs,
            labels,
            plan=plan,
            state=state,
            sample_generator=torch_generator(5),
            device=CPU,
            patients=whose,
        )
        return torch.cat([total.double().flatten() for total in sums])

    inputs, labels = build_batch("cnn", len(OWNERS))
    inputs[OWNERS == 7], labels[OWNERS == 7] = 1e3 * inputs[OWNERS == 7][:1], 1
    emptied = inputs.clone()
    emptied[OWNERS == 7] = 0
    # Zeroing is another gradient; taken out, a patient adds nothing: the others alone.
    rest = torch.from_numpy(OWNERS != 7)
    alone = Patients(OWNERS[OWNERS != 7], most)
    moved = (released(inputs, labels) - released(inputs[rest], labels[rest], alone)).norm()
    slack = 1 + float32_slack(len(OWNERS))
    assert 0.99 * clip_norm < moved <= clip_norm * slack
    assert (released(inputs, labels) - released(emptied, labels)).norm() <= 2 * clip_norm * slack
    # The planted fault: each image clipped by itself, as if it were a unit.
    each = Patients(np.arange(len(OWNERS)), most)
    by_image = (
        released(inputs, labels, each) - released(inputs[rest], labels[rest], Patients(np.arange(5), most))
    ).norm()
    assert by_image > 4 * clip_norm


def test_patients_are_drawn_not_images_and_their_images_without_replacement() -> None:
    patients, generator, draws = Patients(OWNERS, 2), torch_generator(0), 4000
    rows = torch.arange(len(OWNERS))
    plan = plan_of(patients, 0.3)
    met = np.zeros(len(OWNERS))
    taken = dict.fromkeys(np.unique(OWNERS).tolist(), 0)
    for images, marked in drawn_batches(rows, rows, patients, plan, steps=draws, generator=generator):
        assert ((marked < 0) | (images == marked)).all()
        for own in marked:
            found = own[own >= 0].numpy()
            assert len(set(found.tolist())) == len(found) == min(2, int((OWNERS[found[0]] == OWNERS).sum()))
            assert len(set(OWNERS[found])) == 1
            taken[int(OWNERS[found[0]])] += 1
            met[found] += 1
    error = 5 * math.sqrt(0.3 * 0.7 / draws)
    for count in taken.values():  # a patient of five images is drawn as often as one of one
        assert abs(count / draws - 0.3) < error
    five = met[OWNERS == 7] / draws
    assert (abs(five - 0.3 * 2 / 5) < error).all()
    # The planted fault: two images of one patient drawn as two would meet the patient more often.
    by_image = 1 - 0.7 ** np.array([5, 2])
    assert (by_image - 0.3 > error).all()


def test_a_padded_place_has_an_image_of_the_same_patient() -> None:
    patients = Patients(OWNERS, None)
    rows, there = patients.draw(torch.arange(4), torch_generator(0))
    assert rows.shape == (4, 5)
    for row, number in zip(rows, np.unique(OWNERS), strict=True):
        assert set(OWNERS[row.numpy()]) == {number}
    assert there.sum() == len(OWNERS)
    assert sorted(rows[there].tolist()) == list(range(len(OWNERS)))


@pytest.mark.parametrize(("noise_multiplier", "right"), [(2.0, True), (2.1, False), (1.9, False)])
def test_the_noise_of_a_step_on_patients(noise_multiplier: float, right: bool) -> None:
    patients = Patients(OWNERS, 3)
    trainer = make_trainer(gradient_mode="hooks", momentum=0.0, share_momentum=False)
    module = build_network("cnn")
    inputs, labels = build_batch("cnn", len(OWNERS))
    state = ModelState.of(module, momentum=False)

    def after(multiplier: float) -> torch.Tensor:
        update = trainer.train(
            module,
            objective("cnn"),
            inputs,
            labels,
            plan=plan_of(patients, noise_multiplier=multiplier),
            state=state,
            sample_generator=torch_generator(1),
            noise_stream=NoiseStream(derive_key(1, "noise", 0)),
            device=CPU,
            patients=patients,
        )
        return torch.cat([tensor.flatten() for tensor in update.state.tensors().values()])

    scale = 0.1 * 2.0 * 0.5 / len(patients)  # rate, multiplier and clip norm over the expected batch, of patients
    noise = ((after(noise_multiplier) - after(0.0)) / scale)[:60_000]
    assert is_standard_normal(noise) == right


def test_views_of_a_patients_images_and_pieces_of_a_batch() -> None:
    inputs, labels = build_batch("cnn", len(OWNERS))
    patients = Patients(OWNERS, 3)
    images, marked = drawn(patients, inputs, labels)
    for kind, multiplicity in (("shift", 1), ("affine", 2)):
        loss = RecordLoss(
            build_network("cnn"), objective("cnn").loss, views=patients.views * multiplicity, images=patients.views
        )
        whole, pieces = (
            MicroBatches(MODES["hooks"](loss), size, make_views(kind, multiplicity), images=patients.views).clipped_sum(
                images, marked, 0.1
            )
            for size in (64, 6)
        )
        assert relative_error(pieces, whole) < 1e-5
        views = make_views(kind, multiplicity)
        seen = views.apply(images.flatten(0, 1), views.draw(marked.numel())).reshape(4, -1, 1, 28, 28)
        exact = loop(loss, seen, marked.repeat_interleave(multiplicity, 1), 0.1)
        assert relative_error(whole, exact) < 1e-5


def test_a_hospital_without_patients_draws_none() -> None:
    nobody = Patients(np.empty(0, np.int64), 4)
    images, marked = drawn(nobody, torch.zeros(0, 1, 28, 28), torch.zeros(0, dtype=torch.int64))
    assert len(images) == len(marked) == len(nobody) == 0
