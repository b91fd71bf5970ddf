"""Runs that stop early keep what they reached, say why, and end with an exit code that is not 0."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

import medx.model.storage
from medx.federation.checkpoint import checkpoints, load_checkpoint
from medx.federation.hospital import Hospital, Hospitals
from medx.federation.prepared import Prepared
from medx.model.storage import read_tensors
from tests.program import Ran, call

Fault = Callable[[int, int], None]


def inject(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    """Call ``fault(client, round)`` where a client begins its local training."""
    train = Hospital.train

    def faulty(hospital: Hospital, state: Any, number: int) -> Any:
        fault(hospital.client, number)
        return train(hospital, state, number)

    monkeypatch.setattr(Hospital, "train", faulty)


def assert_model_is_that_of(ran: Ran, number: int) -> None:
    """The exported model is the average at this round, and the newest checkpoint is the round's."""
    state = load_checkpoint(ran.folder / "checkpoints")
    assert state.round == number
    exported, _ = read_tensors(ran.folder / "model.safetensors")
    for name, tensor in state.average.tensors().items():
        assert torch.equal(exported[f"head.{name}"], tensor)


def test_a_client_that_crashes_is_left_out_of_the_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(client: int, number: int) -> None:
        if (client, number) == (1, 2):
            raise RuntimeError("the hospital's disk is on fire")

    inject(monkeypatch, fault)
    ran = call(tmp_path)
    assert ran.code == 0, ran.err
    assert [(record.clients, record.failed) for record in ran.result.rounds] == [(3, 0), (2, 1)]
    assert [client.steps for client in ran.result.privacy.clients] == [4, 2, 4]  # what its own ledger shows
    assert ran.result.privacy.epsilon is not None
    assert ran.result.privacy.epsilon <= 10


def test_too_few_clients_abort_and_leave_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(client: int, number: int) -> None:
        if number == 3 and client != 2:
            raise RuntimeError("no power")

    inject(monkeypatch, fault)
    ran = call(tmp_path, "federation.num_rounds=5")
    assert ran.code == 1
    assert ran.result.status == "aborted"
    assert ran.result.error == "round 3: 1 usable answers, 2 needed; the first failure: RuntimeError: no power"
    assert len(ran.result.rounds) == 2
    assert_model_is_that_of(ran, 2)
    assert [client.steps for client in ran.result.privacy.clients] == [4, 4, 6]  # client 2 did release round 3
    assert "ABORTED" in ran.out


def test_no_client_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(hospitals: object, client: int) -> None:
        raise RuntimeError("no data here")

    monkeypatch.setattr(Hospitals, "hospital", broken)
    ran = call(tmp_path)
    assert ran.code == 1
    assert ran.result.status == "aborted"
    assert ran.result.error == "only 0 of 3 clients are there; the first failure: RuntimeError: no data here"
    assert ran.result.privacy.epsilon == 0


def poison(monkeypatch: pytest.MonkeyPatch, client: int) -> None:
    """One image of this client has a pixel that is not a number."""
    deal = Prepared.client

    def poisoned(self: Prepared, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, labels = deal(self, index)
        inputs = inputs.clone()
        inputs[:, 0, 3, 3] = torch.nan if index == client else inputs[:, 0, 3, 3]
        return inputs, labels

    monkeypatch.setattr(Prepared, "client", poisoned)


def test_a_gradient_that_is_not_finite_abstains_until_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 1)
    ran = call(tmp_path, "federation.num_rounds=5", "privacy.max_abstentions=2")
    assert ran.code == 1
    assert ran.result.status == "aborted"
    assert [(record.clients, record.abstained) for record in ran.result.rounds] == [(2, 1), (2, 1)]
    assert (
        ran.result.error == "round 3: 3 updates were not finite or beyond the grid, more than privacy.max_abstentions=2"
    )
    assert all(torch.isfinite(tensor).all() for tensor in read_tensors(tmp_path / "model.safetensors")[0].values())
    assert_model_is_that_of(ran, 2)


@pytest.mark.parametrize("kind", ["safetensors", "system"])
def test_a_full_disk_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, reference: Ran
) -> None:
    save = medx.model.storage.save_file

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        if "round_00003" in str(path):
            Path(path).write_bytes(b"half of it")
            words = "Error while serializing: I/O error: No space left on device (os error 28)"
            raise SafetensorError(words) if kind == "safetensors" else OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(medx.model.storage, "save_file", full)
        ran = call(tmp_path, "federation.num_rounds=5")
    assert ran.code == 1
    assert ran.result.status == "failed"
    assert "No space left" in str(ran.result.error)
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["round_00002", "round_00001"]
    assert not list((tmp_path / "checkpoints").glob(".*"))
    assert_model_is_that_of(ran, 2)
    if kind == "system":
        resumed = call(tmp_path, f"resume={tmp_path}", base=())
        assert resumed.code == 0, resumed.err
        assert resumed.result.test == reference.result.test


def test_an_interrupt_ends_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(client: int, number: int) -> None:
        if (client, number) == (1, 2):
            raise KeyboardInterrupt

    inject(monkeypatch, fault)
    ran = call(tmp_path, "seed=0,1", "-m")
    assert ran.code == 130
    killed = Ran(130, "", "", tmp_path / "0").result
    assert killed.status == "killed"
    assert len(killed.rounds) == 1
    assert not (tmp_path / "1").exists()
    assert "KILLED" in ran.out


def test_an_unforeseen_error_is_shown_in_full_and_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: Ran
) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("a fault of the program")

    with monkeypatch.context() as patch:
        patch.setattr("medx.federation.server.round_metrics", broken)
        with pytest.raises(ZeroDivisionError):
            call(tmp_path, "federation.num_rounds=5")
    resumed = call(tmp_path, f"resume={tmp_path}", base=())
    assert resumed.code == 0, resumed.err
    assert resumed.result.test == reference.result.test
