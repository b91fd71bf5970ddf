"""``dataset=folder`` end to end: what is read, left out, refused, dealt and kept."""

import csv
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medx.dataset import DataSplits, content_hash, decoded
from medx.dataset.checks import check_splits
from medx.dataset.folder import numbered
from medx.schema import ConfigError, DataError, MedxError
from tests.dataset.own_images import folder_at, picture, write_csv, write_images
from tests.program import TINY, call


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def hospital(folder: Path, count: int = 300, images_each: int = 3) -> Path:
    """Of every patient some images; the second and the third file of ten are a palette and 16 bits."""
    names = write_images(folder, count)
    for index, name in enumerate(names):
        if index % 10 == 1:
            Image.fromarray(picture(index)).convert("P").save(folder / name)
        if index % 10 == 2:
            Image.fromarray(picture(index, dtype=np.uint16)).save(folder / name)
    rows = [
        f"{name},{'ab'[index // images_each % 2]},p{index // images_each},h{index % 4}"
        for index, name in enumerate(names)
    ]
    write_csv(folder, "image,label,patient,hospital", rows)
    return folder


def parts_of(splits: DataSplits) -> dict[str, Any]:
    return {"train": splits.train, "validation": splits.validation, "test": splits.test}


def test_a_folder_of_300_with_every_trouble(tmp_path: Path, cache: Path) -> None:
    folder = hospital(tmp_path / "data")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:-200])
    (folder / "4.png").write_bytes(b"")
    (folder / "5.png").unlink()
    with pytest.raises(DataError) as refused:
        folder_at(folder, max_unreadable=0.009).load()
    assert re.search(
        r"dataset\.max_unreadable=0\.009: 3 of 300 files give no picture \(.*\), listed in ", str(refused.value)
    )
    assert not re.search(r"\d\.png", str(refused.value))
    splits = folder_at(folder).load()
    check_splits(splits)
    assert sum(map(len, parts_of(splits).values())) == 297
    assert splits.train.images.dtype == np.uint16
    listed = list(csv.DictReader((next(cache.rglob("unreadable.csv"))).open()))
    assert sorted((Path(row["file"]).name, row["reason"]) for row in listed) == [
        ("3.png", "truncated or damaged (OSError)"),
        ("4.png", "empty"),
        ("5.png", "missing"),
    ]
    assert next(cache.rglob("unreadable.csv")).parent.stat().st_mode & 0o077 == 0, "for its owner's eyes"


def test_no_patient_is_on_two_sides_and_every_class_on_each(tmp_path: Path) -> None:
    splits = folder_at(hospital(tmp_path / "data"), validation_fraction=0.2).load()
    patients = {name: set(part.patients) for name, part in parts_of(splits).items()}
    assert not patients["train"] & patients["test"]
    assert not patients["train"] & patients["validation"]
    assert not patients["validation"] & patients["test"]
    assert [len(patients[name]) for name in ("train", "validation", "test")] == [60, 20, 20]
    assert all(np.bincount(part.labels, minlength=2).all() for part in parts_of(splits).values())
    again, other = (folder_at(tmp_path / "data", validation_fraction=0.2, seed=seed).load() for seed in (0, 1))
    assert again.content_hash == splits.content_hash != other.content_hash
    assert set(splits.train.hospitals) == {0, 1, 2, 3}


def test_rows_keep_their_images_labels_and_patients(tmp_path: Path) -> None:
    folder = hospital(tmp_path / "data", 60)
    splits = folder_at(folder, size=20, fit="stretch").load()
    to_row = {}
    for index in range(60):
        if index % 10 not in (1, 2):
            small = np.asarray(
                Image.fromarray(picture(index).astype(np.float32)).resize((20, 20), Image.Resampling.BILINEAR)
            )
            to_row[index] = small
    found = 0
    for part in parts_of(splits).values():
        for image, label, patient in zip(part.images, part.labels, part.patients, strict=True):
            distances = {index: np.abs(image[..., 0] / 257 - small).mean() for index, small in to_row.items()}
            index = min(distances, key=distances.get)
            if distances[index] < 1:
                found += 1
                assert label == index // 3 % 2
                assert sorted({f"p{n // 3}" for n in range(60)})[patient] == f"p{index // 3}"
    assert found == len(to_row)


