"""Pretraining on drawn phantoms: the same bits, from the cache the second time; and what of a network is trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from medx.dataset import InputSpec
from medx.dataset.phantom import KINDS
from medx.model import phantoms
from medx.model.export import describe, load_model, save_model
from medx.model.layers import LinearHead
from medx.schema import ConfigError
from tests.model.test_networks import option
from tests.program import call

SPEC = InputSpec(1, 28, 2, "binary")
SMALL: dict[str, Any] = {"pretrain": "phantom", "num_phantoms": 40, "pretrain_epochs": 2}
CNN: dict[str, Any] = SMALL | {"widths": [4, 8], "num_groups": 2}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def refused(*args: object) -> None:
    raise AssertionError("trained again")


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("spec", [SPEC, InputSpec(3, 20, 5, "ordinal"), InputSpec(3, 20, 9, "multiclass")])
def test_the_same_bits_twice_and_from_the_cache(spec, cache, tmp_path, monkeypatch):
    model, before = option("cnn", **CNN), torch.get_rng_state()
    first = model.build(spec, 1)
    monkeypatch.setenv("MEDX_CACHE", str(tmp_path / "another"))
    assert same(model.build(spec, 1), first)
    assert torch.equal(before, torch.get_rng_state())
    monkeypatch.setattr(phantoms, "pretrain", refused)
    assert same(model.build(spec, 2), first)  # the run's own seed draws nothing of it
    assert not same(option("cnn", **(CNN | {"pretrain": "none"})).build(spec, 1), first)
    head = next(module for module in first.modules() if isinstance(module, LinearHead))
    assert not head[0].weight.any()
    for change in ({"pretrain_seed": 1}, {"num_phantoms": 41}, {"pretrain_epochs": 3}, {"activation": "relu"},
                   {"weight_standardisation": True}):  # fmt: skip
        with pytest.raises(AssertionError, match="trained again"):
            option("cnn", **(CNN | change)).build(spec, 1)


def test_pretraining_learns_to_tell_opacities(cache):
    network = option("cnn", **CNN).start(SPEC, 0)
    images, labels = phantoms.draw_phantoms(KINDS["chest"], 28, 300, 99, "pretraining")

    def auc() -> float:
        scores = network(images).detach()[:, 0]
        return float((scores[labels == 1][:, None] > scores[labels == 0]).float().mean())

    assert auc() == 0  # the head is at zero: every score is equal
    phantoms.pretrain(network, SPEC, 600, 6, 0)
    assert auc() > 0.58  # of 300: chance is .5 with a deviation of .033


def test_a_changed_phantom_is_another_key(cache, monkeypatch):
    option("cnn", **CNN).build(SPEC, 1)
    chest = KINDS["chest"]
    inverted = replace(chest, draw=lambda *args: (255 - chest.draw(*args)[0], chest.draw(*args)[1]))
    monkeypatch.setitem(KINDS, "chest", inverted)
    monkeypatch.setattr(phantoms, "pretrain", refused)
    with pytest.raises(AssertionError, match="trained again"):
        option("cnn", **CNN).build(SPEC, 1)


@pytest.mark.parametrize("name", ["cnn", "resnet18"])
@pytest.mark.parametrize("spec", [SPEC, InputSpec(3, 28, 5, "ordinal")])
def test_head_trains_the_head_and_the_norms(name, spec):
    network = option(name, train="head").build(spec, 1)
    owners = {type(m) for m in network.modules() if any(p.requires_grad for p in m.parameters(recurse=False))}
    left = {type(m) for m in network.modules() if any(not p.requires_grad for p in m.parameters(recurse=False))}
    assert left == {nn.Conv2d}
    assert {nn.GroupNorm, nn.Linear} <= owners
    assert all(p.requires_grad for p in option(name).build(spec, 1).parameters())


def test_export_keeps_the_frozen_body_and_trains_nothing_to_load(cache, tmp_path, monkeypatch):
    model = option("cnn", **CNN, train="head")
    network = model.build(SPEC, 1)
    save_model(tmp_path / "model.safetensors", describe(model, SPEC, (0.5,), (0.5,)), None, network)
    monkeypatch.setattr(phantoms, "pretrain", refused)
    monkeypatch.setenv("MEDX_CACHE", str(tmp_path / "elsewhere"))
    assert same(load_model(tmp_path / "model.safetensors").head, network)


def test_what_cannot_be_pretrained_is_refused(cache, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.pretrain=phantom: .* not 2"):
        option("cnn", **CNN).build(InputSpec(2, 28, 2, "binary"), 1)
    with pytest.raises(Exception, match=r"model\.pretrain=phantom: accepted with model\.weights"):
        option("resnet18", **SMALL, weights=str(tmp_path / "weights.safetensors"))


@pytest.mark.parametrize("privacy", [("privacy=local_dp",), ("privacy=distributed_dp", "privacy.delta=1e-4")])
def test_a_run_sends_the_trained_part_alone_and_its_model_is_whole(privacy, cache, tmp_path):
    options = ("model.pretrain=phantom", "model.num_phantoms=40", "model.pretrain_epochs=1", "model.train=head")
    steps = ("trainer.local_steps=1", "trainer.sampling_probability=null") if "distributed" in privacy[0] else ()
    ran = call(tmp_path / "run", *options, *privacy, *steps, "trainer.learning_rate=0.5")
    assert ran.code == 0, ran.err
    trained = 2 * 4 + 2 * 8 + 8 + 1
    assert ran.result.model["parameters"] == trained
    head = load_model(Path(ran.result.checkpoint)).head
    start = option("cnn", **(CNN | {"pretrain_epochs": 1})).build(SPEC, 0).state_dict()
    for name, tensor in head.state_dict().items():
        convolution = tensor.dim() == 4
        assert torch.equal(tensor, start[name]) == convolution, name
