"""What a finished run says is true: the model, the epsilon, the baselines, and the same again with the same seed."""

import hashlib
import json
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from medx.dataset.chest_phantom import draw_chest
from medx.federation.checkpoint import load_checkpoint
from medx.model.export import load_model
from medx.model.storage import read_tensors
from medx.randomness import numpy_generator
from medx.results import STUDY_ONLY, ExperimentResult
from tests.audit import recompute
from tests.end_to_end import golden
from tests.program import DATA, SCATTERNET, WORK, Ran, call

ROOT = Path(__file__).parents[2]


def test_the_documented_lines_load_the_model_and_find_the_logged_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = {}
    for seed, (split, count) in enumerate({"train": 150, "val": 40, "test": 60}.items()):
        images, labels = draw_chest(count, 28, numpy_generator(seed))
        arrays |= {f"{split}_images": images[..., 0], f"{split}_labels": labels[:, None].astype(np.uint8)}
    path = tmp_path / "pneumoniamnist.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    data = ("dataset=pneumoniamnist", f"dataset.root={tmp_path}", f"dataset.md5={md5}", "tracking=none")
    ran = call(tmp_path, *data, *SCATTERNET, *WORK, base=())
    assert ran.code == 0, ran.err
    match = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert match is not None
    lines = match[1]
    assert len(lines.splitlines()) == 5
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(lines, {})
    assert float(capsys.readouterr().out) == ran.result.test["accuracy"].value


def test_an_empty_cache_and_a_filled_one_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDX_CACHE", str(tmp_path / "cache"))
    results = []
    for number in range(2):
        monkeypatch.setattr("medx.federation.prepared._PREPARED", OrderedDict())
        results.append(
            call(tmp_path / str(number), "privacy=none", *SCATTERNET, base=(*DATA, *WORK, "tracking=none")).result
        )
    assert results[0].test == results[1].test
    assert [each.metrics for each in results[0].rounds] == [each.metrics for each in results[1].rounds]


def test_epsilon_of_the_executed_events_by_another_accountant(tmp_path: Path) -> None:
    ran = call(tmp_path, "partition=quantity", "partition.min_records=25", "privacy.epsilon=4")
    assert ran.code == 0, ran.err
    privacy = ran.result.privacy
    assert privacy.epsilon is not None
    assert 0.97 * 4 < privacy.epsilon <= 4
    probabilities = {client.sampling_probability for client in privacy.clients}
    assert len(probabilities) == 3
    for client in privacy.clients:
        assert client.steps == 4
        assert client.epsilon is not None
        assert client.sampling_probability == 20 / client.num_records
        epsilon = recompute([client], 1e-5)["pld"]
        assert epsilon <= 4
        assert epsilon == pytest.approx(client.epsilon, rel=0.02)
        fault = client.model_copy(update={"noise_multiplier": client.noise_multiplier * 2 / 3})  # type: ignore[operator]
        assert recompute([fault], 1e-5)["pld"] > 4
    last = ran.result.rounds[-1].epsilon
    assert last == pytest.approx(privacy.epsilon, rel=1e-3)
    assert ran.result.rounds[0].epsilon < last  # type: ignore[operator]


def test_same_seed_same_result_and_another_seed_another(reference: Ran, tmp_path: Path) -> None:
    again = call(tmp_path / "again", "federation.num_rounds=5").result
    assert again.test == reference.result.test
    assert again.validation == reference.result.validation
    assert [r.metrics for r in again.rounds] == [r.metrics for r in reference.result.rounds]
    other = call(tmp_path / "other", "federation.num_rounds=5", "seed=1").result
    assert other.test["auc"] != reference.result.test["auc"]
    assert other.config_hash == again.config_hash


@pytest.mark.parametrize("case", golden.CASES)
def test_golden(case: str, tmp_path: Path) -> None:
    """A refactor leaves these alone; a numeric change writes them anew and says why in the changelog."""
    expected = json.loads(golden.PATH.read_text())[case]
    with golden.noise_of_any_machine():
        found = golden.figures(call(tmp_path, base=golden.CASES[case]))
    assert set(found["test"]) == set(expected["test"])
    for name, value in expected["test"].items():
        assert found["test"][name] == pytest.approx(value, abs=1e-3), name
    assert found["noise_multiplier"] == pytest.approx(expected["noise_multiplier"], rel=1e-3)
    assert found["bytes_up"] == expected["bytes_up"]


STRATEGIES = ["fedprox", "fedadam", "fedyogi", "fedavgm", "fedmedian", "fedtrimmedavg", "krum"]
STRONG = {
    "fedprox": ("federation.proximal_mu=1",),
    "fedtrimmedavg": ("federation.beta=0.34",),
    "krum": ("federation.num_malicious_clients=0",),
}


