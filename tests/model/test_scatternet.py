import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from medx import output
from medx.dataset import InputSpec
from medx.dataset.phantom import kind_of
from medx.model import FixedFeatures
from medx.model.phantoms import draw_phantoms, principal_components
from medx.model.scattering import ScatterFeatures
from medx.model.scatternet import ScatterNet
from medx.model.storage import cached_features, compute_features
from medx.schema import ConfigError

CONF = Path(__file__).parents[2] / "conf" / "model" / "scatternet.yaml"
SMALL = {"num_phantoms": 60, "num_components": 20}


def scatternet(**overrides: Any) -> ScatterNet:
    fields = yaml.safe_load(CONF.read_text())
    fields.pop("_target_")
    return ScatterNet(**fields | overrides)


def images(count: int, channels: int, size: int) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Doubling(FixedFeatures):
    """Counts the images it sees."""

    seen = 0

    @property
    def fingerprint(self) -> str:
        return "doubling"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        type(self).seen += len(images)
        return 2 * images.flatten(1)


@pytest.mark.parametrize(
    ("spec", "length", "outputs"),
    [
        (InputSpec(1, 28, 2, "binary"), 81 * 49 + 1, 1),
        (InputSpec(3, 64, 9, "multiclass"), 3 * 217 * 64 + 48 + 1, 9),
        (InputSpec(1, 224, 5, "ordinal"), 681 * 49 + 1, 4),
    ],
)
def test_shapes_without_a_basis(spec: InputSpec, length: int, outputs: int) -> None:
    model = scatternet(basis="none", num_views=1)
    features = model.features(spec)
    assert features is not None
    found = features(images(2, spec.num_channels, spec.image_size))
    assert found.shape == (2, length)
    assert torch.allclose(found.norm(dim=1), torch.full((2,), (1 + 0.1**2) ** 0.5))
    assert torch.equal(found[:, -1], torch.full((2,), 0.1))
    assert model.build(spec, 0)(found).shape == (2, outputs)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in features.modules())


@pytest.mark.parametrize("channels", [1, 3])
def test_phantom_basis_is_kept_and_found_again(channels: int) -> None:
    spec, model = InputSpec(channels, 28, 2, "binary"), scatternet(**SMALL)
    first, again = model.features(spec), model.features(spec)
    other = scatternet(**SMALL | {"phantom_seed": 1}).features(spec)
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.fingerprint == again.fingerprint != other.fingerprint
    x = images(3, channels, 28)
    assert first(x).shape == (3, model.settings(spec).num_features)
    assert torch.equal(first(x), again(x))
    assert not torch.allclose(first(x), other(x), atol=1e-3)


def test_a_saved_state_is_all_that_features_need() -> None:
    spec, model = InputSpec(1, 28, 2, "binary"), scatternet(**SMALL)
    features, restored = model.features(spec), model.empty_features(spec)
    assert features is not None
    assert features.fingerprint != restored.fingerprint
    restored.load_state_dict(features.state_dict())
    x = images(3, 1, 28)
    assert torch.equal(features(x), restored(x))
    assert features.fingerprint == restored.fingerprint


def test_features_ignore_brightness_and_contrast_and_other_images() -> None:
    features = scatternet(basis="none").features(InputSpec(1, 28, 2, "binary"))
    assert features is not None
    x = images(3, 1, 28)
    assert torch.allclose(features(x), features(3 * x - 1), atol=1e-4)
    assert torch.allclose(features(x[:1]), features(x)[:1], atol=1e-5)
    assert not torch.allclose(features(x[:1]), features(x)[1:2], atol=1e-2)


def test_views_are_small_but_not_nothing() -> None:
    smooth = nn.functional.avg_pool2d(images(2, 1, 34), 7, 1)
    one, five = (scatternet(basis="none", num_views=n).features(InputSpec(1, 28, 2, "binary")) for n in (1, 5))
    assert one is not None
    assert five is not None
    similarity = nn.functional.cosine_similarity(one(smooth), five(smooth))
    assert similarity.min() > 0.7
    assert similarity.max() < 0.999


