from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import instantiate
from safetensors.torch import save_file
from torch import nn

from medx.dataset import InputSpec
from medx.dataset.phantom import Phantom
from medx.model import Model, weights_of
from medx.model.cnn import Cnn
from medx.model.export import describe, load_model, save_model
from medx.model.layers import initialise
from medx.model.weights import file_digest
from medx.schema import ConfigError, MedxError

CONF = Path(__file__).parents[2] / "conf" / "model"


def option(name: str, **overrides: Any) -> Model:
    model: Model = instantiate(yaml.safe_load((CONF / f"{name}.yaml").read_text()) | overrides)
    return model


def declaration(path: Path) -> dict[str, Any]:
    """What is to be said of a file of weights."""
    known = file_digest(path) if path.exists() else "0" * 64
    return {"weights": str(path), "sha256": known, "licence": "MIT", "trained_on": ["imagenet"]}


@pytest.mark.parametrize("name", ["cnn", "resnet18"])
@pytest.mark.parametrize(
    ("spec", "outputs"),
    [
        (InputSpec(1, 28, 2, "binary"), 1),
        (InputSpec(3, 64, 9, "multiclass"), 9),
        (InputSpec(1, 224, 5, "ordinal"), 4),
        (InputSpec(3, 28, 5, "ordinal"), 4),
    ],
)
def test_shapes_and_no_coupling(name: str, spec: InputSpec, outputs: int) -> None:
    model = option(name)
    network = model.build(spec, seed=1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0, 0.05, generator=torch.Generator().manual_seed(0))
    images = torch.randn(
        2, spec.num_channels, spec.image_size, spec.image_size, generator=torch.Generator().manual_seed(0)
    )
    together = network(images)
    assert model.features(spec) is None
    assert together.shape == (2, outputs) == (2, model.objective(spec).num_outputs)
    assert torch.allclose(network(images[:1]), together[:1], atol=1e-4)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    assert not any(getattr(module, "inplace", False) for module in network.modules())


@pytest.mark.parametrize("name", ["cnn", "resnet18"])
def test_weights_come_from_the_seed_alone(name: str) -> None:
    spec = InputSpec(1, 28, 2, "binary")
    before = torch.get_rng_state()
    first, again, other = (list(option(name).build(spec, seed).parameters()) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert all(parameter.isfinite().all() for parameter in first)


def test_cnn_is_small() -> None:
    network = option("cnn").build(InputSpec(1, 28, 2, "binary"), 0)
    assert 55_000 < sum(parameter.numel() for parameter in network.parameters()) < 65_000


def test_cnn_refuses_groups_that_do_not_divide() -> None:
    fields = yaml.safe_load((CONF / "cnn.yaml").read_text()) | {"num_groups": 5}
    del fields["_target_"]
    with pytest.raises(ConfigError, match="num_groups=5"):
        Cnn(**fields)


def test_resnet18_bears_per_record_hooks() -> None:
    from opacus import GradSampleModule

    network = option("resnet18", num_groups=8).build(InputSpec(1, 28, 2, "binary"), 0)
    hooked = GradSampleModule(network, loss_reduction="sum")
    hooked(torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert all(parameter.grad_sample.shape[0] == 2 for parameter in network.parameters())


def test_resnet18_loads_public_weights_but_the_head(tmp_path: Path) -> None:
    spec = InputSpec(3, 224, 9, "multiclass")
    donor = option("resnet18").build(InputSpec(3, 224, 2, "binary"), 5)
    save_file(donor.state_dict(), tmp_path / "good.safetensors")
    declared = declaration(tmp_path / "good.safetensors")
    network = option("resnet18", **declared).build(spec, 6)
    assert torch.equal(network.state_dict()["conv1.weight"], donor.state_dict()["conv1.weight"])
    assert not network.state_dict()["fc.0.weight"].any()


@pytest.mark.parametrize("fault", ["missing", "garbage", "batchnorm", "shape"])
def test_resnet18_refuses_weights_that_do_not_fit(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    tensors = option("resnet18").build(InputSpec(3, 224, 2, "binary"), 5).state_dict()
    if fault == "garbage":
        path.write_bytes(b"not tensors")
    elif fault == "batchnorm":
        save_file(tensors | {"bn1.running_mean": torch.zeros(64)}, path)
    elif fault == "shape":
        save_file(tensors | {"conv1.weight": torch.zeros(64, 3, 3, 3)}, path)
    names = {"batchnorm": "bn1.running_mean", "shape": "conv1.weight"}
    with pytest.raises(MedxError, match=names.get(fault, "weights.safetensors")) as caught:
        option("resnet18", **declaration(path)).build(InputSpec(3, 224, 2, "binary"), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["sha256", "licence", "trained_on"])
def test_resnet18_refuses_public_weights_of_which_too_little_is_declared(name: str, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(Exception, match=rf"model\.{name}="):
        option("resnet18", **(declaration(tmp_path / "weights.safetensors") | {name: None}))


def test_resnet18_says_what_it_began_from_and_refuses_data_that_it_has_seen(tmp_path: Path) -> None:
    save_file(option("resnet18").build(InputSpec(1, 28, 2, "binary"), 5).state_dict(), tmp_path / "w.safetensors")
    model = option("resnet18", **declaration(tmp_path / "w.safetensors"))
    assert weights_of(model).trained_on == ["imagenet"]
    splits = Phantom(kind="chest", num_train=30, num_validation=10, num_test=10, size=28, seed=0).load()
    model.check_data(splits)
    with pytest.raises(ConfigError, match=rf"model\.trained_on=\[{splits.name}\]"):
        option("resnet18", **(declaration(tmp_path / "w.safetensors") | {"trained_on": [splits.name]})).check_data(
            splits
        )
    path = tmp_path / "model.safetensors"
    save_model(path, describe(model, splits.spec, (0.5,), (0.5,)), None, model.build(splits.spec, 0))
    assert load_model(path).metadata["model"]["trained_on"] == ["imagenet"]


NORMS = [nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.LayerNorm(4, elementwise_affine=False)]


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_the_norms_that_a_refusal_advises_have_initial_values(norm: nn.Module) -> None:
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    groups = 2 if isinstance(norm, nn.GroupNorm) else 1
    assert torch.allclose(initialise(norm, 0)(inputs), nn.functional.group_norm(inputs, groups), atol=1e-6)
