"""Whole runs of output perturbation: one release whose epsilon is true, sums that are the mean, and what is refused."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import medx
from medx.model.export import load_model
from medx.model.storage import read_tensors
from tests.audit import recompute
from tests.end_to_end.test_least_squares import BASE as LEAST
from tests.program import Ran, call

BASE = tuple("trainer=output_perturbation" if part.startswith("trainer=") else part for part in LEAST)


def run(folder: Path, *overrides: str) -> Ran:
    ran = call(folder, *overrides, base=BASE)
    assert ran.code == 0, ran.err
    return ran


def test_one_release_is_executed_and_epsilon_is_its(tmp_path: Path) -> None:
    for place, more in (("local", ("privacy=local_dp",)), ("sum", ("privacy=distributed_dp", "aggregation=secure"))):
        result = run(tmp_path / place, *more, "privacy.epsilon=5", "baseline=[local_only,centralized]").result
        assert (len(result.rounds), result.status) == (1, "finished")
        assert {client.steps for client in result.privacy.clients} == {1}
        assert {client.sampling_probability for client in result.privacy.clients} == {1}
        composed = [*result.privacy.clients, *result.privacy.baselines]
        assert 4 < recompute(composed, result.privacy.delta)["pld"] <= 5.001
        assert set(result.baselines) == {"local_only", "centralized"}
        (line,) = re.findall("^Mechanism: .*", result.privacy.statement, re.MULTILINE)
        assert "output perturbation (Chaudhuri et al. 2011)" in line
        assert "no gradient is clipped" in line
        assert ("each hospital adds Gaussian noise" in line) == (place == "local")
        assert ("hospitals add shares of the noise" in line) == (place == "sum")
        assert "DP-SGD" not in result.privacy.statement


def test_a_secure_sum_without_noise_is_the_mean_of_hospitals_heads(tmp_path: Path) -> None:
    """Of one hospital it is the minimum; of three their mean by records, on the sum's grid."""
    tensors = []
    for place, more in (("plain", ()), ("secure", ("aggregation=secure",))):
        folder = run(tmp_path / place, "privacy=none", *more).folder
        tensors.append(read_tensors(folder / "checkpoints" / "round_00001" / "tensors.safetensors")[0])
    plain, secure = (each["state/0.weight"] for each in tensors)
    assert 0 < (plain - secure).abs().max() < 0.002 * plain.abs().max()

    ran = run(
        tmp_path / "pooled",
        "privacy=none",
        "federation.num_clients=1",
        "federation.min_clients=1",
        "trainer.ridge=0.02",
    )
    weight = load_model(ran.folder / "model.safetensors").head[0].weight.double()
    experiment = medx.compose(*BASE, "privacy=none")
    splits = experiment.dataset.load()
    x = experiment.model.features(splits.spec)(splits.to_tensor(splits.train.images)).double()
    wrong = torch.sigmoid(x @ weight[0]) - torch.from_numpy(splits.train.labels)
    gradient = (wrong[:, None] * x).mean(0) + 0.02 * weight[0]
    assert np.abs(gradient.numpy()).max() < 1e-6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("federation.num_rounds=2", r"federation\.num_rounds=2: accepted with trainer=output_perturbation is 1$"),
        ("personalisation=fine_tune", r"accepted: none with trainer=output_perturbation$"),
        ("attack=standard", r"trainer=output_perturbation: .*no sum of gradients"),
        ("trainer.feature_norm=0", r"trainer\.feature_norm=0: .*greater than 0"),
    ],
)  # fmt: skip
def test_refusals(overrides: str, message: str, tmp_path: Path) -> None:
    ran = call(tmp_path / "run", overrides, base=BASE)
    assert re.search(message, ran.refusal), ran.refusal
