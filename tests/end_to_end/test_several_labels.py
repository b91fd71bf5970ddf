"""Several labels an image: ChestMNIST's layout from file to result, columns and lists of a folder, and refusals."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medx.dataset.checks import check_splits
from medx.dataset.medmnist import medmnist_info
from medx.model.export import load_model
from medx.schema import DataError
from tests.dataset.own_images import folder_at, write_csv, write_images
from tests.program import TINY, call

BASE = tuple(part for part in TINY if not part.startswith("dataset"))


def chest(path: Path) -> str:
    """A file of ChestMNIST's layout, in which half of the image is brighter where a finding holds; its MD5."""
    generator, arrays = np.random.default_rng(0), {}
    for split, rows in (("train", 150), ("val", 60), ("test", 80)):
        labels = (generator.random((rows, 14)) < 0.3).astype(np.uint8)
        images = generator.integers(0, 160, (rows, 28, 28), dtype=np.uint8)
        images[:, :, :14] += 90 * labels[:, :1, None]
        images[:, :, 14:] += 90 * labels[:, 1:2, None]
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    np.savez(path, **arrays)
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_the_layout_of_chestmnist_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    md5 = chest(tmp_path / "chestmnist.npz")
    monkeypatch.setenv("MEDX_DATA", str(tmp_path))
    ran = call(
        tmp_path / "run",
        *("dataset=chestmnist", f"dataset.md5={md5}", "privacy=local_dp", "partition=dirichlet"),
        *("federation.num_rounds=6", "trainer.local_steps=4", "baseline=centralized", "privacy.epsilon=100"),
        base=BASE,
    )
    assert ran.code == 0, ran.err
    result = ran.result
    assert result.dataset.task == "multilabel"
    assert list(result.dataset.class_names) == list(medmnist_info()["chestmnist"]["label"].values())
    with np.load(tmp_path / "chestmnist.npz") as file:
        images, labels = file["test_images"], file["test_labels"]
    assert result.dataset.class_counts["test"] == labels.sum(0).tolist()
    assert result.thresholds is not None
    assert len(result.thresholds) == 14
    assert result.test["auc_0"].value > result.test["auc_5"].value, "which no pixel tells"
    for name in ("auc", "average_precision", "auc_13", "balanced_accuracy_at_threshold"):
        assert result.test[name].low <= result.test[name].value <= result.test[name].high
    assert result.baselines["centralized"]["auc"].value is not None
    assert "validation/auc" in result.rounds[-1].metrics
    model = load_model(ran.folder / "model.safetensors")
    seen = (torch.from_numpy(images)[:, None].float() / 255 - 0.5) / 0.5
    answers = model.probabilities(model(seen)).numpy() >= np.array([cut or 0.5 for cut in result.thresholds])
    right = (answers == labels).mean(0).mean()
    assert right == pytest.approx(result.test["accuracy_at_threshold"].value, abs=1e-6)
    refused = call(
        tmp_path / "weights", "dataset=chestmnist", f"dataset.md5={md5}", "trainer.class_weights=[1,2]", base=BASE
    )
    assert "trainer.class_weights: a record may have several labels" in refused.refusal


def test_columns_and_lists_of_labels(tmp_path: Path) -> None:
    names = write_images(tmp_path, 40)
    words = ["1", "0", "-1", "", "yes", "No", "1.0", "uncertain"] * 5
    lists = ["a|b", "b", "", "No Finding", "c | a", "c", "b|c", "a"] * 5
    rows = [
        f"{name},{word},{1 - row % 2},{several}"
        for row, (name, word, several) in enumerate(zip(names, words, lists, strict=True))
    ]
    write_csv(tmp_path, "image,edema,mass,findings", rows)

    def labels(**changes: object) -> dict[str, list[int]]:
        folder = folder_at(tmp_path, **changes)
        table = folder.table()
        found, classes = folder.labels_of(table)
        check_splits(folder.load())
        return {name: found[:8, index].tolist() for index, name in enumerate(classes)}

    columns = {"columns": {"label": ["edema", "mass"]}}
    assert labels(**columns) == {"edema": [1, 0, -1, 0, 1, 0, 1, -1], "mass": [1, 0, 1, 0, 1, 0, 1, 0]}
    assert labels(**columns, uncertain="positive", missing="missing")["edema"] == [1, 0, 1, -1, 1, 0, 1, 1]
    assert list(labels(**columns, classes=["mass", "edema"])) == ["mass", "edema"]
    listed = {"columns": {"label": "findings"}, "label_separator": "|"}
    assert labels(**listed) == {
        "a": [1, 0, 0, 0, 1, 0, 0, 1],
        "b": [1, 1, 0, 0, 0, 0, 1, 0],
        "c": [0, 0, 0, 0, 1, 1, 1, 0],
    }
    assert labels(**listed, missing="missing")["a"][2] == -1
    for change, says in (
        ({"columns": {"label": ["edema", "findings"]}}, "cells of findings are no answer"),
        (listed | {"classes": ["a", "b"]}, "cells have a label that"),
        (columns | {"classes": ["a", "b"]}, "accepted: the columns edema, mass"),
    ):
        with pytest.raises(DataError, match=says) as refused:
            labels(**change)
        assert "c | a" not in str(refused.value)


def test_a_run_on_a_folder_of_several_labels_by_patient(tmp_path: Path) -> None:
    generator, rows = np.random.default_rng(0), ["image,bright,noisy,patient"]
    for row in range(120):
        bright, noisy = generator.integers(0, 2, 2)
        pixels = generator.integers(0, 60 + 60 * noisy, (16, 16)) + 100 * bright
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{row}.png")
        rows.append(f"{row}.png,{bright},{noisy if row % 7 else ''},{row // 2}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    ran = call(
        tmp_path / "run",
        *("dataset=folder", f"dataset.path={tmp_path}", "dataset.size=16", "dataset.missing=missing"),
        *("dataset.columns.label=[bright,noisy]", "privacy=local_dp", "privacy.unit=patient"),
        base=BASE,
    )
    assert ran.code == 0, ran.err
    assert ran.result.dataset.class_names == ["bright", "noisy"]
    assert ran.result.privacy.unit == "patient"
