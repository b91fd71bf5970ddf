"""MedMNIST files: found in order, verified, never unpickled, and every bad one refused in one line."""

import hashlib
import os
import re
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from medx.dataset import DataSplits, Split, content_hash, medmnist
from medx.dataset.medmnist import MedMNIST
from medx.dataset.phantom import Phantom
from medx.schema import DataError

FILE = "breastmnist.npz"  # binary, one channel
SIZES = {"train": 12, "val": 5, "test": 6}


def arrays() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    made: dict[str, Any] = {}
    for split, rows in SIZES.items():
        made[f"{split}_images"] = generator.integers(0, 256, (rows, 28, 28), dtype=np.uint8)
        made[f"{split}_labels"] = generator.integers(0, 2, (rows, 1), dtype=np.uint8)
    return made


def write(folder: Path, **changes: Any) -> Path:
    content = {key: value for key, value in (arrays() | changes).items() if value is not None}
    np.savez_compressed(folder / FILE, **content)
    return folder / FILE


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def load(folder: Path, md5: str | None = None, **changes: Any) -> DataSplits:
    fields = {"name": "breastmnist", "size": 28, "md5": md5, "download": False, "root": str(folder)}
    return MedMNIST(**(fields | changes)).load()


def refusal(folder: Path, md5: str | None = None, **changes: Any) -> str:
    with pytest.raises(DataError) as refused:
        load(folder, md5, **changes)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No home, no data folder, no network."""

    def no_network(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    medmnist.medmnist_info()
    monkeypatch.delenv("MEDX_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setattr(urllib.request, "urlopen", no_network)


def test_a_verified_file_loads(tmp_path: Path) -> None:
    path = write(tmp_path)
    splits = load(tmp_path, md5_of(path).upper())
    assert splits.md5 == md5_of(path)
    assert not splits.public, "only the published file itself is everybody's"
    assert (splits.task, splits.title, splits.synthetic) == ("binary", "BreastMNIST", False)
    assert splits.class_names == ("malignant", "normal, benign")
    assert (splits.mean, splits.std) == ((0.5,), (0.5,))
    for split, rows in zip((splits.train, splits.validation, splits.test), SIZES.values(), strict=True):
        assert split.images.shape == (rows, 28, 28, 1)
        assert split.labels.shape == (rows,)
        assert split.labels.dtype == np.int64
    np.testing.assert_array_equal(splits.validation.images[..., 0], arrays()["val_images"])
    np.testing.assert_array_equal(splits.test.labels, arrays()["test_labels"][:, 0])


def test_folders_are_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, named, root = Path.home() / ".medmnist", tmp_path / "named", tmp_path / "root"
    for folder, fill in ((home, 1), (named, 2), (root, 3)):
        folder.mkdir()
        write(folder, train_images=np.full((12, 28, 28), fill, np.uint8))
    sums = [md5_of(folder / FILE) for folder in (home, named, root)]
    assert load(root, sums[2]).train.images[0, 0, 0, 0] == 3
    assert load(root, sums[0], root=None).train.images[0, 0, 0, 0] == 1
    monkeypatch.setenv("MEDX_DATA", str(named))
    assert load(root, sums[1], root=None).train.images[0, 0, 0, 0] == 2


@pytest.mark.parametrize("download", [True, False])
def test_missing_file_says_where_it_may_be_put(tmp_path: Path, download: bool) -> None:
    message = refusal(tmp_path / "none", download=download)
    assert str(tmp_path / "none") in message
    assert FILE in message
    assert "dataset=phantom" in message
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


class Answer:
    """A server that sends ``limit`` bytes of a file and then closes the connection, or breaks it."""

    def __init__(self, source: Path, limit: int, announced: bool, breaks: bool) -> None:
        self.left = source.read_bytes()[:limit]
        self.length = source.stat().st_size - len(self.left) if announced else None
        self.breaks = breaks

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, _: int) -> bytes:
        block, self.left = self.left[:1000], self.left[1000:]
        if not block and self.breaks:
            raise ConnectionResetError("gone")
        return block


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ({"limit": 2000, "announced": True, "breaks": True}, "gone"),
        ({"limit": 2000, "announced": True, "breaks": False}, "are missing"),
        ({"limit": 2000, "announced": False, "breaks": False}, "expected"),
        ({"limit": 10**9, "announced": True, "breaks": False}, ""),
    ],
)
def test_a_download_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: dict[str, Any], says: str
) -> None:
    source = write(tmp_path)
    url = medmnist.medmnist_info()["breastmnist"]["url"]
    asked = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: asked.append(url) or Answer(source, **sent))
    folder = tmp_path / "new"
    if says:
        for _ in range(2):  # what is left of one attempt must not mislead the next
            assert says in refusal(folder, md5_of(source), download=True)
            assert not list(folder.iterdir())
        assert asked == [url, url]
    else:
        load(folder, md5_of(source), download=True)
        assert [file.name for file in folder.iterdir()] == [FILE]


def test_what_cannot_be_read_says_so_and_never_to_delete_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    md5 = md5_of(write(tmp_path))
    (tmp_path / "folder" / FILE).mkdir(parents=True)
    for download in (True, False):
        assert f"{FILE}: is not a file" in refusal(tmp_path / "folder", md5, download=download)
        assert "File name too long" in refusal(tmp_path / ("a" * 300), md5, download=download)
        assert "dataset=phantom" in refusal(tmp_path / FILE / "below", md5, download=download)

    def forbidden(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", forbidden)
    message = refusal(tmp_path, md5)
    assert "Permission denied" in message
    assert not re.search("remove|delete|truncated|damaged", message)


def test_data_beyond_memory_are_refused_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    md5 = md5_of(write(tmp_path))
    needed = 9 * sum(SIZES.values()) * 28 * 28
    monkeypatch.setattr("medx.dataset.available_memory", lambda: 2 * needed)
    load(tmp_path, md5)
    monkeypatch.setattr("medx.dataset.available_memory", lambda: needed)  # the labels do not fit beside the images
    message = refusal(tmp_path, md5)
    assert "dataset=breastmnist" in message
    assert re.search(r"needs about 0\.00016\d GB of memory, 0\.000162 GB are available", message), message
    drawn = {"kind": "fundus", "size": 512, "num_train": 10**7, "num_validation": 1, "num_test": 1, "seed": 0}
    with pytest.raises(DataError, match=r"10000002 images at dataset\.size=512: needs about 7\.08e\+04 GB"):
        Phantom(**drawn).load()


def test_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole = path.read_bytes()
    for content in (whole[:-30], whole[: len(whole) // 2], b"", b"<html>not found</html>"):
        path.write_bytes(content)
        assert FILE in refusal(tmp_path, md5_of(path))
        assert path.read_bytes() == content


def test_damage_inside_an_accepted_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    content = bytearray(path.read_bytes())
    content[500:520] = bytes(20)
    path.write_bytes(content)
    assert "train_images" in refusal(tmp_path, md5_of(path))


def test_wrong_checksum_keeps_the_file_and_says_how_to_accept_it(tmp_path: Path) -> None:
    path = write(tmp_path)
    before = path.read_bytes()
    message = refusal(tmp_path)
    assert medmnist.medmnist_info()["breastmnist"]["MD5"] in message
    assert message.endswith(f"dataset.md5={md5_of(path)}")
    assert path.read_bytes() == before
    load(tmp_path, md5_of(path))


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.folder,)


def test_pickled_arrays_are_never_loaded(tmp_path: Path) -> None:
    bomb = np.empty(1, dtype=object)
    bomb[0] = Bomb(str(tmp_path / "exploded"))
    path = write(tmp_path, train_labels=bomb)
    message = refusal(tmp_path, md5_of(path))
    assert "train_labels" in message
    assert "pickle" in message
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("array", "value", "says"),
    [
        ("val_images", None, "val_images is missing"),
        ("test_labels", None, "test_labels is missing"),
        ("train_labels", np.array([[0]] * 7 + [[2]] + [[0]] * 3 + [[9]]), "train_labels row 7 is 2, expected 0 to 1"),
        ("train_labels", np.array([[0]] * 3 + [[-1]] + [[1]] * 8), "train_labels row 3 is -1, expected 0 to 1"),
        ("val_labels", np.zeros((4, 1), np.uint8), "val_labels is uint8 [4, 1], expected integers [5, 1]"),
        ("val_labels", np.zeros((5, 2), np.uint8), "val_labels is uint8 [5, 2]"),
        ("val_labels", np.full((5, 1), np.nan), "val_labels is float64"),
        ("test_images", np.zeros((6, 28, 28)), "test_images is float64"),
        ("test_images", np.zeros((6, 28, 28, 3), np.uint8), "test_images is uint8 [6, 28, 28, 3], expected uint8"),
        ("test_images", np.zeros((6, 64, 64), np.uint8), "test_images is uint8 [6, 64, 64]"),
        ("train_images", np.zeros((0, 28, 28), np.uint8), "[0, 28, 28], expected uint8 [rows, 28, 28], 1 row or more"),
        ("train_images", np.zeros((12, 28, 28), np.uint16), "train_images is uint16"),
        ("train_images", np.zeros((12, 28, 28, 1), np.uint8), "train_images is uint8 [12, 28, 28, 1]"),
        ("train_images", np.zeros((12, 1, 28, 28), np.uint8), "train_images is uint8 [12, 1, 28, 28]"),
        ("val_labels", np.eye(2, dtype=np.uint8)[[0, 1, 0, 1, 0]], "expected integers [5, 1]"),
        ("val_labels", np.array([["a"]] * 5), "val_labels is <U1"),
        ("val_labels", np.ones((5, 1), bool), "val_labels is bool"),
    ],
)
def test_bad_arrays_are_refused_by_name(tmp_path: Path, array: str, value: np.ndarray | None, says: str) -> None:
    path = write(tmp_path, **{array: value})
    assert says in refusal(tmp_path, md5_of(path))


@pytest.mark.parametrize(
    "change",
    [
        lambda key, value: np.asfortranarray(value),
        lambda key, value: value.astype(">i8" if "labels" in key else value.dtype),
        lambda key, value: value.astype(np.uint64) if "labels" in key else value,
        lambda key, value: value[:, 0] if "labels" in key else value,
    ],
)
def test_other_layouts_of_the_same_rows_are_the_same_data(tmp_path: Path, change: Any) -> None:
    plain = load(tmp_path, md5_of(write(tmp_path)))
    other = load(tmp_path, md5_of(write(tmp_path, **{key: change(key, value) for key, value in arrays().items()})))
    assert other.content_hash == plain.content_hash
    assert torch.equal(other.to_tensor(other.train.images), plain.to_tensor(plain.train.images))


def test_unknown_names_sizes_and_checksums_are_refused(tmp_path: Path) -> None:
    for bad in ({"name": "nodulemnist3d"}, {"size": 32}, {"md5": "123"}, {"name": "../secret"}):
        with pytest.raises(ValidationError):
            load(tmp_path, **bad)


def test_content_hash_ignores_order_and_nothing_else() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(50) % 3
    order = np.random.default_rng(1).permutation(50)
    whole = content_hash(Split(images, labels))
    assert content_hash(Split(images[order], labels[order])) == whole
    assert content_hash(Split(images[order], labels)) != whole
    assert content_hash(Split(images[:25], labels[:25]), Split(images[25:], labels[25:])) != whole
    assert content_hash(Split(images[:-1], labels[:-1])) != whole