def final_state(ran: Ran) -> dict[str, torch.Tensor]:
    return load_checkpoint(ran.folder / "checkpoints").state.tensors()


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> dict[str, torch.Tensor]:
    """The state after two rounds of plain FedAvg."""
    ran = call(tmp_path_factory.mktemp("fedavg"))
    assert ran.code == 0, ran.err
    return final_state(ran)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategy_runs_and_is_not_fedavg(strategy: str, averaged: dict[str, torch.Tensor], tmp_path: Path) -> None:
    ran = call(tmp_path, f"federation={strategy}", *STRONG.get(strategy, ()))
    assert ran.code == 0, ran.err
    state = final_state(ran)
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert any(not torch.allclose(state[name], averaged[name], atol=1e-5) for name in averaged)


@pytest.mark.parametrize("strategy", ["fedadam", "fedavgm"])
def test_strategy_resumes_exactly(strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = (f"federation={strategy}", "federation.num_rounds=3", "privacy=none")
    whole = call(tmp_path / "whole", *overrides)

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("medx.screen.Screen.on_round", lambda self, record: stop() if record.round == 2 else None)
        stopped = call(tmp_path / "stopped", *overrides)
    assert stopped.code == 130
    resumed = call(tmp_path / "stopped", f"resume={tmp_path / 'stopped'}", base=())
    assert resumed.code == 0, resumed.err
    before, after = final_state(whole), final_state(resumed)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert resumed.result.test == whole.result.test


def test_baselines_and_majority(tmp_path: Path) -> None:
    ran = call(tmp_path, "baseline=[local_only,centralized]")
    assert ran.code == 0, ran.err
    result = ran.result
    assert set(result.baselines) == {"local_only", "centralized"}
    local = result.baselines["local_only"]["auc"]
    assert local.low is not None
    assert local.high is not None
    assert local.low < local.value < local.high  # type: ignore[operator]
    # Not by AUC: on 60 images two models may rank the same number of pairs.
    briers = [metrics["brier"].value for metrics in (result.test, *result.baselines.values())]
    assert len(set(briers)) == 3
    labels = result.dataset.class_counts["test"]
    assert result.majority_accuracy == pytest.approx(max(labels) / sum(labels), abs=0.1)
    # The hospitals' ledgers hold the run alone: each baseline kept its own.
    assert [client.steps for client in result.privacy.clients] == [4, 4, 4]
    # Three models saw each record, and epsilon is what all of them spent of it: composed anew from the ledgers' steps.
    assert sorted((each.client, each.steps) for each in result.privacy.baselines) == [
        (c, 4) for c in (0, 0, 1, 1, 2, 2)
    ]
    assert result.privacy.delta is not None
    assert result.privacy.epsilon is not None
    composed = recompute([*result.privacy.clients, *result.privacy.baselines], result.privacy.delta)
    assert composed["prv"] == pytest.approx(result.privacy.epsilon)
    assert composed == pytest.approx(result.privacy.epsilon_by_accountant)
    run_alone = recompute(result.privacy.clients, result.privacy.delta)["prv"]
    assert run_alone < 0.7 * result.privacy.epsilon
    assert 9 < result.privacy.epsilon <= 10
    assert "local_only, centralized trained on the same records" in result.privacy.statement
    assert f"the run alone spent {run_alone:.3f}" in result.privacy.statement


def test_a_shared_sum_and_its_baselines_stay_within_one_epsilon(tmp_path: Path) -> None:
    step = ("trainer.local_steps=1", "trainer.sampling_probability=0.3", "trainer.expected_batch_size=null")
    ran = call(tmp_path, "privacy=distributed_dp", *step, "baseline=[centralized,local_only]")
    assert ran.code == 0, ran.err
    privacy = ran.result.privacy
    assert privacy.epsilon is not None
    assert privacy.delta is not None
    composed = recompute([*privacy.clients, *privacy.baselines], privacy.delta)["prv"]
    assert composed == pytest.approx(privacy.epsilon)
    assert 9.8 < privacy.epsilon <= 10
    others = privacy.epsilon_by_observer["all other hospitals together"]
    assert privacy.epsilon_by_observer["the outside"] <= privacy.epsilon < others


def test_a_model_that_always_answers_the_same_is_flagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = call(tmp_path / "stuck", "privacy=none", "trainer.learning_rate=1e-30")
    assert ran.code == 0, ran.err
    assert ran.result.degenerate
    assert "DEGENERATE" in ran.out
    good = call(tmp_path / "good", "privacy=none", base=golden.CASES["scatternet"])
    assert not good.result.degenerate
    assert "DEGENERATE" not in good.out


def test_a_client_with_one_class_has_undefined_metrics(tmp_path: Path) -> None:
    ran = call(tmp_path, "partition=label", "partition.classes_per_client=1", "trainer.expected_batch_size=null")
    assert ran.code == 0, ran.err
    for client in ran.result.clients:
        assert min(client.class_counts) == 0
        assert client.metrics["auc"] is None
        assert client.metrics["accuracy"] is not None
    assert ran.result.test["auc"].value is not None


def test_a_client_without_records_adds_noise_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deal(self: object, labels: np.ndarray, *rest: object) -> list[np.ndarray]:
        return [np.arange(75), np.arange(0), np.arange(75, 150)]

    monkeypatch.setattr("medx.partition.Iid.draw", deal)
    # Another seed than that of other runs, whose data this process still holds, dealt otherwise.
    refused = call(tmp_path / "refused", "seed=11")
    assert "partition.allow_empty=true" in refused.refusal
    ran = call(tmp_path / "empty", "partition.allow_empty=true", "federation=fedmedian", "seed=11")
    assert ran.code == 0, ran.err
    empty = ran.result.privacy.clients[1]
    assert (empty.num_records, empty.steps) == (0, 4)
    assert empty.noise_multiplier == ran.result.privacy.clients[0].noise_multiplier
    assert ran.result.clients[1].metrics == {}
    assert ran.result.rounds[0].clients == 3


def test_a_batch_of_more_than_a_hospital_has_takes_all_of_it_and_is_accounted_so(tmp_path: Path) -> None:
    ran = call(tmp_path, "trainer.expected_batch_size=51")  # 50 at each
    assert ran.code == 0, ran.err
    assert {client.sampling_probability for client in ran.result.privacy.clients} == {1.0}
    assert "trainer.expected_batch_size=51: 3 hospitals have fewer records (50 at least) and take all" in ran.err


def test_empty_poisson_batches_are_noise_only_steps_and_accounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*arguments: object) -> list[torch.Tensor]:
        return [torch.zeros(0, dtype=torch.int64)] * 2

    monkeypatch.setattr("medx.trainer.batches.poisson_batches", nothing)
    ran = call(tmp_path)
    assert ran.code == 0, ran.err
    assert [client.steps for client in ran.result.privacy.clients] == [4, 4, 4]
    start = torch.cat([tensor.flatten() for tensor in load_checkpoint_of(tmp_path, 1).values()])
    end = torch.cat([tensor.flatten() for tensor in load_checkpoint_of(tmp_path, 2).values()])
    assert (end - start).abs().min() > 0  # every coordinate got noise


