"""Whole runs of one round of least squares: what they release, what they save, and what is refused."""

import re
from pathlib import Path

import numpy as np
import pytest

import medx
from medx.model.export import load_model
from medx.model.storage import read_tensors
from tests.audit import recompute
from tests.program import DATA, SCATTERNET, Ran, call

FEATURES = 21  # 20 components and the constant
BASE = (
    *DATA,
    "dataset.size=16",
    *SCATTERNET,
    "trainer=least_squares",
    "federation.num_clients=3",
    "tracking=none",
    "device=cpu",
    "noise=seed",
)
SUMMED = ("privacy=distributed_dp", "privacy.epsilon=5")


def run(folder: Path, *overrides: str) -> Ran:
    ran = call(folder, *overrides, base=BASE)
    assert ran.code == 0, ran.err
    assert ran.result.status == "finished"
    return ran


@pytest.fixture(scope="module")
def summed(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(tmp_path_factory.mktemp("summed") / "run", *SUMMED, "baseline=[local_only,centralized]")


def test_one_release_is_executed_and_epsilon_is_its(tmp_path: Path) -> None:
    for place, privacy in (("local", "local_dp"), ("summed", "distributed_dp")):
        result = run(tmp_path / place, f"privacy={privacy}", "privacy.epsilon=5").result
        assert len(result.rounds) == 1
        assert {client.steps for client in result.privacy.clients} == {1}
        assert {client.sampling_probability for client in result.privacy.clients} == {1}
        by_another = recompute(result.privacy.clients, result.privacy.delta)["pld"]
        assert result.privacy.epsilon == pytest.approx(by_another, rel=0.02)
        assert 4 < by_another <= 5


def test_baselines_share_the_epsilon(summed: Ran) -> None:
    result = summed.result
    assert set(result.baselines) == {"local_only", "centralized"}
    composed = recompute([*result.privacy.clients, *result.privacy.baselines], result.privacy.delta)["prv"]
    assert composed <= 5.001


def test_a_secure_sum_without_noise_is_the_mean_on_its_grid(tmp_path: Path) -> None:
    moments = []
    for place, more in (("plain", ()), ("secure", ("aggregation=secure",))):
        ran = run(tmp_path / place, "privacy=none", *more)
        moments.append(read_tensors(ran.folder / "checkpoints" / "round_00001" / "tensors.safetensors")[0])
    gap = (moments[0]["state/gram"] - moments[1]["state/gram"]).abs().max()
    assert 0 < gap < 1e-5


def test_what_is_saved_is_the_head_alone_and_gives_the_runs_figures(summed: Ran) -> None:
    model = load_model(summed.folder / "model.safetensors")
    assert {name for name, _ in model.head.named_parameters()} == {"0.weight"}
    assert summed.result.model == {"name": "scatternet", "parameters": FEATURES}
    splits = medx.compose(*BASE, *SUMMED).dataset.load()
    probabilities = model.probabilities(model(splits.to_tensor(splits.test.images))).numpy()
    right = (probabilities.argmax(1) == splits.test.labels).mean()
    assert right == pytest.approx(summed.result.test["accuracy"].value, abs=0.02)


def test_what_a_round_sends_is_the_triangle_of_the_moments(summed: Ran) -> None:
    (record,) = summed.result.rounds
    numbers = FEATURES * (FEATURES + 1) // 2 + FEATURES
    assert 3 * 4 * numbers < record.bytes_up < 3 * (4 * numbers + 8000)


def test_without_privacy_it_is_ridge_regression_on_all_records(tmp_path: Path) -> None:
    ran = run(tmp_path / "run", "privacy=none", "trainer.ridge=0.01")
    weight = load_model(ran.folder / "model.safetensors").head[0].weight.double().numpy()
    experiment = medx.compose(*BASE, "privacy=none")
    splits = experiment.dataset.load()
    features = experiment.model.features(splits.spec)
    x = features(splits.to_tensor(splits.train.images)).double().numpy()
    cross = (2.0 * splits.train.labels - 1) @ x / len(x)
    ridge = 4 * np.linalg.solve(x.T @ x / len(x) + 0.01 * np.eye(FEATURES), cross)
    assert np.abs(weight - ridge).max() < 1e-3 * np.abs(ridge).max()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("federation.num_rounds=2", r"federation\.num_rounds=2: accepted with trainer=least_squares is 1$"),
        ("federation=fedprox", r"federation=fedprox: .* accepted: fedavg$"),
        ("privacy=central_dp", r"privacy=central_dp: .* accepted: none, local_dp, distributed_dp$"),
        ("model.hidden=4", r"no linear head without bias .* model\.hidden=0"),
        ("trainer.momentum=0.9", r"trainer\.momentum=0\.9: accepted with trainer=least_squares is 0\.0$"),
        ("trainer.cross_share=1", r"trainer\.cross_share=1: .*less than 1"),
        ("trainer.gradient_mode=hooks", r"gradient_mode=hooks: .* accepted: trainer\.gradient_mode=vmap or naive"),
    ],
)  # fmt: skip
def test_refusals(overrides: str, message: str, tmp_path: Path) -> None:
    ran = call(tmp_path / "run", overrides, base=BASE)
    assert re.search(message, ran.refusal), ran.refusal


def test_a_whole_network_is_refused(tmp_path: Path) -> None:
    base = (*(part for part in BASE if not part.startswith("model")), "model=cnn")
    ran = call(tmp_path / "run", base=base)
    assert "no linear head without bias on fixed features" in ran.refusal
