"""Folders of images for the tests, and the component that reads them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from medx.configuration import build
from medx.dataset.folder import Folder
from medx.schema import CONF

DEFAULTS = yaml.safe_load((CONF / "dataset" / "folder.yaml").read_text())


def folder_at(path: Path, /, **changes: Any) -> Folder:
    """The component with the yaml's values but for ``changes``; ``columns`` only need what differs."""
    columns = DEFAULTS["columns"] | changes.pop("columns", {})
    built: Folder = build(
        {"dataset": DEFAULTS | {"size": 16, "path": str(path), "columns": columns} | changes}, "dataset"
    )
    return built


def picture(seed: int, shape: tuple[int, ...] = (24, 20), dtype: Any = np.uint8) -> np.ndarray:
    """Noise, so that no two are alike."""
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def write_images(folder: Path, count: int, name: Callable[[int], str] = "{}.png".format, **options: Any) -> list[str]:
    """So many PNG files; gives their names."""
    names = [name(index) for index in range(count)]
    for index, each in enumerate(names):
        (folder / each).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(index, **options)).save(folder / each)
    return names


def write_csv(folder: Path, header: str, rows: list[str], encoding: str = "utf-8", end: str = "\n") -> Path:
    """``labels.csv`` of these lines."""
    path = folder / "labels.csv"
    path.write_bytes(end.join([header, *rows, ""]).encode(encoding))
    return path
