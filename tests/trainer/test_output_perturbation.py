"""A head trained to the end and noised once: its minimum, how far a record moves it, its noise, and what it refuses."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from scipy.optimize import minimize
from torch import nn
from torch.nn import functional

from medx.aggregation.integer_noise import NoiseStream
from medx.privacy.base import ClientPlan, PrivacyPlan, SampledGaussian
from medx.privacy.mechanisms import NoPrivacy
from medx.privacy.units import CLIENT, PATIENT, RECORD
from medx.randomness import derive_key, torch_generator
from medx.schema import ConfigError, PrivacyError
from medx.trainer import output_perturbation
from medx.trainer.gradients.record_loss import NonFiniteGradientError, RecordLoss
from medx.trainer.least_squares import noise_stddev
from medx.trainer.output_perturbation import OutputPerturbation, slope_and_curvature
from medx.trainer.state import ModelState
from tests.trainer.test_least_squares import FEATURES, RECORDS, TASKS, batch, flat, head_of, task, trained
from tests.trainer.test_local_training import CONF, CPU, make_plan

CLIP = 0.5
STEP = SampledGaussian(1.0, 2.0, CLIP)


def make_trainer(**changes: object) -> OutputPerturbation:
    fields = yaml.safe_load((CONF / "output_perturbation.yaml").read_text())
    del fields["_target_"]
    return OutputPerturbation(**(fields | {"feature_norm": 1.0, "ridge_noise": 0.0} | changes))


def started(name: str) -> nn.Module:
    """A head that starts somewhere."""
    network = head_of(task(name)[0])
    with torch.no_grad():
        network[0].weight.normal_(generator=torch.Generator().manual_seed(2))
    return network


def planned(step: SampledGaussian | None = STEP) -> ClientPlan:
    """A hospital that declared RECORDS records, all of them in the one step."""
    plan = make_plan(steps=1, records=RECORDS)
    return replace(plan, step=step, num_rounds=1, sampling_probability=1, expected_batch_size=RECORDS)


def ways(trainer: OutputPerturbation, name: str, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What the hospital gives for the sum."""
    module = started(name)
    sums = trainer.clipped_gradient(
        module, task(name)[1], inputs, labels,
        plan=planned(), state=ModelState.of(module), sample_generator=torch_generator(0), device=CPU,
    )  # fmt: skip
    return flat(sums)


def by_scipy(name: str, inputs: torch.Tensor, labels: torch.Tensor, ridge: float) -> np.ndarray:
    """The minimum, with losses written out in numpy."""
    x, y = functional.normalize(inputs.double()).numpy(), labels.numpy()
    start = np.concatenate([p.detach().double().numpy().ravel() for p in started(name).parameters()])

    def mean_loss(head: np.ndarray) -> float:
        if name == "ordinal":
            logits = head[None, FEATURES:] - (x @ head[:FEATURES])[:, None]
            signs = np.where(y[:, None] > np.arange(3), 1.0, -1.0)
            return np.logaddexp(0, signs * logits).mean(1).sum() / RECORDS
        logits = x @ head.reshape(-1, FEATURES).T
        if name == "multiclass":
            losses = np.logaddexp.reduce(logits, axis=1) - np.take_along_axis(logits, y[:, None], 1)[:, 0]
            return losses.sum() / RECORDS
        marked = y[:, None] if name == "binary" else y
        return (np.logaddexp(0, np.where(marked > 0, -1.0, 1.0) * logits) * (marked >= 0)).sum() / RECORDS

    found = minimize(lambda h: mean_loss(h) + ridge / 2 * ((h - start) ** 2).sum(), start, tol=1e-12)
    return found.x - start


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("ridge", [0.01, 0.3])
def test_what_is_sent_is_the_way_to_the_minimum(name: str, ridge: float) -> None:
    inputs, labels = batch(name)
    inputs = functional.normalize(inputs)
    trainer = make_trainer(ridge=ridge)
    unit = trainer.unit(task(name)[1], planned(), started(name))
    way = -ways(trainer, name, inputs, labels).numpy() / RECORDS / unit
    wanted = by_scipy(name, inputs, labels, ridge)
    assert np.abs(way - wanted).max() < 1e-4 * np.abs(wanted).max()
    slope, _ = slope_and_curvature(task(name)[1], 1.0)
    assert unit == pytest.approx(CLIP * ridge / slope, rel=1e-5)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("ridge", [0.03, 1.0])
