"""Patients of PneumoniaMNIST: a table that fits the images, a split without shared ones, and runs as they were."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from medx.configuration import build, plain, typed
from medx.dataset import DataSplits, content_hash
from medx.dataset.medmnist import md5_of
from medx.dataset.pneumoniamnist import PneumoniaMNIST, patient_numbers
from medx.federation.setup import draw_key
from medx.schema import CONF, DataError, MedxError

FILE = Path(os.environ.get("MEDX_DATA", "/nowhere")) / "pneumoniamnist.npz"
real = pytest.mark.skipif(not FILE.exists(), reason="needs pneumoniamnist.npz")


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield


def load(**changes: Any) -> DataSplits:
    fields = {"name": "pneumoniamnist", "size": 28, "md5": md5_of(FILE), "download": False, "root": str(FILE.parent)}
    return PneumoniaMNIST(**(fields | {"patients": True, "validation": "official"} | changes)).load()


def test_the_table() -> None:
    numbers = patient_numbers()
    assert len(numbers) == 5827
    assert all(len(digits) == 16 for digits in numbers)
    assert len(set(numbers.values())) == 3081


@real
def test_the_official_split_shares_patients_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    splits = load()
    assert load(patients=None).content_hash == splits.content_hash
    assert splits.shared_patients() == {"validation": 372, "test": 0}
    assert "372 of 524 validation images are of patients who are in train" in caplog.text
    assert len(np.unique(splits.train.patients)) == 2502
    assert np.bincount(np.unique(splits.train.patients, return_inverse=True)[1]).max() == 24
    assert not np.isin(splits.test.patients, splits.train.patients).any()
    assert not np.isin(splits.test.patients, splits.validation.patients).any()
    assert splits.content_hash == load(patients=False).content_hash


@real
def test_folds_have_each_image_in_validation_once_and_no_patient_on_two_sides() -> None:
    official, folds = load(), [load(fold=(part, 5)) for part in range(5)]
    for dealt in folds:
        assert not np.isin(dealt.validation.patients, dealt.train.patients).any()
        assert len(dealt.train) + len(dealt.validation) == 5232
        assert abs(len(dealt.validation) - 5232 / 5) < 110  # a patient has up to 30 images
        assert abs(dealt.validation.labels.mean() - 0.742) < 0.03
        assert content_hash(dealt.test) == content_hash(official.test)
    numbers = np.concatenate([np.unique(dealt.validation.patients) for dealt in folds])
    both = np.concatenate([official.train.patients, official.validation.patients])
    assert sorted(numbers) == sorted(set(both)), "every patient in the validation part of one fold"
    assert len({dealt.content_hash for dealt in folds}) == 5
    assert load(fold=(2, 5)).content_hash == folds[2].content_hash
    with pytest.raises(DataError, match=r"dataset.fold=\[5, 5\]: accepted: \[k,5\] with k from 0 to 4"):
        load(fold=(5, 5))


@real
def test_by_patient_shares_nobody_and_loses_nothing() -> None:
    official, dealt = load(), load(validation="by_patient")
    assert not np.isin(dealt.validation.patients, dealt.train.patients).any()
    assert len(dealt.train) + len(dealt.validation) == 5232
    assert 450 < len(dealt.validation) < 600
    assert abs(dealt.validation.labels.mean() - official.train.labels.mean()) < 0.03
    assert dealt.content_hash != official.content_hash
    assert dealt.content_hash == load(validation="by_patient").content_hash

    def rows(*splits: Any) -> str:
        whole = [np.concatenate([getattr(split, name) for split in splits]) for name in ("images", "labels")]
        return content_hash(type(splits[0])(*whole))

    assert rows(dealt.train, dealt.validation) == rows(official.train, official.validation)


@real
def test_an_image_that_is_not_in_the_table_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arrays = dict(np.load(FILE))
    arrays["val_images"][3] += 1
    np.savez(tmp_path / FILE.name, **arrays)
    with pytest.raises(DataError, match=r"dataset\.patients: 1 of 524 images are not in the table"):
        load(root=str(tmp_path), md5=md5_of(tmp_path / FILE.name))
    unknown = load(root=str(tmp_path), md5=md5_of(tmp_path / FILE.name), patients=None)
    assert unknown.train.patients is None
    assert "1 of 524 images are not in the table" in caplog.text
    assert "patients are not known in this run" in caplog.text
    assert unknown.shared_patients() == {}


def test_mistakes_are_one_line() -> None:
    config = plain(compose("config", []))
    for change, says in (
        ({"validation": "by_patient", "patients": False}, "validation=by_patient: it needs dataset.patients=true"),
        ({"patients": True, "size": 64}, "dataset.patients=true: the patients are known at dataset.size=28, not 64"),
        ({"validation": "by_patient", "fold": [0, 5]}, "dataset.fold: accepted: null with dataset.validation=by_pat"),
        ({"validation": "by_patient", "size": 64}, "dataset.validation=by_patient: the patients are known at dataset"),
    ):
        with pytest.raises(MedxError, match=says):
            build(config | {"dataset": config["dataset"] | change}, "dataset")


def test_a_run_without_the_new_keys_is_the_run_that_it_was() -> None:
    def known(*overrides: str) -> tuple[str, str]:
        composed = typed(plain(compose("config", list(overrides))))
        return composed.hash, draw_key(composed.what)

    config = plain(compose("config", []))
    old = {key: value for key, value in config["dataset"].items() if key not in PneumoniaMNIST.added}
    saved = config | {"dataset": old | {"_target_": "medx.dataset.medmnist.MedMNIST"}}
    older = typed(saved)
    assert set(older.what["dataset"]) == {"component", "name", "size", "md5"}
    assert (older.hash, draw_key(older.what)) == known("dataset.patients=false"), "what an older version has saved"
    others = {known("dataset.patients=true"), known("dataset.patients=true", "dataset.validation=by_patient"), known()}
    others.add(known("dataset.patients=false"))
    assert len(others) == 4