def test_folds_are_of_whole_patients_and_leave_test_alone(tmp_path: Path) -> None:
    folder = hospital(tmp_path / "data", 90)
    plain, folds = folder_at(folder).load(), [folder_at(folder, fold=(part, 3)).load() for part in range(3)]
    for dealt in folds:
        assert not np.isin(dealt.validation.patients, dealt.train.patients).any()
        assert content_hash(dealt.test) == content_hash(plain.test)
        assert set(dealt.validation.labels) == set(dealt.train.labels) == {0, 1}
    together = np.concatenate([np.unique(dealt.validation.patients) for dealt in folds])
    both = np.concatenate([plain.train.patients, plain.validation.patients])
    assert sorted(together) == sorted(set(both)), "every patient in the validation part of one fold"
    with pytest.raises(DataError, match=r"dataset.fold=\[0, 999\]: accepted: at most \d+ parts, one a patient"):
        folder_at(folder, fold=(0, 999)).load()


def test_the_split_column_is_kept_and_what_it_lacks_is_dealt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = write_images(tmp_path, 60)

    def load(word: Any, **changes: Any) -> DataSplits:
        write_csv(
            tmp_path,
            "image,label,patient,split",
            [f"{n},{'ab'[i % 2]},p{i // 2},{word(i)}" for i, n in enumerate(names)],
        )
        return folder_at(tmp_path, **changes).load()

    whole = load(lambda index: ("train", "val", "TEST")[0 if index < 40 else 1 if index < 50 else 2])
    assert [len(part) for part in parts_of(whole).values()] == [40, 10, 10]
    lacking = load(lambda index: "train" if index < 40 else "test")
    assert [len(part) for part in parts_of(lacking).values()] == [36, 4, 20]
    assert not set(lacking.train.patients) & set(lacking.validation.patients)

    def leaking(index: int) -> str:
        return ("train", "val", "test")[0 if index < 41 else 1 if index < 51 else 2]

    with pytest.raises(
        DataError, match=r"1 validation images of patients who are in train, 1 test images of .* in valid"
    ):
        load(leaking, shared_patients="refuse")
    with pytest.raises(DataError, match=r"1 validation images .*, 1 test images of patients who are in validation, so"):
        load(leaking)
    between = load(lambda index: ("train", "val", "test")[0 if index < 41 else 1 if index < 50 else 2])
    assert len(between.test) == 10
    assert not set(between.train.patients) & set(between.validation.patients)
    assert "1 of 9 validation images are of patients who are in train; both are dealt anew" in caplog.text
    assert len(load(leaking, shared_patients="accept").train) == 41
    assert len(load(leaking, columns={"split": False}).train) != 41


def test_test_images_that_are_in_train_too_are_refused(tmp_path: Path) -> None:
    names = write_images(tmp_path, 60)
    for index in range(0, 8):
        Image.fromarray(picture(index)).save(tmp_path / names[50 + index])
    words = ["train"] * 40 + ["val"] * 10 + ["test"] * 10
    write_csv(tmp_path, "image,label,split", [f"{n},{'ab'[i % 2]},{words[i]}" for i, n in enumerate(names)])
    with pytest.raises(DataError, match="8 of 10 test images are in train too"):
        check_splits(folder_at(tmp_path).load())
    check_splits(folder_at(tmp_path, shared_patients="accept").load())


def test_decoded_once_and_anew_where_anything_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hospital(tmp_path / "data", 60)
    read: list[int] = []
    original = decoded.read_picture
    monkeypatch.setattr(decoded, "read_picture", lambda *given: read.append(1) or original(*given))

    def decodes(**changes: Any) -> int:
        read.clear()
        folder_at(folder, **changes).load()
        return len(read)

    assert decodes() == 60
    assert decodes() == 0
    assert all(decodes(**change) for change in ({"size": 17}, {"fit": "pad"}, {"colour": "rgb"}, {"window": [9, 9]}))
    assert decodes() == 0
    Image.fromarray(picture(1000)).save(folder / "0.png")
    assert decodes() == 60
    for path in (tmp_path / "cache" / "pictures").rglob("pixels"):
        path.write_bytes(path.read_bytes()[:-1])  # a damaged entry is made again
    assert decodes() == 60
    os.rename(folder, tmp_path / "moved")
    read.clear()
    folder_at(tmp_path / "moved").load()
    assert not read, "an entry is known by what it was made from, not by where that lay"