@pytest.mark.parametrize("size", [1.0, 1e15])
def test_taking_a_record_out_moves_the_sum_by_at_most_the_clip_norm(name: str, ridge: float, size: float) -> None:
    inputs, labels = batch(name)
    inputs[7] = size * functional.normalize(inputs[7:8])[0]
    rest = torch.arange(RECORDS) != 7
    trainer = make_trainer(ridge=ridge)
    moved = ways(trainer, name, inputs, labels) - ways(trainer, name, inputs[rest], labels[rest])
    assert 0 < moved.norm() <= CLIP


def against_all_others(trainer: OutputPerturbation, size: float = 1.0) -> float:
    """How far the one healthy among the sick moves the sum, all alike in features, in clip norms."""
    inputs, labels = torch.zeros(RECORDS, FEATURES), torch.ones(RECORDS).long()
    inputs[:, 0], labels[7], inputs[7, 0] = 1.0, 0, size
    rest = torch.arange(RECORDS) != 7
    moved = ways(trainer, "binary", inputs, labels) - ways(trainer, "binary", inputs[rest], labels[rest])
    return float(moved.norm()) / CLIP


def test_planted_faults_are_found_by_the_same_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that nobody scales down, a slope that is too small, and a sum in place of a mean."""
    trainer = make_trainer(ridge=0.3)
    assert 0.4 < against_all_others(trainer) <= 1, "the bound is no more than about twice what a record can do"
    assert against_all_others(trainer, 1e6) <= 1
    right = slope_and_curvature
    monkeypatch.setattr(output_perturbation, "slope_and_curvature", lambda o, n: (right(o, n)[0] / 3, right(o, n)[1]))
    assert against_all_others(trainer) > 1.2
    monkeypatch.setattr(output_perturbation, "slope_and_curvature", lambda o, n: (right(o, 1.0)[0], 1e3 * n))
    assert against_all_others(replace(trainer, feature_norm=30.0), 30.0) > 1.2, "longer than what the slope is for"
    monkeypatch.undo()
    first = output_perturbation.Ways.__init__
    fewer = replace(planned(), num_records=4)
    monkeypatch.setattr(output_perturbation.Ways, "__init__", lambda self, *given: first(self, *given[:-1], fewer))
    assert against_all_others(trainer) <= 1, "fewer records are a larger share of each, and the unit is of them"


@pytest.mark.parametrize("name", TASKS)
def test_slope_and_curvature_are_bounds_and_reached(name: str) -> None:
    """Against autograd, over many heads, records and labels of norm 2."""
    spec, objective = task(name)
    slope, curvature = slope_and_curvature(objective, 2.0)
    slopes, curvatures = [], []
    generator = torch.Generator().manual_seed(0)
    for number in range(60):
        head = head_of(spec, 1).double()
        x = torch.tensor([[2.0]]).double()
        label = (
            torch.ones(1, 4).long()
            if name == "multilabel"
            else torch.randint(0, spec.num_classes, (1,), generator=generator)
        )
        sizes = [p.numel() for p in head.parameters()]
        flat_head = torch.randn(sum(sizes), generator=generator).double() * 10 ** (number % 4 - 2)

        def loss(vector: torch.Tensor, head=head, sizes=sizes, x=x, label=label) -> torch.Tensor:
            parts = vector.split(sizes)
            named = {n: part.view(p.shape) for (n, p), part in zip(head.named_parameters(), parts, strict=True)}
            return objective.loss(torch.func.functional_call(head, named, (x,)), label).sum()

        slopes.append(float(torch.autograd.functional.jacobian(loss, flat_head).norm()))
        curvatures.append(float(torch.linalg.matrix_norm(torch.autograd.functional.hessian(loss, flat_head), 2)))
    assert 0.8 * slope < max(slopes) <= slope
    assert 0.5 * curvature < max(curvatures) <= curvature


def test_the_noise_is_the_plans() -> None:
    """2,000 Gaussian numbers: their variance is within 12 % of the plan's, and so 2/3 and 3/2 are not."""
    released, plan = trained(make_trainer(), 2000, noise=3.0)
    start = torch.cat([p.detach().flatten() for p in head_of(task("binary")[0], 2000).parameters()]).numpy()
    scaled = (released - start) / noise_stddev(plan)
    assert noise_stddev(plan) == pytest.approx(3.0 * CLIP / 50)
    for factor, right in ((1.0, True), (1.5, False), (1 / 1.5, False)):
        assert (abs((scaled * factor).var() - 1) < 0.12) == right


