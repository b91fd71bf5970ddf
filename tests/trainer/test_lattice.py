"""Who knows all records but one must not see in the noise's digits whether that one was there.

torch's float32 normals are Box-Muller on 24-bit uniforms: of a block of 16 the values z_j and z_(j + 8) have
``exp(-(z_j^2 + z_(j+8)^2) / 2)`` equal to an integer times 2^-24. The attack takes the clipped sum off what is
released, once with and once without the record, and looks which of the two leaves numbers on that lattice.
"""

import math

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from medx.aggregation.integer_noise import NoiseStream
from medx.model.objectives import BinaryObjective
from medx.privacy.accounting import calibrate_noise_multiplier
from medx.privacy.base import ClientPlan, SampledGaussian
from medx.randomness import system_key
from medx.trainer.local_training import Trainer
from medx.trainer.release import GaussianRelease
from medx.trainer.state import MOMENTUM, ModelState
from tests.trainer.test_local_training import CONF

FEATURES, RECORDS, RATE, BETA = 100_000, 5, 0.5, 0.9
CPU = torch.device("cpu")


def in_floating_point(self: GaussianRelease, sums: list[torch.Tensor]) -> None:
    """The planted fault: what Opacus and this package once did."""
    for parameter, total in zip(self.params, sums, strict=True):
        noise = torch.empty(total.shape).normal_(0.0, self.noise_multiplier * self.max_grad_norm)
        parameter.grad = (total + noise) / self.expected_batch_size


def make_trainer(steps: int) -> Trainer:
    fields = yaml.safe_load((CONF / "cnn.yaml").read_text())
    del fields["_target_"]
    own = {"expected_batch_size": None, "learning_rate": RATE, "momentum": BETA, "share_momentum": True}
    return Trainer(**(fields | own | {"local_steps": steps, "weight_decay": 0.0, "schedule": "constant"}))


def residuals(steps: int, epsilon: float) -> dict[str, list[np.ndarray]]:
    """What an observer of one round has left of every step, in standard deviations: with the record, and without it."""
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(RECORDS, FEATURES, generator=generator), torch.arange(RECORDS) % 2
    sigma = calibrate_noise_multiplier(epsilon, 1e-5, 1.0, steps)
    release = SampledGaussian(1.0, sigma, 0.1)
    plan = ClientPlan(0, RECORDS, 1.0, float(RECORDS), steps, 1, release, float(RECORDS))
    module = nn.Linear(FEATURES, 1, bias=False)
    nn.init.zeros_(module.weight)
    trainer, objective = make_trainer(steps), BinaryObjective()
    start = ModelState.of(module, momentum=True)
    given = {"plan": plan, "sample_generator": generator, "device": CPU}
    stream = NoiseStream(system_key())
    end = trainer.train(module, objective, inputs, labels, state=start, noise_stream=stream, **given).state.tensors()
    # The momentum travels along, so that the observer has every step of two.
    last, weights = end[MOMENTUM + "weight"].double(), [start.parameter_tensors()["weight"].double()]
    if steps == 1:
        moments = [torch.zeros_like(last), last]
    else:
        moments = [torch.zeros_like(last), (weights[0] - end["weight"].double()) / RATE - last, last]
        weights.append(weights[0] - RATE * moments[1])
    left: dict[str, list[np.ndarray]] = {"with": [], "without": []}
    for step, weight in enumerate(weights):
        noisy = (moments[step + 1] - BETA * moments[step]) * RECORDS
        state = ModelState.of_tensors({"weight": weight.float(), MOMENTUM + "weight": last.float()})
        for name, rows in (("with", slice(None)), ("without", slice(1, None))):
            (known,) = trainer.clipped_gradient(module, objective, inputs[rows], labels[rows], state=state, **given)
            left[name].append(((noisy - known.double()) / release.noise_stddev).numpy().ravel())
    return left


def lattice_evidence(noise: list[np.ndarray]) -> float:
    """Standard deviations by which these numbers lie on the lattice rather than anywhere: about N(0, 1) by chance."""
    blocks = np.concatenate([part[: part.size // 16 * 16].reshape(-1, 2, 8) for part in noise])
    uniform = np.exp(-np.square(blocks).sum(1).ravel() / 2)
    sharp = uniform[uniform < 0.01] * 2**24  # where rounding to float32 leaves the integers apart
    return float(np.cos(2 * np.pi * sharp).sum() / math.sqrt(sharp.size / 2))


@pytest.mark.parametrize("epsilon", [0.5, 10.0])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_noise_lies_on_no_lattice(steps: int, epsilon: float, monkeypatch: pytest.MonkeyPatch) -> None:
    left = residuals(steps, epsilon)
    assert abs(lattice_evidence(left["with"])) < 5
    assert abs(lattice_evidence(left["without"])) < 5
    monkeypatch.setattr(GaussianRelease, "release", in_floating_point)
    planted = residuals(steps, epsilon)
    assert lattice_evidence(planted["with"]) > 15
    assert lattice_evidence(planted["without"]) < lattice_evidence(planted["with"]) - 10  # the record shows
