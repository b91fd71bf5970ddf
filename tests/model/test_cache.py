"""The cache of features: a folder that cannot be used is told by its key."""

from pathlib import Path

import pytest
import torch

from medx.model.storage import cached
from medx.schema import ConfigError


def compute() -> dict[str, torch.Tensor]:
    return {"features": torch.ones(2)}


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, reason in ((tmp_path / "file", "Not a directory"), (tmp_path / ("a" * 300), "File name too long")):
        with pytest.raises(ConfigError, match=f"^cache={folder}/features: {reason}; accepted: a folder"):
            cached("features", "key", compute, folder)


@pytest.mark.parametrize("damage", ["cut", "foreign", "empty"])
def test_a_file_that_was_cut_is_never_taken_for_whole(tmp_path: Path, damage: str) -> None:
    cached("features", "key", compute, tmp_path)
    (path,) = (tmp_path / "features").glob("*.safetensors")
    path.write_bytes({"cut": path.read_bytes()[:-4], "foreign": b"<html>", "empty": b""}[damage])
    assert torch.equal(cached("features", "key", compute, tmp_path)["features"], torch.ones(2))
    assert torch.equal(cached("features", "key", lambda: {}, tmp_path)["features"], torch.ones(2)), "mended for good"
