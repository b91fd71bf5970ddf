"""What the benchmark scripts share: the same images, the same network, the same work."""

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

HOSPITALS, ROUNDS = 5, 5


@lru_cache(maxsize=1)
def load_arrays() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training and test images ``[n, 1, 28, 28]`` with labels: PneumoniaMNIST where $MEDX_DATA has it, else phantoms."""
    path = Path(os.environ.get("MEDX_DATA", "")) / "pneumoniamnist.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    else:
        from medx.dataset.phantom import draw_chest

        generator = np.random.default_rng(0)
        arrays = {}
        for split, count in (("train", 4708), ("test", 624)):
            images, labels = draw_chest(count, 28, generator)
            arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[..., 0], labels
    result = []
    for split in ("train", "test"):
        images = torch.from_numpy(arrays[f"{split}_images"]).float().div(255).sub(0.5).div(0.5).unsqueeze(1)
        result += [images, torch.from_numpy(arrays[f"{split}_labels"].reshape(-1).astype(np.int64))]
    return result[0], result[1], result[2], result[3]


def small_cnn() -> nn.Module:
    """The network of ``model=cnn`` for 28x28 grey images, with two outputs for cross-entropy."""
    from medx.dataset import InputSpec
    from medx.model.cnn import Cnn

    network: nn.Module = Cnn(**cnn_fields()).build(InputSpec(1, 28, 2, "multiclass"), 0)
    return network


@lru_cache(maxsize=1)
def cnn_fields() -> dict[str, object]:
    """The fields of conf/model/cnn.yaml."""
    import yaml

    path = Path(__file__).parent.parent / "conf" / "model" / "cnn.yaml"
    fields = yaml.safe_load(path.read_text())
    return {name: value for name, value in fields.items() if not name.startswith("_") and name != "defaults"}
