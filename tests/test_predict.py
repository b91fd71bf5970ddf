"""What a saved model says of a folder is what its run has measured; as ONNX it says the same."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from PIL import Image

import medx.export
import medx.predict
from medx.dataset.decoded import Rules, decode
from medx.dataset.phantom import KINDS
from medx.dataset.pictures import Reading
from medx.export import ALIKE, to_onnx
from medx.model.export import load_model
from medx.schema import ConfigError
from tests.program import Ran, call

COUNT = {"train": 60, "validation": 20, "test": 40}


def draw(folder: Path) -> Path:
    """Phantoms that are not square, with labels and splits."""
    rng, kind = np.random.default_rng(0), next(kind for kind in KINDS.values() if kind.num_channels == 1)
    images, labels = kind.draw(sum(COUNT.values()), 32, rng)
    splits = [split for split, count in COUNT.items() for _ in range(count)]
    folder.mkdir()
    with (folder / "labels.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "label", "split"])
        for number, (image, label, split) in enumerate(zip(images, labels, splits, strict=True)):
            Image.fromarray(image[:26, :, 0]).save(folder / f"{number:03}.png")
            rows.writerow([f"{number:03}.png", kind.class_names[label], split])
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """A folder of images and a run on it."""
    place = tmp_path_factory.mktemp("predict")
    scans = draw(place / "scans")
    model = ("model.num_phantoms=60", "model.num_components=20", "privacy=local_dp", "privacy.epsilon=8", "noise=seed")
    base = ("dataset=folder", "dataset.size=24", "dataset.fit=pad", "tracking=none", "federation.num_clients=2")
    ran = call(place / "run", f"dataset.path={scans}", *model, "federation.num_rounds=4", base=base)
    assert ran.code == 0, ran.err
    return scans, ran


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_it_says_of_the_test_images_what_the_run_has_measured(trained, tmp_path, capsys):
    scans, ran = trained
    out = tmp_path / "said.csv"
    medx.predict.main([str(ran.folder), str(scans), "--out", str(out)])
    table = {row["image"]: row for row in rows_of(scans / "labels.csv")}
    test = [row for row in rows_of(out) if table[row["image"]]["split"] == "test"]
    assert len(test) == COUNT["test"]
    assert out.stat().st_mode & 0o077 == 0
    for column, metric in (("answer", "accuracy"), ("answer_at_threshold", "accuracy_at_threshold")):
        right = np.mean([row[column] == table[row["image"]]["label"] for row in test])
        assert right == pytest.approx(ran.result.test[metric].value)
    shown = capsys.readouterr().out
    assert f"{ran.result.test['auc'].value:.4f}" in shown
    assert "epsilon 7." in shown or "epsilon 8" in shown

    # Without a table the same is said, of all images that are there; a folder that is read otherwise is answered so.
    (scans / "labels.csv").rename(tmp_path / "labels.csv")
    try:
        medx.predict.main([str(ran.folder / "model.safetensors"), str(scans), "--out", str(tmp_path / "again.csv")])
        medx.predict.main([str(ran.folder), str(scans), "dataset.fit=crop", "--out", str(tmp_path / "cropped.csv")])
    finally:
        (tmp_path / "labels.csv").rename(scans / "labels.csv")
    assert rows_of(tmp_path / "again.csv") == rows_of(out)
    assert rows_of(tmp_path / "cropped.csv") != rows_of(out)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["dataset.size=32"], r"dataset.size=32: the model takes 24 pixels, grey; accepted: no other"),
        (["dataset.fitt=pad"], r"dataset.fitt"),
        (["--out", "nowhere/said.csv"], r"--out=nowhere/said.csv: there is no such folder"),
        (["dataset.classes=[clear,opacity,other]", "dataset.task=multiclass"], r"other is no class of the model"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(trained, arguments, line, capsys):
    scans, ran = trained
    with pytest.raises(SystemExit, match="2"):
        medx.predict.main([str(ran.folder), str(scans), *arguments])
    assert line in capsys.readouterr().err


@pytest.fixture(scope="module")
def translated(trained: tuple[Path, Ran], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's model as ONNX."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    assert to_onnx(load_model(trained[1].folder / "model.safetensors"), path) <= ALIKE
    return path


def test_as_onnx_it_gives_the_same_probabilities_for_any_number_of_images(trained, translated, tmp_path):
    scans, ran = trained
    out = tmp_path / "said.csv"
    medx.predict.main([str(ran.folder), str(scans), "--out", str(out)])
    session = InferenceSession(str(translated))
    kept = json.loads(session.get_modelmeta().custom_metadata_map["medx"])
    assert kept["classes"] == ["clear", "opacity"]
    assert kept["privacy"]["epsilon"] == pytest.approx(ran.result.privacy.epsilon)
    said = rows_of(out)[:3]
    rules = Rules(24, "pad", "grey", Reading(None, None))
    images = decode([scans / row["image"] for row in said], None, rules, tmp_path).images
    pixels = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    for count in (1, 3):
        (found,) = session.run(None, {"images": pixels[:count]})
        assert found[:, 1] == pytest.approx([float(row["opacity"]) for row in said[:count]], abs=ALIKE)


def test_a_translation_that_answers_otherwise_is_not_written(trained, translated, tmp_path, monkeypatch):
    model, path = load_model(trained[1].folder / "model.safetensors"), tmp_path / "model.onnx"
    another = SimpleNamespace(save=lambda place: shutil.copy(translated, place))
    monkeypatch.setattr(medx.export, "_translated", lambda *given: another)
    assert to_onnx(model, path) <= ALIKE
    path.unlink()
    with torch.no_grad():
        model.head[0].weight += 1
    with pytest.raises(ConfigError, match="its probabilities are off by"):
        to_onnx(model, path)
    assert not list(tmp_path.iterdir())
