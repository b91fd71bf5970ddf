"""A run on features of a public network, whose weights are a local file: what it computes, keeps, says and refuses."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

import medx
from tests.program import DATA, WORK, Ran, call

NETWORK = "shufflenet_v2_x0_5"
FEATURES = ("model.num_phantoms=60", "model.num_components=20", "model.resolution=32", f"model.backbone={NETWORK}")


def write(path: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(torchvision.models.get_model(NETWORK, weights=None).state_dict(), path)
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(folder: Path, model: str, weights: Path, *more: str) -> Ran:
    declared = (f"model.weights={weights}", f"model.sha256={digest(weights)}", "model.licence=CC0")
    trained_on = () if any("trained_on" in part for part in more) else ("model.trained_on=[noise,more_noise]",)
    base = (*DATA, *WORK, f"model={model}", *FEATURES, *declared, *trained_on, "tracking=none", "device=cpu")
    return call(folder, *more, "noise=seed", base=base)


@pytest.mark.parametrize("model", ["pretrained", "ensemble"])
def test_a_run_says_whose_weights_it_has_and_leaves_them_as_they_are(model: str, tmp_path: Path) -> None:
    weights = write(tmp_path / "weights.safetensors")
    before = digest(weights)
    views = ("model.num_views=1",) if model == "ensemble" else ()
    ran = run(tmp_path / "run", model, weights, *views)
    assert ran.code == 0, ran.err
    result = ran.result
    told = {"backbone": NETWORK, "sha256": before, "licence": "CC0", "trained_on": ["noise", "more_noise"]}
    assert result.model["weights"] == told
    assert result.model["parameters"] == (41 if model == "ensemble" else 21), "the head alone"
    assert f"Public weights: {NETWORK} (SHA-256 {before}, licence CC0)" in result.privacy.statement
    assert "trained on noise, more_noise" in result.privacy.statement
    released = json.loads((ran.folder / "released.json").read_text())
    assert released["model"]["weights"] == told
    assert str(tmp_path) not in json.dumps(released), "where the file lies is the owner's business"
    kept = load_file(ran.folder / "model.safetensors")
    given = load_file(weights)
    inside = {name.split("network.")[1]: value for name, value in kept.items() if "network." in name}
    assert len(inside) > 100
    assert all(torch.equal(value, given[name]) for name, value in inside.items())
    assert digest(weights) == before
    weights.unlink()
    images = torch.zeros(2, 1, 28, 28)
    assert medx.load_model(ran.folder / "model.safetensors")(images).shape == (2, 1)


def test_where_the_file_lies_is_no_part_of_what_a_run_is(tmp_path: Path) -> None:
    one = write(tmp_path / "one.safetensors")
    other = tmp_path / "elsewhere.safetensors"
    other.write_bytes(one.read_bytes())
    first, second = (run(tmp_path / path.stem, "pretrained", path) for path in (one, other))
    assert first.result.config_hash == second.result.config_hash
    states = [load_file(ran.folder / "model.safetensors")["head.0.weight"] for ran in (first, second)]
    assert torch.equal(*states)
    assert states[0].any()
    one.unlink()
    same = ("model=pretrained", *FEATURES, f"model.sha256={digest(other)}", "model.licence=CC0")
    same = (*same, "model.trained_on=[noise,more_noise]")
    moved = call(tmp_path / "new", f"resume={first.folder}", *same, f"model.weights={other}", base=())
    assert moved.code == 0, moved.err
    wrong = call(tmp_path / "new", f"resume={first.folder}", *same, f"model.weights={other}", "model.bias=1", base=())
    assert "model.bias: 0.1 in the run, 1.0 now" in wrong.refusal


def test_weights_that_are_undeclared_or_have_seen_the_data_are_refused(tmp_path: Path) -> None:
    weights = write(tmp_path / "weights.safetensors")
    undeclared = run(tmp_path / "a", "pretrained", weights, "model.trained_on=null")
    assert "model.trained_on=None: undeclared, and epsilon does not cover" in undeclared.refusal
    seen = run(tmp_path / "b", "pretrained", weights, "model.trained_on=[imagenet,Phantom]")
    assert "model.trained_on=[imagenet, Phantom]: Phantom is in the data of this run" in seen.refusal
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    base = run(tmp_path / "c", "pretrained", weights, f"model.sha256={'0' * 64}")
    assert f"model.sha256={'0' * 64}: {weights} has {digest(weights)}" in base.refusal
