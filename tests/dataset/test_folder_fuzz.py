"""Whatever bytes lie in a folder: it loads, or is refused in one line."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medx.dataset.checks import check_splits
from medx.dataset.pictures import Reading, UnreadableError, quiet, read_header, read_picture
from medx.schema import MedxError
from tests.dataset.own_images import folder_at, picture, write_images

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")
SETTINGS = {"deadline": None, "database": None, "derandomize": True}
KINDS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")


def start(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(0)).save(file, kind)
    return file.getvalue()


WHOLE = [start(kind) for kind in KINDS]
EDITS = st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=8)), max_size=6)


def damaged(content: bytes, edits: list[tuple[int, bytes]], cut: int) -> bytes:
    changed = bytearray(content)
    for at, new in edits:
        place = at % max(1, len(changed))
        changed[place : place + len(new)] = new
    return bytes(changed[: max(0, len(changed) - cut)])


def read_or_refused(content: bytes) -> None:
    for reading in (Reading(), Reading(window=(100.0, 50.0), frame=1)):
        with quiet():
            try:
                read_header(content)
                pixels = read_picture(content, reading).pixels
            except UnreadableError as reason:
                assert str(reason)  # noqa: PT017
                assert "\n" not in str(reason)  # noqa: PT017
            else:
                assert pixels.dtype in (np.uint8, np.uint16)
                assert pixels.ndim == 2 or pixels.shape[2:] == (3,)


@hypothesis.settings(max_examples=300, **SETTINGS)
@hypothesis.given(st.sampled_from(WHOLE), EDITS, st.integers(0, 300))
def test_damaged_images(whole: bytes, edits: list[tuple[int, bytes]], cut: int) -> None:
    read_or_refused(damaged(whole, edits, cut))


@hypothesis.settings(max_examples=100, **SETTINGS)
@hypothesis.given(st.binary(max_size=300))
def test_any_bytes(content: bytes) -> None:
    read_or_refused(content)


@hypothesis.settings(max_examples=300, **SETTINGS)
@hypothesis.given(st.integers(0, 5), EDITS, st.integers(0, 300))
def test_damaged_dicom_headers(which: int, edits: list[tuple[int, bytes]], cut: int) -> None:
    pytest.importorskip("pydicom")
    pytest.importorskip("openjpeg")
    from tests.dataset.test_dicom import FILES

    small = [path for path in FILES.values() if path.stat().st_size < 20_000]
    content = small[which * len(small) // 6].read_bytes()
    read_or_refused(damaged(content, [(place % 2000, new) for place, new in edits], cut))


CELL = st.one_of(
    st.sampled_from(["0.png", "1.png", "a", "b", "train", "val", "test", "", '"', "\0", "é"]), st.text(max_size=5)
)
LINES = st.lists(st.lists(CELL, max_size=5), max_size=8)


@hypothesis.settings(
    max_examples=150, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], **SETTINGS
)
@hypothesis.given(
    LINES, st.sampled_from([",", ";", "\t"]), st.sampled_from(["utf-8", "utf-16", "utf-8-sig"]), st.binary(max_size=4)
)
def test_any_csv(tmp_path: Path, lines: list[list[str]], delimiter: str, encoding: str, tail: bytes) -> None:
    folder = tmp_path / "data"
    if not folder.exists():
        write_images(folder, 12)
    header = delimiter.join(["image", "label", "split", "patient"])
    usual = [delimiter.join([f"{row}.png", "ab"[row % 2], "", f"p{row}"]) for row in range(2, 12)]
    text = "\n".join([header, *usual, *(delimiter.join(cells) for cells in lines)])
    (folder / "labels.csv").write_bytes(text.encode(encoding, errors="replace") + tail)
    for columns in ({}, {"split": False}, {"split": False, "patient": False}):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MEDX_CACHE", str(tmp_path / "cache"))
            try:
                check_splits(folder_at(folder, columns=columns, max_unreadable=0.5).load())
            except MedxError as refused:
                assert "\n" not in str(refused)  # noqa: PT017