@pytest.mark.parametrize(("count", "size"), [(300, 40), (40, 300)])
def test_principal_components_are_the_singular_vectors(count: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(count, size, generator=generator) * torch.linspace(1, 3, size) + 5
    found = principal_components(rows.clone(), 10, 0.25)
    _, values, vectors = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    variances = values[:10].flip(0) ** 2 / (count - 1)
    assert torch.allclose(found["scales"], (variances + 1e-3 * variances[-1]) ** -0.25, rtol=1e-4)
    overlaps = (found["basis"].float() * vectors[:10].flip(0).T).sum(0).abs()
    assert torch.allclose(overlaps, torch.ones(10), atol=2e-3)
    assert torch.equal(found["basis"], principal_components(rows.clone(), 10, 0.25)["basis"])
    largest = found["basis"].gather(0, found["basis"].abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


def test_refuses_more_components_than_phantoms_and_odd_channels() -> None:
    with pytest.raises(ConfigError, match="num_components=20"):
        scatternet(num_phantoms=20, num_components=20).features(InputSpec(1, 28, 2, "binary"))
    with pytest.raises(ConfigError, match="1 or 3 channels"):
        scatternet(**SMALL).features(InputSpec(2, 28, 2, "binary"))


def test_head_starts_at_zero_with_the_constant_as_bias() -> None:
    spec = InputSpec(1, 28, 2, "binary")
    (weight,) = scatternet(**SMALL, phantom_start=0).build(spec, 0).parameters()
    assert weight.shape == (1, 21)
    assert not weight.any()
    shallow = scatternet(**SMALL, hidden=8).build(spec, 0)
    assert [tuple(p.shape) for p in shallow.parameters()] == [(8, 21), (1, 8), (1,)]
    assert next(shallow.parameters()).any()


def pixels(count: int, channels: int) -> np.ndarray:
    """Images as they are read: ``uint8 [count, 28, 28, channels]``."""
    return np.random.default_rng(0).integers(0, 256, (count, 28, 28, channels), np.uint8)


def normalised(part: np.ndarray) -> torch.Tensor:
    """``float32 [n, channels, height, width]`` in 0..1."""
    return torch.from_numpy(part).permute(0, 3, 1, 2).float() / 255


def test_cached_features_computes_once_and_in_order(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, said = pixels(70, 3), []
    monkeypatch.setattr(output, "_SHOWN", [said.append])
    monkeypatch.setattr(output, "EVERY", 0.0)
    Doubling.seen = 0
    first = cached_features(Doubling(), x, normalised, cache)
    again = cached_features(Doubling(), x.copy(), normalised, cache)
    assert torch.equal(first, 2 * normalised(x).flatten(1))
    assert torch.equal(first, again)
    assert Doubling.seen == 70
    assert said[-1] == "preparing: features of 70 images: 70 of 70"
    assert len(said) > 3
    cached_features(Doubling(), x ^ 1, normalised, cache)
    assert Doubling.seen == 140
    cached_features(Doubling(), x, lambda part: normalised(part) + 1, cache)
    assert Doubling.seen == 210, "another normalisation"


@pytest.mark.parametrize("fault", ["flipped", "truncated", "garbage"])
def test_damaged_cache_is_reported_and_computed_again(
    fault: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x = pixels(4, 1)
    expected = cached_features(Doubling(), x, normalised, cache)
    (path,) = cache.rglob("*.safetensors")
    whole = bytearray(path.read_bytes())
    flipped = whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]
    path.write_bytes({"flipped": flipped, "truncated": whole[:100], "garbage": b"?"}[fault])
    with caplog.at_level(logging.WARNING):
        assert torch.equal(cached_features(Doubling(), x, normalised, cache), expected)
    assert "damaged" in caplog.text
    caplog.clear()
    cached_features(Doubling(), x, normalised, cache)
    assert not caplog.text
    assert {path.suffix for path in cache.rglob("*") if path.is_file()} == {".safetensors", ".lock"}, "nothing aside"


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    compute_features(Doubling(), images(4, 1, 28))
    assert torch.get_num_threads() == before


def test_fingerprint_follows_the_settings() -> None:
    settings = scatternet(basis="none").settings(InputSpec(1, 28, 2, "binary"))
    changes: tuple[dict[str, Any], ...] = ({}, {"bias": 0.2}, {"num_views": 2})
    assert len({ScatterFeatures(replace(settings, **change)).fingerprint for change in changes}) == 3


DRAWN_ALIKE = [InputSpec(1, 28, 2, "binary", "chest"), InputSpec(3, 28, 5, "ordinal", "fundus")]


@pytest.mark.parametrize("spec", DRAWN_ALIKE, ids=lambda spec: spec.task)
def test_the_head_starts_towards_what_phantoms_teach(spec: InputSpec) -> None:
    model = scatternet(num_phantoms=400, num_components=20, phantom_start=0.5)
    features = model.features(spec)
    kind = kind_of(spec.num_channels)
    assert kind is not None
    drawn, labels = draw_phantoms(kind, spec.image_size, 300, 9, "phantom-basis")
    rows = features(drawn)
    heads = [scatternet(num_phantoms=400, num_components=20, phantom_start=scale).build(spec, 0) for scale in (0, 0.5)]
    losses = [model.objective(spec).loss(head(rows), labels).mean().item() for head in heads]
    assert losses[1] < 0.9 * losses[0]
    assert all(torch.equal(a, b) for a, b in zip(model.build(spec, 0).parameters(), heads[1].parameters(), strict=True))


@pytest.mark.parametrize("spec", [InputSpec(1, 28, 9, "multiclass"), InputSpec(1, 28, 2, "binary")])
def test_labels_that_are_not_said_to_be_the_phantoms_leave_the_head_at_zero(spec: InputSpec) -> None:
    """Two classes of grey pictures may be anything, and in the other order."""
    head = scatternet(**SMALL | {"phantom_start": 0.5}).build(spec, 0)
    assert not any(parameter.any() for parameter in head.parameters())
