"""A client's round: the noise of a released step, what may differ between runs, and what must not."""

import dataclasses
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from hydra.utils import instantiate
from pydantic import ValidationError
from scipy import stats
from torch import nn

from medx.aggregation.integer_noise import NoiseStream, accounting_gap, discrete_gaussian, grid_sensitivity
from medx.hints import option
from medx.model.layers import LinearHead
from medx.privacy.base import ClientPlan, SampledGaussian
from medx.randomness import derive_key, derive_seed, torch_generator
from medx.schema import ConfigError, PrivacyError
from medx.trainer.gradients.record_loss import NonFiniteGradientError, RecordLoss, float32_slack
from medx.trainer.local_training import Trainer, refuse_batch_statistics
from medx.trainer.release import GaussianRelease, release_grid
from medx.trainer.state import ModelState
from tests.trainer.examples import BINARY, SPEC, build_batch, build_network, objective, reference, relative_error

CPU = torch.device("cpu")
CONF = Path(__file__).parents[2] / "conf" / "trainer"
PRESETS = sorted(CONF.glob("*.yaml"), key=lambda path: path.name)


def make_trainer(**changes: object) -> Trainer:
    fields = yaml.safe_load((CONF / "cnn.yaml").read_text()) | {"expected_batch_size": None, "learning_rate": 0.1}
    del fields["_target_"]
    return Trainer(**(fields | changes))


def make_plan(steps: int = 2, probability: float = 1.0, private: bool = True, records: int = 4) -> ClientPlan:
    step = SampledGaussian(probability, noise_multiplier=2.0, clip_norm=0.5) if private else None
    return ClientPlan(0, records, probability, probability * records, steps, 1, step, probability * records)


def run(trainer: Trainer, plan: ClientPlan, name: str = "cnn", client: int = 0, mu: float = 0.0, **changes: object):
    module = build_network(name)
    inputs, labels = build_batch(name, plan.num_records)
    state = ModelState.of(module, momentum=trainer.share_momentum)
    arguments = {
        "inputs": inputs,
        "labels": labels,
        "plan": plan,
        "state": state,
        "sample_generator": torch_generator(derive_seed(1, "sample", client)),
        "noise_stream": NoiseStream(derive_key(1, "noise", client)),
        "device": CPU,
        "proximal_mu": mu,
    }
    update = trainer.train(module, objective(name), **(arguments | changes))
    return state.tensors(), SimpleNamespace(state=update.state.tensors(), finite=update.finite, model=update.state)


def released_noise(name: str, gradient_mode: str, noise_multiplier: float) -> torch.Tensor:
    """The noise in one step's weights, in units of the noise that the plan accounts: N(0, 1) if all is right."""
    plan = make_plan(steps=1)
    assert plan.step is not None
    trainer = make_trainer(gradient_mode=gradient_mode, momentum=0.0, share_momentum=False)
    released = replace(plan, step=replace(plan.step, noise_multiplier=noise_multiplier))
    state, update = run(trainer, released, name)
    _, exact = run(trainer, replace(plan, step=replace(plan.step, noise_multiplier=0.0)), name)
    scale = 0.1 * plan.step.noise_stddev / plan.expected_batch_size
    return torch.cat([(update.state[key] - exact.state[key]).flatten() / scale for key in state])[:60_000]


def is_standard_normal(noise: torch.Tensor) -> bool:
    size = len(noise)
    variance = stats.chi2.cdf(float(noise.double().square().sum()), size)
    return 1e-4 < variance < 1 - 1e-4 and stats.kstest(noise.numpy(), "norm").pvalue > 1e-4


@pytest.mark.parametrize("gradient_mode", ["book_keeping", "hooks", "vmap", "naive"])
@pytest.mark.parametrize("name", ["cnn", "resnet18"])
def test_released_step_has_the_accounted_noise(name, gradient_mode):
    assert is_standard_normal(released_noise(name, gradient_mode, 2.0))
    if name == "cnn":
        for wrong in (2.0 * 2 / 3, 2.0 * 3 / 2):
            assert not is_standard_normal(released_noise(name, gradient_mode, wrong))


