"""The files below a folder that are images by their names, or by their first bytes."""

import os
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".dicom", ".ima")


def images_below(folder: Path) -> Iterator[Path]:
    """Every file with the ending of an image, and DICOM files without one, in order."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(place, name)
            if not name.startswith(".") and (path.suffix.lower() in SUFFIXES or (not path.suffix and _is_dicom(path))):
                yield path


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def files_by_name(folder: Path) -> dict[str, list[Path]]:
    """The files below a folder by their names, with and without their endings."""
    found: dict[str, list[Path]] = {}
    for path in images_below(folder):
        for name in {path.name, path.stem}:
            found.setdefault(name, []).append(path)
    return found
