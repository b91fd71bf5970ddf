import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file
from torch import nn

from medx.dataset import InputSpec
from medx.model import Model
from medx.model.export import describe, load_model, save_model
from medx.model.storage import read_tensors, write_tensors
from medx.schema import CheckpointError

CONF = Path(__file__).parents[2] / "conf" / "model"
SPEC = InputSpec(1, 28, 5, "ordinal")


def option(name: str, **overrides: Any) -> Model:
    model: Model = instantiate(yaml.safe_load((CONF / f"{name}.yaml").read_text()) | overrides)
    return model


def export(path: Path, model: Model, spec: InputSpec = SPEC) -> nn.Module:
    features, head = model.features(spec), model.build(spec, 0)
    for parameter in head.parameters():
        nn.init.normal_(parameter, 0, 0.1, generator=torch.Generator().manual_seed(0))
    save_model(path, describe(model, spec, mean=(0.5,), std=(0.25,), epsilon=1.5), features, head)
    return head if features is None else nn.Sequential(features, head)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("cnn", {}), ("resnet18", {}), ("scatternet", {"num_phantoms": 60, "num_components": 20, "num_views": 2})],
)
def test_round_trip(name: str, overrides: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDX_CACHE", str(tmp_path / "here"))
    trained = export(tmp_path / "model.safetensors", option(name, **overrides))
    monkeypatch.setenv("MEDX_CACHE", "/nonexistent/cache")
    loaded = load_model(tmp_path / "model.safetensors")
    images = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded(images), trained(images))
    assert torch.allclose(loaded.probabilities(loaded(images)).sum(1), torch.ones(3))
    assert (loaded.spec, loaded.mean, loaded.std, loaded.metadata["epsilon"]) == (SPEC, (0.5,), (0.25,), 1.5)
    assert not loaded.training


def faulty(path: Path, fault: str) -> None:
    export(path, option("cnn"))
    whole = path.read_bytes()
    tensors, metadata = read_tensors(path)
    description = json.loads(metadata["medx"])
    if fault == "missing":
        path.unlink()
    elif fault == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif fault == "flipped":
        path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    elif fault == "foreign":
        save_file(load_file(path), path)
    elif fault == "tensors":
        tensors.popitem()
    elif fault == "target":
        description["model"] = {"_target_": "os.system", "command": "true"}
    elif fault == "sideways":
        description["model"] = {"component": "privacy/none"}
    elif fault == "upwards":
        description["model"] = {"component": "model/../privacy/none"}
    elif fault == "format":
        description["format"] = 99
    elif fault == "field":
        description["model"]["widths"] = "wide"
    if fault in ("tensors", "target", "sideways", "upwards", "format", "field"):
        write_tensors(path, tensors, {"medx": json.dumps(description)})


FAULTS = ["missing", "truncated", "flipped", "foreign", "tensors", "target", "sideways", "upwards", "format", "field"]


def test_a_model_is_named_by_its_option_and_one_of_before_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    export(path, option("cnn"))
    tensors, metadata = read_tensors(path)
    description = json.loads(metadata["medx"])
    assert "medx." not in metadata["medx"]
    assert description["model"].pop("component") == "model/cnn"
    images = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    outputs = load_model(path)(images)
    description |= {"format": 1, "model": {"_target_": "medx.model.cnn.Cnn"} | description["model"]}
    write_tensors(path, tensors, {"medx": json.dumps(description)})
    assert torch.equal(load_model(path)(images), outputs)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_refused_in_one_line(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    faulty(path, fault)
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
