"""``medx data check``: counts against a folder whose troubles are known, in text, JSON and on one page."""

import base64
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medx import output
from medx.data import __main__ as program
from medx.data.look import area_under_curve
from tests.dataset.own_images import picture, write_csv, write_images

KERMANY = Path(os.environ.get("MEDX_DATA", "/nowhere")) / "kermany"


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MEDX_CACHE", str(tmp_path / "cache"))
    before = output.shown_by()
    yield
    output.shown_by(*before)


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medx.data", "check", *arguments])
        monkeypatch.setattr(program.output, "take_all", lambda: None)  # which takes the streams away from pytest
        with pytest.raises(SystemExit) as ended:
            program.main()
        told = capfd.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return call


def troubled(folder: Path) -> Path:
    """60 images of 20 patients; every trouble that is looked for is there once or twice."""
    names = write_images(folder, 60)
    save = {
        1: picture(0),  # the same picture, of the same patient, in the same split
        2: np.full((24, 20), 7, np.uint8),
        3: np.where(picture(3) > 127, 255, 0).astype(np.uint8),
        4: picture(4).astype(np.uint16),  # 8 bits of 16
        5: np.dstack([picture(59)] * 3),  # in colours the same picture as a grey one
    }
    for index, pixels in save.items():
        Image.fromarray(pixels).save(folder / names[index])
    (folder / names[6]).write_bytes(b"")
    for index in range(1, 60, 2):  # of label b: wider
        if index not in (1, 3, 5, 59):
            Image.fromarray(picture(index, (20, 30))).save(folder / names[index])
    split = ["train" if index < 40 else "val" if index < 50 else "test" for index in range(60)]
    site = ["north" if index < 30 else "south" if index % 2 else "west" for index in range(60)]
    rows = [
        f"{name},{'ab'[index % 2]},Jane{index // 3},{site[index]},{split[index]}" for index, name in enumerate(names)
    ]
    write_csv(folder, "image,label,patient,hospital,split", rows)
    return folder


def test_every_trouble_is_counted(tmp_path: Path, check: Any) -> None:
    folder = troubled(tmp_path / "data")
    code, out, err = check(str(folder), "--json", "dataset.max_unreadable=0.5", "dataset.size=16")
    found = json.loads(out)
    assert (code, err) == (1, "")
    assert found["images"] == 60
    assert found["classes"] == {name: {"train": 20, "validation": 5, "test": 5} for name in "ab"}
    assert found["patients"]["count"] == 20
    assert found["patients"]["images_each"] == {"median": 3, "most": 3}
    assert found["patients"]["in_several"] == {"hospitals": 10, "classes": 20, "splits": 2}
    assert found["patients"]["images_across_splits"] == {"validation/train": 2, "test/train": 0, "test/validation": 1}
    assert {name: one["images"] for name, one in found["hospitals"].items()} == {"north": 30, "south": 15, "west": 15}
    assert found["hospitals"]["west"]["classes"] == {"a": 15, "b": 0}
    assert found["files"]["modes"] == {"L": 57, "RGB": 1, "I;16": 1}
    assert found["files"]["bits"] == {"8": 58, "16": 1}
    assert found["unreadable"] == [{"file": "6.png", "reason": "empty"}]
    assert (found["constant"], found["saturated"], found["flat"]) == (["2.png"], ["3.png"], ["4.png"])
    same = {"groups": 2, "images": 4, "across_splits": 1, "across_labels": 1, "across_patients": 1}
    assert found["identical"] == same
    by_what = {one["what"]: one for one in found["shortcuts"]}
    assert by_what["aspect ratio"]["auc"] > 0.9
    assert "dataset.columns.split: 2 validation images of patients who are in train, 1 test images" in found["refusal"]
    assert "hospital west has no image of b" in found["warnings"]
    assert not any("Jane" in warning or ".png" in warning for warning in found["warnings"])


def test_text_fits_80_columns_and_the_page_stands_alone(tmp_path: Path, check: Any) -> None:
    folder = troubled(tmp_path / "Jane_Doe")
    page = tmp_path / "page.html"
    code, out, _ = check(str(folder), "--html", str(page), "dataset.size=16", "dataset.columns.split=false")
    assert code == 1  # of 60 files one is empty, which is more than one in a hundred
    assert "dataset.max_unreadable=0.01: 1 of 60 files give no picture" in " ".join(out.split())
    report = out[out.index("Data check") :]
    assert all(len(line) <= 80 for line in report.splitlines() if str(tmp_path) not in line)
    assert re.search(r"north +30", report)
    html = page.read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', html)
    assert not re.search(r"Jane|\d\.png", html)
    sheets = re.findall(r"data:image/png;base64,([^\"]+)", html)
    assert [Image.open(io.BytesIO(base64.b64decode(sheet))).size[1] for sheet in sheets] == [64, 64]