def released_from(sums: list[torch.Tensor], step: SampledGaussian, key: bytes = bytes(32), records: int = 100):
    """The gradients that one release makes of these sums, for an expected batch of 2.5, and the release."""
    parameters = [nn.Parameter(torch.zeros(total.shape)) for total in sums]
    release = GaussianRelease(torch.optim.SGD(parameters, lr=1.0), step, 2.5, records, NoiseStream(key))
    release.release([total.clone() for total in sums])
    gradients = [parameter.grad for parameter in parameters]
    return [gradient for gradient in gradients if gradient is not None], release


def test_a_release_is_a_naive_loop_over_integers():
    step = SampledGaussian(1.0, noise_multiplier=1.5, clip_norm=0.2)
    sums = [torch.randn(shape, generator=torch_generator(1)) for shape in [(40, 30), (5,), (2, 3, 4)]]
    sums[0] = sums[0].T  # in no plain order
    gradients, release = released_from(sums, step)
    scale, stddev = release.grid.scale, release.grid.stddev
    noise = iter(discrete_gaussian(NoiseStream(bytes(32)), stddev, 2**13).tolist())
    for total, gradient in zip(sums, gradients, strict=True):
        expected = [(round(float(value) * scale) + next(noise)) / scale / 2.5 for value in total.flatten()]
        assert torch.equal(gradient, torch.tensor(expected).view(total.shape))
    without, _ = released_from(sums, replace(step, noise_multiplier=0.0))
    assert all(torch.equal(gradient, total / 2.5) for gradient, total in zip(without, sums, strict=True))


@pytest.mark.parametrize(("multiplier", "clip", "dimension", "records"), [
    (0.4, 0.1, 10, 60), (8.66, 0.1, 1001, 942), (65.0, 1.0, 11_000_000, 942), (0.3, 3.0, 10, 10**9)
])  # fmt: skip
def test_the_grid_is_fine_and_its_noise_covers_the_sensitivity(multiplier, clip, dimension, records):
    grid = release_grid(SampledGaussian(1.0, multiplier, clip), dimension, records)
    sensitivity = grid_sensitivity(grid.scale, clip * (1 + float32_slack(records)), dimension)
    assert multiplier * sensitivity <= grid.stddev < multiplier * sensitivity + 1
    assert math.log2(grid.scale) % 1 == 0  # so that scaling rounds nothing
    assert records * clip * grid.scale <= 2**52
    fine = 2**27 < grid.stddev <= 2**28
    assert fine == (records < 10**9)
    assert accounting_gap(grid.stddev, 1, dimension, 10_000) < 1e-4


def test_noise_that_no_grid_can_hold_is_refused():
    with pytest.raises(PrivacyError, match="accepted is less than 2\\^28"):
        release_grid(SampledGaussian(1.0, 2.0**20, 0.1), 2**17, 10)


def test_released_noise_is_the_accounted_one_to_the_last_tail():
    """Variance, distribution, independence, and no end at 5.77 standard deviations; two thirds and 3/2 are refused."""
    step = SampledGaussian(1.0, noise_multiplier=3.0, clip_norm=0.2)
    sums = [torch.full((400_000,), 5.0)]

    def noise(key: bytes, of: SampledGaussian = step) -> torch.Tensor:
        ((gradient,), _) = released_from(sums, of, key)
        return (2.5 * gradient.double() - 5.0) / step.noise_stddev

    first, second = noise(bytes(32)), noise(b"k" * 32)
    assert is_standard_normal(first)
    assert is_standard_normal(second)
    assert abs(float(torch.corrcoef(torch.stack((first, second)))[0, 1])) < 5 / 400_000**0.5
    assert abs(float(torch.corrcoef(torch.stack((first[:-8], first[8:])))[0, 1])) < 5 / 400_000**0.5
    for wrong in (2 / 3, 3 / 2):
        assert not is_standard_normal(noise(bytes(32), replace(step, noise_multiplier=3.0 * wrong)))
    drawn = discrete_gaussian(NoiseStream(b"t" * 32), 2**28, 20_000_000)
    beyond = [int((np.abs(drawn) > c * 2**28).sum()) for c in (4.5, 5.0)]
    expected = [20_000_000 * 2 * stats.norm.sf(c) for c in (4.5, 5.0)]
    assert all(abs(count - mean) < 5 * mean**0.5 for count, mean in zip(beyond, expected, strict=True))


