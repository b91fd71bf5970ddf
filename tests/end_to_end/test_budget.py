"""What is counted: every release, on the records that it touches, whatever else is told apart."""

import sqlite3
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from medx.federation.hospital import Hospital
from medx.trainer.state import ModelState
from tests.program import call


def steps_of(folder: Path, client: int) -> int:
    """Steps that a hospital's ledger shows, over all runs."""
    with sqlite3.connect(folder / f"client_{client:04d}.sqlite") as database:
        return int(database.execute("SELECT total(steps) FROM rounds").fetchone()[0])


def test_another_test_image_is_no_new_budget(tmp_path: Path) -> None:
    ledger = (f"privacy.ledger={tmp_path / 'ledger'}", "privacy.budget=10", "federation.num_rounds=1")
    first = call(tmp_path / "first", *ledger)
    assert first.code == 0, first.err
    again = call(tmp_path / "again", *ledger, "dataset.num_test=61")
    assert again.code == 2
    assert "budget=10 at delta=1e-05 would be exceeded" in again.err
    others = call(tmp_path / "others", *ledger, "dataset.seed=7")  # other images have a budget of their own
    assert others.code == 0, others.err


def test_every_model_that_a_hospital_answers_is_charged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run twice on one ledger, the second time with a hospital that fails: from then on models differ."""
    seen: dict[int, set[tuple[int, bytes]]] = defaultdict(set)
    train = Hospital.train
    failing = False

    def watched(hospital: Hospital, state: ModelState, number: int) -> Any:
        if failing and (hospital.client, number) == (1, 1):
            raise RuntimeError("no power")
        update = train(hospital, state, number)
        seen[hospital.client].add((number, state.hash()))
        return update

    monkeypatch.setattr(Hospital, "train", watched)
    ledger = tmp_path / "ledger"
    for failing in (False, True):
        call(tmp_path / str(failing), f"privacy.ledger={ledger}", "federation.num_rounds=2")
    assert len(seen[0]) >= 2
    assert 2 * len(seen[0]) <= steps_of(ledger, 0)
