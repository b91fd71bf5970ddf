"""The real files, where MEDX_DATA names a folder that has them."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from medx.dataset.medmnist import MedMNIST

FOLDER = Path(os.environ.get("MEDX_DATA", "/nonexistent"))
SHUFFLED = "945a9a73ddd59d2228c255c4abd8242f"  # the official rows in another order


@pytest.mark.parametrize(
    ("name", "md5", "task", "shape", "counts"),
    [
        ("pneumoniamnist", SHUFFLED, "binary", (4708, 28, 28, 1), [1214, 3494]),
        ("retinamnist", None, "ordinal", (1080, 28, 28, 3), [486, 128, 206, 194, 66]),
    ],
)
def test_real_file(name: str, md5: str | None, task: str, shape: tuple[int, ...], counts: list[int]) -> None:
    if not (FOLDER / f"{name}.npz").exists():
        pytest.skip(f"no {name}.npz in MEDX_DATA")
    dataset = MedMNIST(name=name, size=28, md5=md5, download=False, root=str(FOLDER))
    began = time.process_time()
    splits = dataset.load()
    assert time.process_time() - began < 1.5
    assert splits.task == task
    assert splits.train.images.shape == shape
    assert np.bincount(splits.train.labels).tolist() == counts