@pytest.mark.parametrize("clip_norm", [CLIP, 20.0, None])
def test_the_unit_comes_off_again(clip_norm: float | None) -> None:
    """Without noise the head is the minimum, whatever the clip norm."""
    inputs, labels = batch("ordinal")
    inputs = functional.normalize(inputs)
    spec, objective = task("ordinal")
    trainer, network = make_trainer(ridge=0.05), started("ordinal")
    step = None if clip_norm is None else SampledGaussian(1.0, 0.0, clip_norm)
    plan = planned(step)
    update = trainer.train(
        network, objective, inputs, labels, plan=plan, state=ModelState.of(network), device=CPU,
        sample_generator=torch_generator(0), noise_stream=NoiseStream(derive_key(0, "noise")),
    )  # fmt: skip
    whole = PrivacyPlan(mechanism=NoPrivacy(), clients=(plan,))
    head = trainer.solved(started("ordinal"), objective, update.state.parameter_tensors(), whole)
    way = torch.cat([(head[n] - p.detach()).flatten() for n, p in started("ordinal").named_parameters()]).numpy()
    wanted = by_scipy("ordinal", inputs, labels, 0.05)
    assert np.abs(way - wanted).max() < 2e-3 * np.abs(wanted).max()
    assert spec.num_classes == 4


def test_the_ridge_follows_from_the_plan_and_the_unit_of_all_hospitals_is_one() -> None:
    trainer, head, objective = make_trainer(ridge=0.01, ridge_noise=0.5), started("multiclass"), task("multiclass")[1]
    plan = replace(planned(), federation_batch_size=200)
    noise = math.sqrt(2) * 2.0 * math.sqrt(4 * FEATURES) / 200
    assert trainer.ridge_for(objective, plan, head) == pytest.approx(0.01 + 0.5 * noise ** (2 / 3))
    assert trainer.ridge_for(objective, planned(None), head) == 0.01
    larger = replace(plan, client=1, num_records=10 * RECORDS)
    whole = PrivacyPlan(mechanism=NoPrivacy(), clients=(plan, larger, replace(plan, client=2, num_records=0)))
    average = {name: parameter.detach() for name, parameter in head.named_parameters()}
    assert all(
        torch.equal(head, average[name]) for name, head in trainer.solved(head, objective, average, whole).items()
    )
    noisier = replace(larger, step=SampledGaussian(1.0, 3.0, CLIP))
    with pytest.raises(ConfigError, match="hospitals' noise differs"):
        trainer.solved(head, objective, average, replace(whole, clients=(plan, noisier)))


def test_no_records_send_nothing_and_what_is_not_finite_makes_the_hospital_abstain() -> None:
    inputs, labels = batch()
    assert not ways(make_trainer(), "binary", inputs[:0], labels[:0]).any()
    for bad in (math.nan, math.inf):
        inputs[3, 2] = bad
        with pytest.raises(NonFiniteGradientError):
            ways(make_trainer(), "binary", inputs, labels)


def from_start(start: torch.Tensor, inputs: torch.Tensor, labels: torch.Tensor, feature_norm: float) -> torch.Tensor:
    """What a hospital gives for the sum where the server's head is ``start``."""
    module = started("binary")
    with torch.no_grad():
        module[0].weight.copy_(start)
    return flat(make_trainer(ridge=0.03, feature_norm=feature_norm).clipped_gradient(
        module, task("binary")[1], inputs, labels,
        plan=planned(), state=ModelState.of(module), sample_generator=torch_generator(0), device=CPU,
    ))  # fmt: skip