def load_checkpoint_of(folder: Path, number: int) -> dict[str, torch.Tensor]:
    tensors, _ = read_tensors(folder / "checkpoints" / f"round_{number:05d}" / "tensors.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.startswith("state/")}


def test_a_set_of_eight_classes_from_a_file_of_medmnists_layout(tmp_path: Path) -> None:
    """BloodMNIST's shape and classes, drawn colours in place of cells: the path of every multi-class set."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in {"train": 240, "val": 80, "test": 80}.items():
        labels = np.arange(count) % 8
        colours = 60 + 150 * (labels[:, None] >> np.arange(3) & 1)
        noise = generator.normal(0, 20, (count, 28, 28, 3))
        arrays[f"{split}_images"] = (colours[:, None, None] + noise).clip(0, 255).astype(np.uint8)
        arrays[f"{split}_labels"] = labels[:, None].astype(np.uint8)
    path = tmp_path / "bloodmnist.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    data = ("dataset=bloodmnist", f"dataset.root={tmp_path}", f"dataset.md5={md5}", "dataset.download=false")
    rates = ("privacy.epsilon=100", "privacy.spare_rounds=0", "trainer.learning_rate=3", "model.colour_weight=1")
    ran = call(tmp_path / "run", *data, *rates, *SCATTERNET, *WORK, "trainer.expected_batch_size=null",
               "federation.num_rounds=10", "tracking=none", base=())  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.result.privacy.epsilon is not None
    assert 98 < ran.result.privacy.epsilon <= 100
    assert ran.result.test["accuracy"].value > 3 * ran.result.majority_accuracy  # type: ignore[operator]
    assert {f"recall_{index}" for index in range(8)} <= ran.result.test.keys()


def test_the_folder_and_the_model_file_say_what_is_released(reference: Ran, tmp_path: Path) -> None:
    released = ExperimentResult.load(reference.folder / "released.json")
    assert (reference.result.view, released.view) == ("owner", "released")
    assert (released.test, released.seed, released.rounds[0].seconds) == ({}, None, {})
    assert "seed" not in released.config
    about = load_model(reference.folder / "model.safetensors").metadata
    privacy = reference.result.privacy
    told = {name: about["privacy"][name] for name in ("epsilon", "delta", "noise_source", "warning")}
    assert told == {"epsilon": privacy.epsilon, "delta": 1e-5, "noise_source": "seed", "warning": STUDY_ONLY}
    assert about["threshold"] == reference.result.threshold
    assert "validation records, which epsilon does not cover" in about["privacy"]["threshold"]
    assert f"NOISE FROM THE SEED: {STUDY_ONLY}" in reference.out
