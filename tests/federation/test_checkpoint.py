"""Checkpoints: whole or not at all, two kept, damage noticed, records that survive a torn line."""

import json
from pathlib import Path

import pytest
import torch

from medx.federation.checkpoint import (
    RECORDS,
    ServerState,
    append_record,
    checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from medx.results import RoundRecord, read_rounds
from medx.schema import CheckpointError


def record(number: int) -> RoundRecord:
    return RoundRecord(round=number, epsilon=0.5 * number, metrics={"test/auc": 0.9}, seconds={}, clients=3)


def server(number: int) -> ServerState:
    state = {"w": torch.full((2, 2), float(number)), "b": torch.arange(3)}
    return ServerState(number, state, {"w": state["w"] / 2}, {"m_t/w": torch.ones(2, 2)}, {0: 4, 1: 6}, 1)


def save(folder: Path, *numbers: int) -> None:
    for number in numbers:
        append_record(folder, record(number))
        save_checkpoint(folder, server(number), {"seed": 3})


def test_round_trip_and_only_two_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    assert [path.name for path in checkpoints(tmp_path)] == ["round_00003", "round_00002"]
    loaded, config = load_checkpoint(tmp_path)
    assert config == {"seed": 3}
    assert (loaded.round, loaded.steps, loaded.abstentions) == (3, {0: 4, 1: 6}, 1)
    for group in ("state", "average", "strategy"):
        expected, found = getattr(server(3), group), getattr(loaded, group)
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [r.round for r in loaded.records] == [1, 2, 3]


def test_records_beyond_the_checkpoint_are_of_a_round_that_is_done_again(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    append_record(tmp_path, record(3))
    assert [r.round for r in load_checkpoint(tmp_path)[0].records] == [1, 2]


def test_a_torn_line_takes_no_other_with_it(tmp_path: Path) -> None:
    append_record(tmp_path, record(1))
    with (tmp_path / RECORDS).open("a") as file:
        file.write(record(2).model_dump_json()[:20])  # a crash in the middle of the write
    append_record(tmp_path, record(2))
    append_record(tmp_path, record(3))
    assert [r.round for r in read_rounds(tmp_path / RECORDS)] == [1, 2, 3]


def test_two_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for path in checkpoints(tmp_path):
        text = json.loads((path / "state.json").read_text())
        del text["steps"]
        (path / "state.json").write_text(json.dumps(text))
    with pytest.raises(CheckpointError, match=r"no readable checkpoint in .* \(2 found\)"):
        load_checkpoint(tmp_path)


def test_a_folder_that_is_left_from_a_crash_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".round_00002.tmp").mkdir()
    assert load_checkpoint(tmp_path)[0].round == 1
    save(tmp_path, 2)
    assert load_checkpoint(tmp_path)[0].round == 2
    assert not list(tmp_path.glob(".*"))