@pytest.mark.parametrize("feature_norm", [0.5, 4.0])
def test_a_start_so_far_away_that_rounding_decides_is_refused_without_a_look_at_records(feature_norm: float) -> None:
    """At 1e16 logits are whole numbers, which a record that moves the head by nearly nothing can tip for all others."""
    inputs, labels = batch()
    inputs[7, 0], direction = 0.0, torch.eye(FEATURES)[:1]  # this record's logit is 0 at any of these starts
    farthest = output_perturbation.FARTHEST / max(1.0, feature_norm)
    for length in (1.01 * farthest, 1e16, 1e38, math.inf, math.nan):
        for records in (RECORDS, 0):
            with pytest.raises(PrivacyError, match=r"the server's model is not finite or too long: .* at most \S+$"):
                from_start(length * direction, inputs[:records], labels[:records], feature_norm)
    network = head_of(task("binary")[0])
    network[0].weight.data.copy_(1.01 * farthest * direction)
    with pytest.raises(ConfigError, match=r"model: its head starts farther from zero than \S+, .*model\.phantom_start"):
        make_trainer(feature_norm=feature_norm).trained_module(network, task("binary")[1])
    rest = torch.arange(RECORDS) != 7
    start = 0.99 * farthest * direction
    moved = from_start(start, inputs, labels, feature_norm) - from_start(
        start, inputs[rest], labels[rest], feature_norm
    )
    assert 0 < moved.norm() <= CLIP


@pytest.mark.parametrize("name", TASKS)
def test_a_ridge_so_small_that_it_takes_too_long_is_refused(name: str) -> None:
    network, objective = head_of(task(name)[0]), task(name)[1]
    least = slope_and_curvature(objective, 2.0)[1] / output_perturbation.MOST_CONDITION
    make_trainer(ridge=1.001 * least, feature_norm=2.0).trained_module(network, objective)
    with pytest.raises(ConfigError, match=r"trainer\.ridge=\S+: accepted .* trainer\.feature_norm=2 is at least \S+;"):
        make_trainer(ridge=0.999 * least, feature_norm=2.0).trained_module(network, objective)


def test_how_long_it_takes_and_that_it_ends_depend_on_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hardest records all say the same; the easiest have no features. At both the minimum is found."""
    counted: list[int] = []
    right = RecordLoss.gradient
    monkeypatch.setattr(RecordLoss, "gradient", lambda self, *given: counted.append(1) or right(self, *given))
    inputs, labels = torch.zeros(RECORDS, FEATURES), torch.ones(RECORDS).long()
    taken = []
    for first in (0.0, 1.0):
        inputs[:, 0] = first
        assert ways(make_trainer(ridge=1e-5), "binary", inputs, labels).any() == (first > 0)
        taken.append(len(counted))
        counted.clear()
    assert taken[0] == taken[1] > 1000


def test_what_it_does_not_fit_is_refused() -> None:
    trainer = make_trainer()
    trainer.check_round(1, "federation/fedavg", RECORD)
    for rounds, federation, unit, says in (
        (2, "fedavg", RECORD, r"num_rounds=2: accepted with trainer=output_perturbation is 1"),
        (1, "krum", RECORD, r"federation=krum: .* accepted: fedavg"),
        (1, "fedavg", CLIENT, r"privacy=central_dp: .* accepted: none, local_dp, distributed_dp"),
        (1, "fedavg", PATIENT, r"privacy\.unit=patient: .* accepted: record"),
    ):
        with pytest.raises(ConfigError, match=says):
            trainer.check_round(rounds, f"federation/{federation}", unit)
    for key, value in (("expected_batch_size", 10), ("class_weights", (1.0, 2.0)), ("gradient_mode", "naive")):
        with pytest.raises(ConfigError, match=rf"trainer\.{key}=.*: accepted with trainer=output_perturbation is"):
            make_trainer(**{key: value})
    with pytest.raises(ConfigError, match="no linear head without bias"):
        trainer.trained_module(nn.Sequential(nn.Linear(3, 1)), task("binary")[1])
