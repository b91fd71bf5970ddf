"""CSVs as spreadsheets write them, folders as people sort them, and mistakes in one line without a cell of a row."""

from pathlib import Path
from typing import Any

import pytest

from medx.dataset.table import Columns, Table, read_table
from medx.schema import ConfigError, DataError, MedxError
from tests.dataset.own_images import folder_at, write_csv, write_images

ROWS = ["0.png,sick,P1,A", "1.png,well,P1,A", "2.png,sick,Müller,B"]
NAMES = {"image": "image", "label": "label", "patient": None, "hospital": None, "split": None, "aspect_ratio": None}


def read(folder: Path, csv: Path | None = None, **columns: Any) -> Table:
    return read_table(folder, csv, Columns(**(NAMES | columns)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path, 3)
    return tmp_path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_any_spreadsheets_csv(folder: Path, encoding: str, delimiter: str, end: str) -> None:
    lines = [delimiter.join(f" {cell} " for cell in row.split(",")) for row in ROWS]
    write_csv(
        folder, delimiter.join([" Image", "label ", "PATIENT", "hospital"]), [*lines, "", delimiter * 3], encoding, end
    )
    table = read(folder)
    assert [path.name for path in table.paths] == ["0.png", "1.png", "2.png"]
    assert table.labels == ["sick", "well", "sick"]
    assert table.patients == ["P1", "P1", "Müller"]
    assert table.hospitals == ["A", "A", "B"]
    assert table.splits is table.aspect_ratios is None


def test_columns_of_any_name_and_columns_that_are_not_wanted(folder: Path) -> None:
    write_csv(folder, "file,dx,patient,site,w/h", [f'{n}.png,"a, b",x,s,"1,5"' for n in range(3)])
    table = read(folder, image="file", label="dx", patient=False, hospital="site", aspect_ratio="w/h")
    assert table.labels == ["a, b"] * 3
    assert table.patients is None
    assert table.hospitals == ["s"] * 3
    assert table.aspect_ratios == [1.5] * 3


def test_images_are_found_by_path_or_by_a_name_that_is_there_once(tmp_path: Path) -> None:
    names = write_images(tmp_path, 4, "part{0}/deep/IMG_{0}.png".format)
    cells = [names[0], names[1].replace("/", "\\"), "IMG_2", "IMG_3.png", "none"]
    write_csv(tmp_path, "image,label", [f"{cell},{row}" for row, cell in enumerate(cells)])
    paths = read(tmp_path).paths
    assert paths[:4] == [tmp_path / name for name in names]
    assert not paths[4].exists(), "missing, which is counted when it is read"


@pytest.mark.parametrize(
    ("header", "rows", "columns", "says"),
    [
        ("image,diagnosis", ["0.png,a"], {}, "dataset.columns.label=label: this column is missing in"),
        ("image,label,label", ["0.png,a,b"], {}, "dataset.columns.label=label: this column is there several times"),
        ("image,label", ["0.png,a"], {"hospital": "site"}, "dataset.columns.hospital=site: this column is missing"),
        (
            "image,label",
            ["0.png,a", "1.png,", "2.png, "],
            {},
            "label: 2 of 3 rows have an empty cell, the first is line 3",
        ),
        ("image,label,patient", ["0.png,a,Secret", "1.png,b,"], {}, "patient: 1 of 2 rows have an empty cell"),
        ("image,label", ["0.png,a", "1.png,a", "0.png,b"], {}, "line 4 names the image of line 2 again"),
        ("image,label", ["0.png,a,Secret"], {}, "line 2 has 3 cells, the header 2"),
        (
            "image,label,split",
            ["0.png,a,Secret"],
            {},
            "split: 1 of 1 rows have no word for a split, the first is line 2",
        ),
        ("image,label,r", ["0.png,a,wide"], {"aspect_ratio": "r"}, "aspect_ratio: 1 of 1 rows have no ratio"),
        ("image,label,r", ["0.png,a,0"], {"aspect_ratio": "r"}, "accepted: 0.05 to 20"),
        ("image,label", [], {}, "no row below the header"),
        ("", [], {}, "no row below the header"),
    ],
)
def test_mistakes_are_one_line(folder: Path, header: str, rows: list[str], columns: Any, says: str) -> None:
    write_csv(folder, header, rows)
    with pytest.raises(MedxError) as refused:
        read(folder, **columns)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "Secret" not in str(refused.value)


def test_missing_places_are_one_line(tmp_path: Path) -> None:
    for call, says in (
        (lambda: read(tmp_path / "none"), "no such folder"),
        (lambda: read(tmp_path), "no labels.csv and no image in a folder"),
        (lambda: read(tmp_path, tmp_path / "none.csv"), "dataset.csv=.*none.csv: cannot be read"),
    ):
        with pytest.raises(DataError, match=says):
            call()


def test_one_folder_a_class_and_below_folders_of_splits(tmp_path: Path) -> None:
    write_images(tmp_path / "flat" / "sick", 2, "deep/{}.png".format)
    write_images(tmp_path / "flat" / "well", 3)
    (tmp_path / "flat" / "well" / "notes.txt").write_text("no image")
    (tmp_path / "flat" / "well" / ".hidden.png").write_text("no image")
    (tmp_path / "flat" / "well" / "CT000001").write_bytes(bytes(128) + b"DICM")
    write_images(tmp_path / "flat" / ".git", 1)
    table = read(tmp_path / "flat")
    assert table.labels == ["sick"] * 2 + ["well"] * 4
    assert table.splits is None
    for split, count in (("train", 3), ("val", 1), ("Test", 2)):
        for label in ("a", "b"):
            write_images(tmp_path / "split" / split / label, count)
    table = read(tmp_path / "split")
    assert sorted(zip(table.splits or [], table.labels, strict=True)) == sorted(
        (split, label)
        for split, count in (("train", 3), ("validation", 1), ("test", 2))
        for label in "ab"
        for _ in range(count)
    )


def test_columns_that_no_csv_has_and_folders_that_are_neither_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_images(tmp_path / "flat" / name, 2)
    (tmp_path / "flat" / "meta.csv").write_text("image,patient")
    for columns, says in (
        (
            {"patient": "mrn"},
            r"dataset\.columns\.patient=mrn: there is no labels\.csv .*dataset\.csv=FILE \(there is meta",
        ),
        ({"label": "Diagnosis"}, r"dataset\.columns\.label=Diagnosis: there is no labels\.csv"),
    ):
        with pytest.raises(ConfigError, match=says):
            folder_at(tmp_path / "flat", columns=columns).table()
    assert len(folder_at(tmp_path / "flat", columns={"patient": False}).table()) == 4
    for name in ("train", "extra"):
        write_images(tmp_path / "mixed" / name / "a", 2)
    with pytest.raises(DataError, match=r"some folders have names of splits \(train\) and some have not"):
        read(tmp_path / "mixed")
    write_images(tmp_path / "one" / "a", 2)
    with pytest.raises(DataError, match="images of one class, in folders of one name"):
        read(tmp_path / "one")


def test_a_name_that_is_there_twice_is_that_in_its_place_or_refused(folder: Path) -> None:
    write_images(folder, 1, "q{}.png".format)
    write_images(folder / "sub", 2, "q{}.png".format)
    write_images(folder / "other", 2, "q{}.png".format)
    write_csv(folder, "image,label", ["q0,a"])
    assert read(folder).paths == [folder / "q0.png"]
    write_csv(folder, "image,label", ["q1,a"])
    with pytest.raises(DataError, match="line 2 names an image that is there 2 times"):
        read(folder)


def test_groups_are_no_persons(folder: Path) -> None:
    write_images(folder, 2)
    write_csv(folder, "image,label,patient,mrn,sex", ["0.png,a,P1,7,f", "1.png,b,P2,8,m"])
    assert folder_at(folder, subgroups=["sex"]).table().subgroups == {"sex": ["f", "m"]}
    for columns, name in (({}, "patient"), ({"patient": "mrn"}, "mrn"), ({}, "image"), ({}, "Patient")):
        with pytest.raises(ConfigError, match=f"dataset.subgroups: {name} tells persons or images"):
            folder_at(folder, columns=columns, subgroups=[name]).table()


def test_a_csv_may_lie_in_the_folder(folder: Path) -> None:
    write_images(folder, 1)
    write_csv(folder, "image,label", ["0.png,a"]).rename(folder / "meta.csv")
    assert read(folder, Path("meta.csv")).labels == ["a"]


def test_labels_become_classes_in_their_order_or_in_the_one_that_is_given(folder: Path) -> None:
    def classes(labels: str, **changes: Any) -> tuple[list[int], tuple[str, ...]]:
        write_csv(folder, "image,label", [f"{row}.png,{label}" for row, label in enumerate(labels.split())])
        configured = folder_at(folder, **changes)
        codes, names = configured.labels_of(configured.table())
        return codes.tolist(), names

    assert classes("well sick well") == ([1, 0, 1], ("sick", "well"))
    assert classes("10 2 1") == ([2, 1, 0], ("1", "2", "10"))
    assert classes("nan 3 b 1 a") == ([4, 1, 3, 0, 2], ("1", "3", "a", "b", "nan"))
    assert classes("1 0 1", classes=[1, 0]) == ([0, 1, 0], ("1", "0"))
    assert classes("a b a", classes=["b", "a", "c"])[1] == ("b", "a", "c")
    for labels, changes, says in (
        ("a b c", {"classes": ["a", "b"]}, "1 of 3 labels are not in dataset.classes"),
        ("a b c", {"classes": ["a", "b", "a"]}, "dataset.classes has a name twice"),
        ("a a a", {}, "1 different labels in 3 rows; accepted: 2 to 200"),
        ("a b c", {"task": "binary"}, "dataset.task=binary with 3 classes"),
    ):
        with pytest.raises(DataError, match=says):
            classes(labels, **changes)
