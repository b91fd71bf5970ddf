"""Phantoms alone: a head that no record was needed for stands beside a run, and changes and costs nothing of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from sklearn.metrics import roc_auc_score

import medx.dataset.phantom
from medx.dataset import DataSplits, InputSpec
from medx.federation.prepared import _PREPARED
from medx.model.export import load_model
from medx.model.phantoms import phantom_head
from medx.results import ExperimentResult
from tests.end_to_end.test_resume import ledger_steps
from tests.program import DATA, SCATTERNET, WORK, Ran, call

BASE = (*DATA, *SCATTERNET, *WORK, "tracking=none", "device=cpu", "noise=seed")
ALONE = "baseline=[phantoms_alone]"


def run(folder: Path, *overrides: str, base: tuple[str, ...] = BASE) -> Ran:
    ran = call(folder, *overrides, base=base)
    assert ran.code == 0, ran.err
    return ran


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(tmp_path_factory.mktemp("private") / "run", ALONE)


def naive_auc(result: ExperimentResult) -> float:
    """Of the head that phantoms give, by scikit-learn, on features that are computed anew."""
    splits: DataSplits = instantiate(result.config["dataset"]).load()
    spec: InputSpec = splits.spec
    model = instantiate(result.config["model"])
    features = model.features(spec)
    with torch.no_grad():
        rows = features(splits.to_tensor(splits.test.images))
    (weight,) = phantom_head(features, spec, model.num_phantoms, model.phantom_seed).values()
    return float(roc_auc_score(splits.test.labels, (rows @ weight.T).squeeze(1)))


def test_it_is_the_head_that_phantoms_give(private: Ran) -> None:
    auc = private.result.baselines["phantoms_alone"]["auc"].value
    assert auc == pytest.approx(naive_auc(private.result), abs=1e-6)
    assert auc != private.result.test["auc"].value, "and not the run's own model"


def test_the_run_beside_it_is_the_run_without_it(private: Ran, tmp_path: Path) -> None:
    ran = run(tmp_path / "without")
    with_it, without = private.result, ran.result
    assert without.baselines == {}
    models = [load_model(each.folder / "model.safetensors").state_dict() for each in (private, ran)]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
    assert with_it.test == without.test
    assert with_it.privacy.epsilon == without.privacy.epsilon
    assert with_it.privacy.baselines == []
    assert "Baselines:" not in with_it.privacy.statement
    assert ledger_steps(private.folder / "ledger") == ledger_steps(ran.folder / "ledger")


def test_beside_models_that_train_the_epsilon_is_shared_among_those(tmp_path: Path) -> None:
    one = run(tmp_path / "one", "baseline=[centralized]").result
    both = run(tmp_path / "both", "baseline=[centralized,phantoms_alone]").result
    assert both.test == one.test
    assert both.privacy == one.privacy
    assert both.baselines["centralized"] == one.baselines["centralized"]
    assert set(both.baselines) == {"centralized", "phantoms_alone"}


def test_no_training_record_moves_it(private: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = medx.dataset.phantom.Phantom.load

    def turned(self: medx.dataset.phantom.Phantom) -> DataSplits:
        splits = load(self)
        splits.train.labels[:] = 1 - splits.train.labels
        splits.train.images[:] = 255 - splits.train.images
        return splits

    monkeypatch.setattr(medx.dataset.phantom.Phantom, "load", turned)
    _PREPARED.clear()
    try:
        other = run(tmp_path / "other", ALONE).result
    finally:
        _PREPARED.clear()
    assert other.test != private.result.test
    known = private.result.baselines["phantoms_alone"]
    assert other.baselines["phantoms_alone"] == known
    assert np.isfinite(known["auc"].value or np.nan)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("model=cnn", "model.widths=[4]", "model.num_groups=2"), "no linear head on fixed features"),
        ((*SCATTERNET, "model.hidden=4"), "no linear head on fixed features"),
    ],
)
def test_a_model_that_phantoms_give_no_head_is_refused(overrides: tuple[str, ...], said: str, tmp_path: Path) -> None:
    base = (*DATA, *WORK, "tracking=none", "device=cpu", "noise=seed")
    refusal = call(tmp_path / "run", *overrides, "baseline=[centralized,phantoms_alone]", base=base).refusal
    assert "baseline=phantoms_alone: " in refusal
    assert said in refusal
    assert refusal.endswith("accepted here: baseline=centralized")
