"""Runs on a folder that tells patients, hospitals and sexes: what a patient spends, and results for each of them."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from PIL import Image

from medx.privacy.accountants import Release
from medx.privacy.accounting import epsilon_group
from tests.program import TINY, Ran, call

PATIENTS = 90
BASE = tuple(part for part in TINY if not part.startswith(("dataset", "federation.num_clients")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patients with one to five images at one of three hospitals; the second class is brighter.

    Hospitals have as many of each in each split, so that what is worked out for one holds for all.
    """
    where = tmp_path_factory.mktemp("images")
    generator, rows = np.random.default_rng(0), ["image,label,patient,hospital,sex,split"]
    splits = ["train"] * 4 + ["validation", "test"]
    for patient in range(PATIENTS):
        place = patient // 3
        for image in range(1 + place % 5):
            label = patient % 2
            pixels = generator.integers(0, 120, (16, 16)) + 80 * label
            Image.fromarray(pixels.astype(np.uint8)).save(where / f"{patient}_{image}.png")
            rows.append(
                f"{patient}_{image}.png,{label},p{patient},h{patient % 3},{'FM'[patient % 7 // 4]},{splits[place // 5]}"
            )
    (where / "labels.csv").write_text("\n".join(rows))
    return where


def run(where: Path, folder: Path, *overrides: str) -> Ran:
    ran = call(
        where, "dataset=folder", f"dataset.path={folder}", "dataset.size=16", "partition=site", *overrides, base=BASE
    )
    assert ran.code == 0, ran.err
    return ran


def test_the_epsilon_of_a_patient_is_that_of_what_was_executed(tmp_path: Path, folder: Path) -> None:
    ran = run(tmp_path / "run", folder, "privacy.unit=patient", "trainer.expected_batch_size=8", "baseline=local_only")
    privacy = ran.result.privacy
    assert privacy.unit == "patient"
    for client in privacy.clients:
        with sqlite3.connect(ran.folder / "ledger" / f"client_{client.client:04d}.sqlite") as ledger:
            (steps,) = ledger.execute("SELECT total(steps) FROM rounds").fetchone()
            assert ledger.execute("SELECT unit FROM runs").fetchone() == ("patient",)
        assert steps == client.steps
        assert client.num_patients is not None
        assert client.num_patients < client.num_records
        assert client.sampling_probability == pytest.approx(8 / client.num_patients)
    beside = {events.client: events for events in privacy.baselines}
    spent = []
    for client in privacy.clients:
        accountant = PLDAccountant()
        for events in (client, beside[client.client]):
            one = PoissonSampledDpEvent(events.sampling_probability, GaussianDpEvent(events.noise_multiplier))
            accountant.compose(SelfComposedDpEvent(one, events.steps))
        spent.append(accountant.get_epsilon(privacy.delta))
    assert privacy.epsilon == pytest.approx(max(spent), rel=0.02)
    assert 0 < privacy.epsilon <= 10
    assert privacy.epsilon_by_unit["patient"] == privacy.epsilon
    assert privacy.epsilon_by_unit["image"] == privacy.epsilon_replace
    assert "at most 4 images of that patient, drawn anew in each step" in privacy.statement
    summed = run(tmp_path / "sum", folder, "privacy=distributed_dp", "privacy.unit=patient", "federation.num_rounds=2",
                 "trainer.expected_batch_size=null", "trainer.local_steps=1")  # fmt: skip
    assert summed.result.privacy.unit == "patient"
    assert 0.98 * 10 < summed.result.privacy.epsilon <= 10


def test_beside_an_images_epsilon_stands_that_of_a_patient(tmp_path: Path, folder: Path) -> None:
    ran = run(tmp_path / "run", folder, "dataset.subgroups=[sex]", "baseline=[local_only,centralized]")
    result = ran.result
    privacy = result.privacy
    assert privacy.patient_images == 5
    assert list(privacy.epsilon_by_unit) == ["image", "patient", "hospital"]
    assert privacy.epsilon_by_unit["image"] == privacy.epsilon
    alone = max(
        epsilon_group([((Release(c.sampling_probability, c.noise_multiplier, c.steps),), 5)], privacy.delta)
        for c in privacy.clients
    )
    assert privacy.epsilon_by_unit["patient"] > alone > privacy.epsilon, "the baselines are in it too"
    assert "one patient (all images, at most 5 at a hospital)" in privacy.statement
    # Each hospital on its own test images, beside its own model's and the shared one's; each sex.
    counted = [np.sum(client.test_counts) for client in result.clients]
    assert sum(counted) == result.dataset.sizes["test"]
    assert min(counted) > 0
    for client in result.clients:
        assert {"local_only", "centralized"} == client.baselines.keys()
        interval = client.test["accuracy"]
        assert interval.low <= interval.value <= interval.high
    accuracy = [client.test["accuracy"].value for client in result.clients]
    assert np.average(accuracy, weights=counted) == pytest.approx(result.test["accuracy"].value)
    assert [group.value for group in result.subgroups] == ["F", "M"]
    assert sum(sum(group.class_counts) for group in result.subgroups) == result.dataset.sizes["test"]
    released = (ran.folder / "released.json").read_text()
    assert '"sex"' not in released
    assert [client.name for client in result.clients] == ["h0", "h1", "h2"]
    assert '"h0"' not in released, "names in the data are the owner's"


def test_a_patient_as_the_unit_is_refused_where_it_cannot_be(tmp_path: Path, folder: Path) -> None:
    told = call(tmp_path / "phantom", "privacy.unit=patient")
    assert "privacy.unit=patient: the data set does not tell patients" in told.refusal
    ledger = f"privacy.ledger={tmp_path / 'ledger'}"
    run(tmp_path / "first", folder, ledger, "privacy.budget=30")
    given = (
        "dataset=folder",
        f"dataset.path={folder}",
        "dataset.size=16",
        "partition=site",
        ledger,
        "privacy.budget=30",
    )
    told = call(tmp_path / "second", *given, "privacy.unit=patient", base=BASE)
    assert told.code == 2
    assert "runs whose unit is another have touched these records" in told.err
    # Patients at both hospitals.
    lines = (folder / "labels.csv").read_text().splitlines()
    moved = [line.replace(",h0,", ",h1,") if "_1.png" in line else line for line in lines]
    (folder / "moved.csv").write_text("\n".join(moved))
    given = (*given[:4], f"dataset.csv={folder / 'moved.csv'}", "dataset.columns.split=false")
    told = call(tmp_path / "shared", *given, base=BASE)
    assert "partition.shared_patients=refuse" in told.refusal
    told = call(tmp_path / "unit", *given, "partition.shared_patients=compose", "privacy.unit=patient", base=BASE)
    assert "privacy.unit=patient: a patient is at several hospitals" in told.refusal