def test_colour_is_what_most_files_have(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 10, shape=(20, 20, 3))
    write_images(tmp_path / "b", 9)
    assert folder_at(tmp_path).load().train.images.shape[1:] == (16, 16, 3)
    assert folder_at(tmp_path, colour="grey").load().spec.num_channels == 1
    write_images(tmp_path / "b", 10)
    assert folder_at(tmp_path).load().spec.num_channels == 1


def test_dicom_without_its_packages_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for label in "ab":
        write_images(tmp_path / "data" / label, 5)
    (tmp_path / "data" / "a" / "scan.dcm").write_bytes(bytes(128) + b"DICM")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    monkeypatch.delitem(sys.modules, "medx.dataset.dicom", raising=False)
    monkeypatch.delattr("medx.dataset.dicom", raising=False)
    with pytest.raises(ConfigError, match=r"DICOM files need the extra dicom: pip install 'medx\[dicom\]'"):
        folder_at(tmp_path / "data").load()


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "data" / "a", 5)
    write_images(tmp_path / "data" / "b", 5)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MEDX_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cache=.*: Not a directory; accepted: a folder that can be written"):
        folder_at(tmp_path / "data").load()


def test_mistakes_in_the_configuration_name_the_key(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 20)
    write_images(tmp_path / "b", 20)
    for change, says in (
        ({"path": None}, "dataset.path=None"),
        ({"fit": "zoom"}, "dataset.fit='zoom'"),
        ({"size": 8}, "dataset.size=8"),
        ({"fit": "medmnist", "colour": "rgb"}, "dataset.colour=rgb"),
        ({"validation_fraction": 0.8, "test_fraction": 0.2}, "dataset.test_fraction=0.2"),
        ({"window": [1]}, "dataset.window"),
        ({"window": [1, 0]}, "dataset.window"),
        ({"shared_patients": "maybe"}, "dataset.shared_patients='maybe'"),
    ):
        with pytest.raises(MedxError) as refused:
            folder_at(tmp_path, **change).load()
        assert says in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_run_on_own_images_tells_nobody_of_them(tmp_path: Path) -> None:
    folder = hospital(tmp_path / "Jane_Doe", 120)
    (folder / "4.png").write_bytes(b"")
    base = tuple(part for part in TINY if not part.startswith("dataset"))
    given = ("dataset=folder", f"dataset.path={folder}", "dataset.size=16", "tracking=none")
    ran = call(tmp_path / "run", *given, base=base)
    assert ran.code == 0, ran.err
    assert "1 of 120 files give no picture (1 empty) and are left out" in ran.out + ran.err
    assert ran.result.dataset.class_names == ["a", "b"]
    assert not ran.result.dataset.public
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"4.png" not in content, path
            assert not re.search(rb"\bp\d+\b", content) or path.suffix != ".json", path
    assert "Jane_Doe" not in (tmp_path / "run" / "released.json").read_text()
    refused = call(tmp_path / "refused", *given, "dataset.max_unreadable=0", base=base)
    assert "dataset.max_unreadable=0: 1 of 120 files" in refused.refusal


def test_a_name_has_the_place_of_its_number() -> None:
    names = ["b", "10", "a", "9", "B", "\u00e9", "b", "a b", "e"]
    assert [sorted(set(names))[number] for number in numbered(names)] == names


def test_the_hospitals_of_the_data_are_the_clients(tmp_path: Path) -> None:
    folder = hospital(tmp_path / "data", 160, images_each=1)
    base = tuple(part for part in TINY if not part.startswith(("dataset", "federation.num_clients")))
    given = ("dataset=folder", f"dataset.path={folder}", "dataset.size=16", "partition=site", "privacy=none")
    ran = call(tmp_path / "run", *given, "federation.num_rounds=1", base=base)
    assert ran.code == 0, ran.err
    splits = folder_at(folder).load()
    assert [client.num_records for client in ran.result.clients] == np.bincount(splits.train.hospitals).tolist()
    assert ran.result.config["federation"]["num_clients"] == 4
    named = [client.name for client in ran.result.clients]
    assert named == list(splits.hospital_names) == sorted(set(folder_at(folder).table().hospitals))
    again = call(tmp_path / "again", f"resume={tmp_path / 'run'}", base=())
    assert again.code == 0, again.err
    told = call(tmp_path / "phantom", "partition=site")
    assert "partition=site: the data set has no hospitals" in told.refusal
    hospital(tmp_path / "data", 160)  # every patient at three of them
    told = call(tmp_path / "shared", *given, base=base)
    assert "partition.shared_patients=refuse" in told.refusal