def test_the_exit_code_is_whether_a_run_would_take_it(tmp_path: Path, check: Any) -> None:
    write_images(tmp_path / "data" / "a", 20)
    write_images(tmp_path / "data" / "b", 20, shape=(22, 22))
    assert check(str(tmp_path / "data"), "dataset.size=16")[0] == 0
    assert check("dataset=phantom", "dataset.num_train=40", "dataset.num_validation=10", "dataset.num_test=9")[0] == 0
    for arguments, says in (
        ([str(tmp_path / "none")], "no such folder"),
        ([str(tmp_path / "data"), "dataset.classes=[a]"], "1 different labels in 40 rows"),
        (
            [str(tmp_path / "data"), "dataset.columns.image=@Bild"],
            "dataset.columns.image=@Bild: there is no labels.csv",
        ),
        ([str(tmp_path / "data"), "dataset.columns.label=x", f"dataset.csv={tmp_path / 'no.csv'}"], "cannot be read"),
    ):
        code, out, err = check(*arguments)
        assert code == 1
        assert says in " ".join(out.split())
        assert not err
    for arguments, says in (
        (["dataset=nothing"], "dataset=nothing is unknown"),
        ([str(tmp_path), "dataset.siz=3"], "did you mean size"),
        ([str(tmp_path), "size=3"], "accepted: dataset=NAME and dataset.key=value"),
        ([str(tmp_path), "dataset.size=huge"], "dataset.size='huge'"),
        ([str(tmp_path), str(tmp_path)], "accepted: one folder"),
        ([str(tmp_path), "--sideways"], "unrecognized arguments"),
        ([str(tmp_path), "--html", str(tmp_path / "no" / "page.html")], "there is no such folder"),
        ([str(tmp_path), "dataset.columns.label=Diagnosis (final)"], "two pairs of quotes"),
        ([str(tmp_path), "dataset.columns.label=[Edema"], "not an override"),
        ([str(tmp_path), "dataset.columns.label='Diagnosis"], "not an override"),
        ([str(tmp_path), "dataset.label_separator=,"], "not an override"),
        ([str(tmp_path), "dataset.size=28,64"], "accepted: one value"),
    ):
        code, _, err = check(*arguments)
        assert code == 2
        (line,) = err.splitlines()
        assert says in line


def test_images_with_several_labels_are_counted_once(tmp_path: Path, check: Any) -> None:
    write_images(tmp_path, 20)
    write_csv(tmp_path, "image,edema,mass", [f"{row}.png,{row % 2},1" for row in range(20)])
    _, out, err = check(str(tmp_path), "dataset.columns.label=[edema,mass]", "dataset.size=16")
    assert not err
    rows = {line.split()[0]: line.split()[1] for line in out.splitlines() if line.startswith(("edema", "mass", "all"))}
    assert rows == {"edema": "10", "mass": "20", "all": "20"}


def test_the_area_under_the_curve_by_counting_pairs() -> None:
    generator = np.random.default_rng(0)
    values, positive = generator.integers(0, 5, 40).astype(float), generator.random(40) < 0.3
    pairs = [(one > other) + (one == other) / 2 for one in values[positive] for other in values[~positive]]
    assert area_under_curve(list(values), positive) == pytest.approx(np.mean(pairs))
    assert area_under_curve([1.0, 2.0], np.array([True, True])) is None


@pytest.mark.skipif(not KERMANY.is_dir(), reason="needs the chest radiographs")
def test_real_radiographs(check: Any) -> None:
    code, out, _ = check(str(KERMANY), "--json", "dataset.columns.aspect_ratio=aspect_ratio")
    found = json.loads(out)
    assert code == 0
    assert (found["images"], found["patients"]["count"], found["files"]["modes"]["RGB"]) == (5856, 3081, 283)
    assert (found["identical"]["groups"], found["identical"]["across_splits"]) == (27, 8)
    assert found["patients"]["images_across_splits"] == {"validation/train": 372, "test/train": 0, "test/validation": 0}
    assert found["refusal"] is None, "train and validation are dealt anew"
    assert any("aspect ratio (column) alone tells" in warning for warning in found["warnings"])
