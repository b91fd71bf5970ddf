"""One round of least squares: its clipped sum, its noise, its head, and what it refuses."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional

from medx.aggregation.integer_noise import NoiseStream
from medx.dataset import InputSpec
from medx.model import Objective
from medx.model.layers import LinearHead, initialise
from medx.model.moments import Moments, MomentsObjective, num_targets
from medx.model.objectives import MultilabelObjective, objective_for
from medx.privacy.base import PrivacyPlan, SampledGaussian, SharedNoise
from medx.privacy.mechanisms import NoPrivacy
from medx.privacy.units import CLIENT, RECORD
from medx.randomness import derive_key, torch_generator
from medx.schema import ConfigError
from medx.trainer.gradients import MODES, build_mode
from medx.trainer.gradients.moment_sums import MomentSums
from medx.trainer.gradients.record_loss import RecordLoss, float32_slack
from medx.trainer.least_squares import CONSTANT, LeastSquares, cut_points, noise_stddev
from medx.trainer.local_training import Trainer
from medx.trainer.state import ModelState
from tests.trainer.examples import relative_error
from tests.trainer.test_local_training import CONF, CPU, make_plan

FEATURES, RECORDS = 6, 40
TASKS = ("binary", "multiclass", "ordinal", "multilabel")


def make_trainer(**changes: object) -> LeastSquares:
    fields = yaml.safe_load((CONF / "least_squares.yaml").read_text())
    del fields["_target_"]
    return LeastSquares(**(fields | changes))


def task(name: str) -> tuple[InputSpec, Objective]:
    spec = InputSpec(num_channels=1, image_size=28, num_classes=2 if name == "binary" else 4, task=name)
    return spec, objective_for(spec)


def head_of(spec: InputSpec, features: int = FEATURES) -> nn.Module:
    with torch.device("meta"):
        head = LinearHead(features, spec, bias=False)
    return initialise(head, seed=0)


def constant_of(name: str) -> float:
    return CONSTANT if name == "ordinal" else 0.0


def batch(name: str = "binary", records: int = RECORDS) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of norms from far below 1 to far above it."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(records, FEATURES, generator=generator) * torch.logspace(-2, 1, records)[:, None]
    if name == "multilabel":
        return inputs, torch.randint(-1, 2, (records, 4), generator=generator)
    return inputs, torch.randint(0, 2 if name == "binary" else 4, (records,), generator=generator)


def record_loss(name: str, **more: int) -> RecordLoss:
    objective = task(name)[1]
    moments = Moments(FEATURES, num_targets(objective), 0.4, constant_of(name))
    return RecordLoss(moments, MomentsObjective(objective).loss, **more)


def by_hand(name: str, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """``[records, numbers]``: each record's moments, written out in float64 without anything of the package."""
    rows, targets = [], MomentsObjective(task(name)[1]).targets(labels)
    for x, t in zip(inputs.double(), targets.double(), strict=True):
        gram = [
            float(x[i] * x[j]) * (1 if i == j else math.sqrt(2)) for i in range(FEATURES) for j in range(i, FEATURES)
        ]
        beside = torch.cat((x, torch.tensor([constant_of(name)] if constant_of(name) else []).double()))
        rows.append(
            torch.cat([math.sqrt(0.6) * torch.tensor(gram).double(), math.sqrt(0.4) * torch.outer(t, beside).ravel()])
        )
    return torch.stack(rows)


