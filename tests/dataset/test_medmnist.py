"""MedMNIST files: found in order, verified, never unpickled, and every bad one refused in one line."""

import hashlib
import os
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from medx.dataset import medmnist
from medx.dataset.base import DataSplits, Split, content_hash
from medx.dataset.medmnist import MedMNIST
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
    assert not list(tmp_path.rglob("*.npz")) + list(tmp_path.rglob("*.part"))


def test_a_download_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path)
    url = medmnist.medmnist_info()["breastmnist"]["url"]
    asked = []

    class Broken:
        def __init__(self, limit: int) -> None:
            self.file, self.limit = source.open("rb"), limit

        def __enter__(self) -> "Broken":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def read(self, _: int) -> bytes:
            if self.file.tell() >= self.limit:
                raise ConnectionResetError("gone")
            return self.file.read(1000)

    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: asked.append(url) or Broken(2000))
    assert "gone" in refusal(tmp_path / "cut", download=True)
    assert not list((tmp_path / "cut").iterdir())
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: asked.append(url) or Broken(10**9))
    load(tmp_path / "new", md5_of(source), download=True)
    assert [file.name for file in (tmp_path / "new").iterdir()] == [FILE]
    assert asked == [url, url]


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
        ("train_images", np.zeros((0, 28, 28), np.uint8), "train_images is uint8 [0, 28, 28]"),
    ],
)
def test_bad_arrays_are_refused_by_name(tmp_path: Path, array: str, value: np.ndarray | None, says: str) -> None:
    path = write(tmp_path, **{array: value})
    assert says in refusal(tmp_path, md5_of(path))


def test_unknown_names_sizes_and_checksums_are_refused(tmp_path: Path) -> None:
    for bad in ({"name": "chestmnist"}, {"size": 32}, {"md5": "123"}, {"name": "../secret"}):
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