def test_clients_have_independent_noise():
    trainer, plan = make_trainer(), make_plan(steps=1)

    def noise(client: int) -> torch.Tensor:
        state, update = run(trainer, plan, client=client)
        return torch.cat([(update.state[key] - state[key]).flatten() for key in state if "/" not in key])

    def independent(first: torch.Tensor, second: torch.Tensor) -> bool:
        # 4 records clipped to 0.5 against noise of 1 on each of 60,000 coordinates: the data's part is invisible.
        return abs(float(torch.corrcoef(torch.stack((first, second)))[0, 1])) < 5 / len(first) ** 0.5

    assert independent(noise(0), noise(1))
    assert not independent(noise(0), noise(0))  # the planted fault: one seed for two clients


def test_two_rounds_are_one_long_one_because_momentum_travels():
    trainer = make_trainer(micro_batch_size=3)
    plan = replace(make_plan(steps=4), step=SampledGaussian(1.0, 0.0, 0.5))
    _, whole = run(trainer, plan)
    _, half = run(trainer, replace(plan, steps_per_round=2))
    _, rest = run(trainer, replace(plan, steps_per_round=2), state=half.model)
    assert whole.state.keys() == rest.state.keys()
    assert "momentum/0.weight" in whole.state
    assert relative_error(list(rest.state.values()), list(whole.state.values())) < 1e-5
    _, forgetful = run(make_trainer(share_momentum=False), replace(plan, steps_per_round=2))
    assert not any(key.startswith("momentum/") for key in forgetful.state)


def test_without_privacy_it_is_plain_descent_over_the_expected_batch():
    trainer = make_trainer(momentum=0.0, share_momentum=False, class_weights=(1.0, 3.0))
    state, update = run(trainer, make_plan(steps=1, private=False))
    network = build_network("cnn")
    inputs, labels = build_batch("cnn", 4)
    (objective("cnn").loss(network(inputs), labels) * torch.tensor([1.0, 3.0])[labels]).sum().div(4).backward()
    expected = [p.detach() - 0.1 * p.grad for p in network.parameters()]
    assert relative_error([update.state[key] for key in state], expected) < 1e-6


def test_empty_batch_is_a_noise_only_step():
    plan = make_plan(steps=1, probability=1e-9)
    state, update = run(make_trainer(momentum=0.0, share_momentum=False), plan)
    assert update.finite
    scale = 0.1 * 1.0 / plan.expected_batch_size
    assert is_standard_normal(torch.cat([(update.state[k] - v).flatten() for k, v in state.items()]) / scale)


def test_proximal_term_depends_on_no_record_and_pulls_back():
    trainer = make_trainer(momentum=0.0, share_momentum=False, learning_rate=0.5)
    plan = replace(make_plan(steps=2), step=SampledGaussian(1.0, 0.0, 0.5))
    state, first = run(trainer, replace(plan, steps_per_round=1))
    _, free = run(trainer, plan)
    _, pulled = run(trainer, plan, mu=0.1)
    for key, start in state.items():
        expected = free.state[key] - 0.5 * 0.1 * (first.state[key] - start)
        torch.testing.assert_close(pulled.state[key], expected, rtol=1e-4, atol=1e-6)