def flat(sums: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([each.double().flatten() for each in sums])


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("clip_norm", [0.05, 1.0, math.inf])
def test_the_closed_form_is_a_loop_over_records(name: str, clip_norm: float) -> None:
    inputs, labels = batch(name)
    loss = record_loss(name)
    own = -by_hand(name, inputs, labels)
    exact = (own * (clip_norm / own.norm(dim=1, keepdim=True)).clamp(max=1)).sum(0)
    assert (flat(MomentSums(loss).clipped_sum(inputs, labels, clip_norm)) - exact).norm() < 1e-6 * exact.norm()
    modes = [MODES[mode](loss) for mode in ("naive", "vmap", "auto")]
    for mode in modes if clip_norm < math.inf else [*modes, build_mode("auto", loss, private=False)]:
        assert (flat(mode.clipped_sum(inputs, labels, clip_norm)) - exact).norm() < 1e-5 * exact.norm()
    unclipped = own.sum(0)
    assert clip_norm == math.inf or (unclipped - exact).norm() > 0.1 * exact.norm()


@pytest.mark.parametrize("name", TASKS)
def test_records_with_features_and_targets_of_norm_one_are_at_most_one_long(name: str) -> None:
    inputs, labels = batch(name)
    inputs = functional.normalize(inputs)
    own = by_hand(name, inputs, labels)
    assert own.norm(dim=1).max() < 1 + 1e-6 + constant_of(name) ** 2
    assert own.norm(dim=1).max() > 0.999


@pytest.mark.parametrize("most", [1, 3])
def test_a_patients_mean_is_clipped_as_one(most: int) -> None:
    inputs, labels = batch()
    images, marked = (each.view(10, 4, -1)[:, :most] for each in (inputs, labels))
    marked = marked[..., 0].clone()
    if most > 1:
        marked[:3, -1] = -1
    loss = record_loss("binary", views=most, images=most)
    given = (images, marked) if most > 1 else (images[:, 0], marked[:, 0])
    exact = MODES["naive"](RecordLoss(copy.deepcopy(loss.module).double(), loss.loss, views=most, images=most))
    wanted = exact.clipped_sum(given[0].double(), given[1], 0.3)
    assert relative_error(MomentSums(loss).clipped_sum(*given, 0.3), wanted) < 1e-6


def test_no_records_and_what_is_not_finite() -> None:
    loss = record_loss("binary")
    inputs, labels = batch()
    assert all(not total.any() for total in MomentSums(loss).clipped_sum(inputs[:0], labels[:0], 1.0))
    for bad in (math.nan, math.inf):
        inputs[3, 2] = bad
        assert any(total.isnan().any() for total in MomentSums(loss).clipped_sum(inputs, labels, 1.0))


def summed(
    trainer: LeastSquares, inputs: torch.Tensor, labels: torch.Tensor, clip_norm: float, records: int = RECORDS
) -> torch.Tensor:
    spec, objective = task("binary")
    module = trainer.trained_module(head_of(spec), objective)
    plan = make_plan(steps=1, records=records)
    plan = replace(plan, step=replace(plan.step, clip_norm=clip_norm))
    sums = trainer.clipped_gradient(
        module, objective, inputs, labels,
        plan=plan, state=ModelState.of(module), sample_generator=torch_generator(0), device=CPU,
    )  # fmt: skip
    return flat(sums)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6, 1e15])
def test_taking_a_record_out_moves_the_sum_by_at_most_the_clip_norm(size: float) -> None:
    inputs, labels = batch()
    inputs[7] = size * functional.normalize(inputs[7:8])[0]
    rest = torch.arange(RECORDS) != 7
    moved = summed(make_trainer(), inputs, labels, 0.5) - summed(make_trainer(), inputs[rest], labels[rest], 0.5)
    assert moved.norm() <= 0.5 * (1 + float32_slack(RECORDS))
    assert size < 1 or moved.norm() > 0.499


def test_an_unclipped_sum_is_found_by_the_same_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault, so that the test above is known to be able to fail."""
    right = MomentSums.clipped_sum
    monkeypatch.setattr(MomentSums, "clipped_sum", lambda self, x, y, clip_norm: right(self, x, y, math.inf))
    inputs, labels = batch()
    inputs[7] *= 1e6
    rest = torch.arange(RECORDS) != 7
    moved = summed(make_trainer(), inputs, labels, 0.5) - summed(make_trainer(), inputs[rest], labels[rest], 0.5)
    assert moved.norm() > 1e6


def trained(trainer: Trainer, features: int, noise: float, seed: int = 0) -> tuple[np.ndarray, PrivacyPlan]:
    """What a hospital with records of zeros sends, which is noise alone, and the plan."""
    spec, objective = task("binary")
    module = trainer.trained_module(head_of(spec, features), objective)
    plan = replace(make_plan(steps=1, records=50), num_rounds=1, step=SampledGaussian(1.0, noise, 0.5))
    update = trainer.train(
        module, objective, torch.zeros(50, features), torch.zeros(50).long(), plan=plan, state=ModelState.of(module),
        sample_generator=torch_generator(0), noise_stream=NoiseStream(derive_key(seed, "noise")), device=CPU,
    )  # fmt: skip
    return update.state.parameters, PrivacyPlan(mechanism=NoPrivacy(), clients=(plan,))


def test_the_released_moments_have_the_noise_that_the_ridge_is_chosen_by() -> None:
    """2,000 and more Gaussian numbers: their variance is within 12 % of the plan's, and so 2/3 and 3/2 are not."""
    released, plan = trained(make_trainer(), 64, noise=3.0)
    scaled = released / noise_stddev(plan)
    assert noise_stddev(plan) == pytest.approx(3.0 * 0.5 / 50)
    assert abs(scaled.var() - 1) < 0.12
    assert abs((scaled / 1.5).var() - 1) > 0.12
    assert abs((scaled * 1.5).var() - 1) > 0.12
    assert abs(scaled.mean()) < 4 / math.sqrt(scaled.size)