def test_a_client_with_a_bad_record_abstains_with_the_state_it_was_given():
    inputs, labels = build_batch("cnn", 4)
    inputs[2, 0, 0, 0] = math.nan
    state, update = run(make_trainer(), make_plan(), inputs=inputs)
    assert not update.finite
    assert all(torch.equal(update.state[key], state[key]) for key in state)
    module = build_network("cnn")
    with pytest.raises(NonFiniteGradientError):
        clipped_gradient(module, inputs, labels, ModelState.of_tensors(state))


def clipped_gradient(module: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, state: ModelState):
    return make_trainer().clipped_gradient(
        module,
        objective("cnn"),
        inputs,
        labels,
        plan=make_plan(),
        state=state,
        sample_generator=torch_generator(0),
        device=CPU,
    )


def test_clipped_gradient_is_the_sum_without_noise():
    module = build_network("cnn")
    inputs, labels = build_batch("cnn", 4)
    state = ModelState.of(module)
    sums = clipped_gradient(module, inputs, labels, state)
    exact = reference(RecordLoss(module, objective("cnn").loss), inputs, labels, 0.5)
    assert relative_error(sums, exact) < 1e-5


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_build_and_name_every_field(preset):
    fields = option("trainer", preset.stem)
    trainer = instantiate(fields)
    assert isinstance(trainer, Trainer)
    assert fields.keys() - {"_target_"} == {field.name for field in dataclasses.fields(trainer)}


def test_learning_rate_keeps_the_noise_of_a_step():
    trainer = instantiate(yaml.safe_load((CONF / "scatternet.yaml").read_text()))

    def plan(records: int, noise_multiplier: float) -> ClientPlan:
        return replace(make_plan(records=records), step=SampledGaussian(1.0, noise_multiplier, 0.5))

    assert trainer.learning_rate_for(plan(100, 65.0)) == pytest.approx(trainer.learning_rate_noise * 100 / 65.0)
    assert trainer.learning_rate_for(plan(50, 65.0)) == pytest.approx(trainer.learning_rate_for(plan(100, 130.0)))
    assert trainer.learning_rate_for(plan(100, 1e-3)) == trainer.max_learning_rate
    assert trainer.learning_rate_for(replace(plan(100, 1.0), step=None)) == trainer.max_learning_rate
    assert make_trainer().learning_rate_for(plan(100, 65.0)) == 0.1


def test_sampling_probability_follows_the_declared_records():
    assert make_trainer().sampling_probability_for(940) == 1
    assert make_trainer(expected_batch_size=235).sampling_probability_for(940) == 0.25
    assert make_trainer(sampling_probability=0.1).sampling_probability_for(940) == 0.1
    assert make_trainer(expected_batch_size=941).sampling_probability_for(940) == 1, "all that there are"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expected_batch_size": 4, "sampling_probability": 0.5}, "set one of them"),
        ({"learning_rate": None}, "learning_rate_noise"),
        ({"optimizer": "adam"}, "share_momentum"),
        ({"sampling_probability": 1.5}, "sampling_probability"),
        ({"local_steps": 0}, "local_steps"),
        ({"gradient_mode": "magic"}, "gradient_mode"),
        ({"class_weights": (0.0, 1.0)}, "class_weights"),
    ],
)
def test_bad_fields_are_refused_by_name(changes, message):
    with pytest.raises((ConfigError, ValidationError), match=message):
        make_trainer(**changes)


def test_what_couples_records_or_disagrees_is_refused():
    trainer, plan = make_trainer(class_weights=(1.0, 2.0)), make_plan()
    with pytest.raises(ConfigError, match="takes 3 weights"):
        trainer.check(num_classes=3)
    normed = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), LinearHead(1352, BINARY, bias=True))
    with pytest.raises(PrivacyError, match="1 is BatchNorm2d"):
        refuse_batch_statistics(normed)
    with pytest.raises(PrivacyError, match="must be equal"):
        run(trainer, replace(plan, sampling_probability=0.5))


def test_ordinal_head_trains():
    _, update = run(make_trainer(), make_plan(), "linear")
    assert update.finite
    assert update.state["1.cutpoints"].shape == (SPEC.num_classes - 1,)