def test_the_noises_norm_is_what_the_ridge_takes_it_for() -> None:
    released, plan = trained(make_trainer(), 64, noise=3.0)
    moments = Moments(64, 1, 0.5)
    gram = moments.matrix(torch.from_numpy(released[: 64 * 65 // 2].copy()).double())
    assert float(torch.linalg.matrix_norm(gram, 2)) == pytest.approx(noise_stddev(plan) * math.sqrt(128), rel=0.15)


@pytest.mark.parametrize("name", TASKS)
def test_without_privacy_the_head_is_numpys_ridge(name: str) -> None:
    inputs, labels = batch(name)
    spec, objective = task(name)
    trainer = make_trainer(ridge=0.01, cross_share=0.3, temperature=3.0)
    network = head_of(spec)
    nn.init.normal_(network[0].weight, generator=torch.Generator().manual_seed(2))
    plan = replace(make_plan(steps=1, records=RECORDS), step=None, num_rounds=1)
    module = trainer.trained_module(network, objective)
    update = trainer.train(
        module, objective, inputs, labels, plan=plan, state=ModelState.of(module), sample_generator=torch_generator(0),
        noise_stream=NoiseStream(derive_key(0, "noise")), device=CPU,
    )  # fmt: skip
    whole = PrivacyPlan(mechanism=NoPrivacy(), clients=(plan,))
    solved = trainer.solved(network, objective, update.state.parameter_tensors(), whole)
    x, start = inputs.double().numpy(), network[0].weight.detach().double().numpy() / 3.0
    targets = MomentsObjective(objective).targets(labels).double().numpy()
    if name == "ordinal":  # one score, on a scale from -1 to 1
        targets = 2 * labels.double().numpy()[:, None] / 3 - 1
    gram, cross = x.T @ x / RECORDS, targets.T @ x / RECORDS
    ridge = 3.0 * np.linalg.solve(gram + 0.01 * np.eye(FEATURES), (cross + 0.01 * start).T).T
    assert np.abs(solved["0.weight"].double().numpy() - ridge).max() < 1e-3 * np.abs(ridge).max()
    assert solved.keys() == dict(network.named_parameters()).keys()
    network.load_state_dict(solved)
    assert objective.probabilities(network(inputs)).shape == (RECORDS, spec.num_classes)


def test_class_weights_and_gradient_modes_are_those_of_every_trainer() -> None:
    inputs, labels = batch()
    weighted = make_trainer(class_weights=(0.2, 3.0))
    sums = {mode: summed(replace(weighted, gradient_mode=mode), inputs, labels, 0.5) for mode in ("auto", "naive")}
    assert (sums["auto"] - sums["naive"]).norm() < 1e-5 * sums["naive"].norm()
    assert (sums["auto"] - summed(make_trainer(), inputs, labels, 0.5)).norm() > 0.01


def test_targets_are_public_numbers_of_norm_one_at_most() -> None:
    for name in TASKS[:3]:
        table = MomentsObjective(task(name)[1]).targets(torch.arange(task(name)[0].num_classes))
        assert table.norm(dim=1).max() == pytest.approx(1)
        assert name == "ordinal" or table.sum(0).abs().max() < 1e-6
    several = MomentsObjective(MultilabelObjective(4)).targets(torch.tensor([[1, 0, -1, 1]]))
    assert several.tolist() == [[0.5, -0.5, 0.0, 0.5]]


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        ("local_steps", 2, "1"),
        ("momentum", 0.9, "0.0"),
        ("ema_decay", 0.5, "0.0"),
        ("learning_rate_noise", 0.1, "null"),
    ],
)
def test_what_would_make_it_another_sum_is_refused(key: str, value: float, accepted: str) -> None:
    with pytest.raises(ConfigError, match=rf"trainer\.{key}={value}: accepted .* is {accepted}"):
        make_trainer(**{key: value})


def test_rounds_strategies_units_and_models_that_it_does_not_fit() -> None:
    trainer = make_trainer()
    trainer.check_round(1, "federation/fedavg", RECORD)
    trainer.check_round(1, "federation/fedavg", None)
    with pytest.raises(ConfigError, match=r"federation.num_rounds=300: accepted .* is 1"):
        trainer.check_round(300, "federation/fedavg", RECORD)
    with pytest.raises(ConfigError, match=r"federation=krum: .* accepted: fedavg"):
        trainer.check_round(1, "federation/krum", RECORD)
    with pytest.raises(ConfigError, match=r"privacy=central_dp: .* accepted: none, local_dp, distributed_dp"):
        trainer.check_round(1, "federation/fedavg", CLIENT)
    spec, objective = task("binary")
    for network in (nn.Sequential(nn.Linear(3, 1)), LinearHead(3, spec, bias=True)):
        with pytest.raises(ConfigError, match=r"no linear head without bias"):
            trainer.trained_module(network, objective)


def test_the_noise_of_a_sum_and_of_a_mean_follow_from_the_plan() -> None:
    step = SampledGaussian(1.0, 3.0, 0.5)
    clients = tuple(
        replace(make_plan(steps=1, records=n), client=i, step=step, federation_batch_size=100.0)
        for i, n in enumerate((50, 30, 20))
    )
    apart = PrivacyPlan(mechanism=NoPrivacy(), clients=clients)
    assert noise_stddev(apart) == pytest.approx(1.5 * math.sqrt(3) / 100)  # of a mean by records
    together = replace(apart, shared_noise=SharedNoise(2, 0, trusted_aggregator=True))
    assert noise_stddev(together) == pytest.approx(1.5 * math.sqrt(3 / 2) / 100)  # two of three would have made it
    silent = tuple(replace(client, step=None) for client in clients)
    assert noise_stddev(PrivacyPlan(mechanism=NoPrivacy(), clients=silent)) == 0


def test_cut_points_leave_the_shares_of_records_below_them() -> None:
    shares, temperature, spread = torch.tensor([0.3, 0.45, 0.8]), 4.0, 0.09
    points = cut_points(1 - 2 * shares, temperature, temperature**2 * spread)
    mean = float((1 - 2 * shares).mean())
    scores = temperature * (mean + math.sqrt(spread) * torch.randn(100_000, generator=torch.Generator().manual_seed(0)))
    below = torch.sigmoid(points[:, None] - scores).mean(1)
    assert (below - shares).abs().max() < 0.01
    noised = cut_points(torch.tensor([1.4, -0.2, 0.1]), temperature, 0.0)  # what noise may make of means
    assert torch.isfinite(noised).all()
    assert (noised.diff() >= 0).all()


def test_ordered_classes_get_cut_points_of_their_shares_at_any_clip_norm() -> None:
    """Where all records are clipped alike, the head is the same."""
    spec, objective = task("ordinal")
    inputs, labels = batch("ordinal")
    inputs, labels = functional.normalize(inputs), labels.clamp(max=2)  # nobody has the last grade
    heads = []
    for clip_norm in (10.0, 0.1):
        trainer, network = make_trainer(ridge=1e-9), head_of(spec)
        plan = make_plan(steps=1, records=RECORDS)
        plan = replace(plan, step=replace(plan.step, clip_norm=clip_norm, noise_multiplier=0.0))
        module = trainer.trained_module(network, objective)
        state = trainer.train(
            module, objective, inputs, labels, plan=plan, state=ModelState.of(module), device=CPU,
            sample_generator=torch_generator(0), noise_stream=NoiseStream(derive_key(0, "noise")),
        ).state  # fmt: skip
        plans = PrivacyPlan(mechanism=NoPrivacy(), clients=(plan,))
        heads.append(trainer.solved(network, objective, state.parameter_tensors(), plans))
    assert relative_error([heads[1]["0.weight"]], [heads[0]["0.weight"]]) < 1e-2
    points = heads[0]["1.cutpoints"]
    assert points.diff().min() > 0
    assert points[2] - points[1] > points[1] - points[0]  # almost all are believed to be below the last
    assert (heads[1]["1.cutpoints"] - points).abs().max() < 0.3
