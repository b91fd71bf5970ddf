"""Every kind of file against an independent reading of it, and every fit against an independent one."""

import io
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medx.dataset.fitting import Target, fitted, in_depth
from medx.dataset.pictures import Reading, UnreadableError, quiet, read_header, read_picture

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
RGB = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (20, 30), dtype=np.uint16)
ALPHA = RNG.integers(0, 256, (20, 30), dtype=np.uint8)


@pytest.fixture(autouse=True)
def reading_is_quiet() -> Iterator[None]:
    with quiet():
        yield


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(content: bytes, **reading: Any) -> np.ndarray:
    return read_picture(content, Reading(**reading)).pixels


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("BMP", {}), ("WEBP", {"lossless": True})],
)
def test_lossless_formats_give_the_very_pixels(kind: str, options: dict[str, Any]) -> None:
    for expected in (GREY, RGB):
        read = pixels(saved(Image.fromarray(expected), kind, **options))
        if kind == "WEBP" and expected is GREY:  # which has colours only
            read = read[..., 0]
        np.testing.assert_array_equal(read, expected)
        assert read.dtype == np.uint8


def test_jpeg_is_what_pillow_makes_of_it() -> None:
    for image in (Image.fromarray(GREY), Image.fromarray(RGB), Image.fromarray(RGB).convert("CMYK")):
        content = saved(image, "JPEG", quality=95)
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("L" if image.mode == "L" else "RGB"))
        np.testing.assert_array_equal(pixels(content), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_keep_their_range(kind: str) -> None:
    content = saved(Image.fromarray(DEEP), kind)
    picture = read_picture(content, Reading())
    np.testing.assert_array_equal(picture.pixels, DEEP)
    assert picture.bits == 16
    assert read_header(content).deep
    twelve = DEEP >> 4  # 12 bits in 16: a window brings them to the whole range
    read = pixels(saved(Image.fromarray(twelve), kind), window=(2048, 4096))
    np.testing.assert_allclose(read, twelve / 4095 * 65535, atol=0.5)


def test_big_endian_tiff_of_16_bits() -> None:
    header = b"MM\x00*\x00\x00\x00\x08"
    tags = [
        (256, 3, 30),
        (257, 3, 20),
        (258, 3, 16),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 256),
        (278, 3, 20),
        (279, 4, 1200),
    ]
    entries = b"".join(
        tag.to_bytes(2, "big")
        + kind.to_bytes(2, "big")
        + (1).to_bytes(4, "big")
        + (value.to_bytes(2, "big") + b"\0\0" if kind == 3 else value.to_bytes(4, "big"))
        for tag, kind, value in tags
    )
    content = (header + len(tags).to_bytes(2, "big") + entries + bytes(4)).ljust(256, b"\0") + DEEP.astype(
        ">u2"
    ).tobytes()
    np.testing.assert_array_equal(pixels(content), DEEP)


def test_of_colours_with_16_bits_the_upper_8_are_read() -> None:
    colours = RNG.integers(0, 65536, (20, 30, 3), dtype=np.uint16)

    def chunk(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    header = (30).to_bytes(4, "big") + (20).to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_allclose(pixels(content), colours / 257, atol=1)


def test_what_is_transparent_is_black() -> None:
    share = ALPHA[..., None] / 255
    read = pixels(saved(Image.fromarray(np.dstack([RGB, ALPHA])), "PNG"))
    np.testing.assert_allclose(read, RGB * share, atol=1)
    read = pixels(saved(Image.fromarray(np.dstack([GREY, ALPHA]), "LA"), "PNG"))
    np.testing.assert_allclose(read, GREY * share[..., 0], atol=1)
    assert read.ndim == 2


def test_palettes_are_looked_up() -> None:
    colours = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(GREY)
    image.putpalette(colours.tobytes())
    for kind in ("PNG", "TIFF", "BMP"):
        content = saved(image, kind)
        np.testing.assert_array_equal(pixels(content), colours[GREY])
        assert read_header(content).colour
    image.putpalette(np.repeat(colours[:, :1], 3, axis=1).tobytes())  # of greys only: grey
    np.testing.assert_array_equal(pixels(saved(image, "PNG")), colours[GREY, 0])
    assert not read_header(saved(image, "PNG")).colour
    bits = Image.fromarray(GREY > 127)
    np.testing.assert_array_equal(pixels(saved(bits, "PNG")), (GREY > 127) * np.uint8(255))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_photograph_is_honoured(orientation: int) -> None:
    turned = {
        1: GREY,
        2: GREY[:, ::-1],
        3: GREY[::-1, ::-1],
        4: GREY[::-1],
        5: GREY.T,
        6: GREY.T[:, ::-1],
        7: GREY.T[::-1, ::-1],
        8: GREY.T[::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(pixels(saved(Image.fromarray(GREY), "PNG", exif=exif)), turned)


def test_a_frame_is_chosen_or_the_file_is_refused() -> None:
    second = Image.fromarray(255 - GREY)
    content = saved(Image.fromarray(GREY), "TIFF", save_all=True, append_images=[second])
    for bad in ({}, {"frame": 2}):
        with pytest.raises(UnreadableError, match=r"2 frames \(dataset\.frame chooses one"):
            pixels(content, **bad)
    np.testing.assert_array_equal(pixels(content, frame=1), 255 - GREY)
    np.testing.assert_array_equal(pixels(saved(second, "PNG"), frame=1), 255 - GREY)


def test_what_is_no_picture_says_why_and_nothing_else() -> None:
    whole = saved(Image.fromarray(RGB), "PNG")
    floats = saved(Image.fromarray(DEEP.astype(np.float32)), "TIFF")
    for content, reason in (
        (b"", "empty"),
        (b"secret name", "no image of a known format"),
        (saved(Image.fromarray(GREY), "GIF"), "no image of a known format"),
        (whole[:-400], "truncated or damaged"),
        (floats, "values of 32 bits"),
    ):
        with pytest.raises(UnreadableError, match=reason) as refused:
            pixels(content)
        assert "secret" not in str(refused.value)
    np.testing.assert_allclose(pixels(floats, window=(32768, 65536)), DEEP, atol=0.5)


def test_a_small_file_may_not_claim_a_huge_picture() -> None:
    whole = bytearray(saved(Image.fromarray(GREY), "BMP"))
    whole[18:26] = (60000).to_bytes(4, "little") * 2
    with pytest.raises(UnreadableError, match="million pixels"):
        pixels(bytes(whole))


def smooth(height: int, width: int, channels: int) -> np.ndarray:
    """A picture of slow waves, which hardly depends on how it is scaled."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin(6 * x / width + index) * np.cos(5 * y / height) for index in range(channels)]
    return np.stack(waves, axis=-1).round().astype(np.uint8)


def area(box: tuple[float, float, float, float], picture: np.ndarray, size: int) -> np.ndarray:
    """The waves' values at the centres of a grid over the box, by bilinear interpolation, written out."""
    left, top, right, bottom = box
    xs = left + (np.arange(size) + 0.5) * (right - left) / size - 0.5
    ys = top + (np.arange(size) + 0.5) * (bottom - top) / size - 0.5
    xs, ys = xs.clip(0, picture.shape[1] - 1), ys.clip(0, picture.shape[0] - 1)
    x0, y0 = np.floor(xs).astype(int), np.floor(ys).astype(int)
    x1, y1 = np.minimum(x0 + 1, picture.shape[1] - 1), np.minimum(y0 + 1, picture.shape[0] - 1)
    fx, fy = (xs - x0)[None, :, None], (ys - y0)[:, None, None]
    value = picture.astype(float)
    upper = value[y0][:, x0] * (1 - fx) + value[y0][:, x1] * fx
    return upper * (1 - fy) + (value[y1][:, x0] * (1 - fx) + value[y1][:, x1] * fx) * fy


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_fits_against_sampling_by_hand(depth: type, channels: int) -> None:
    picture = smooth(90, 150, channels)
    given = in_depth(picture[..., 0] if channels == 1 else picture, np.dtype(depth))
    white = np.iinfo(depth).max / 255

    def fit(kind: Any, ratio: float | None = None) -> np.ndarray:
        made = fitted(given, Target(30, kind, channels, np.dtype(depth)), ratio)
        assert made.shape == (30, 30, channels)
        assert made.dtype == depth
        return made / white

    np.testing.assert_allclose(fit("stretch"), area((0, 0, 150, 90), picture, 30), atol=4)
    np.testing.assert_allclose(fit("crop"), area((30, 0, 120, 90), picture, 30), atol=3)
    padded = fit("pad")
    assert not padded[:6].any()
    assert not padded[24:].any()
    np.testing.assert_allclose(padded[6:24, :], fit_rows(picture), atol=4)
    # It lies here 150 x 90 and was a square before: all of it; once as wide as high twice: half of its width.
    np.testing.assert_allclose(fit("crop", 1.0), area((0, 0, 150, 90), picture, 30), atol=4)
    np.testing.assert_allclose(fit("crop", 2.0), area((37.5, 0, 112.5, 90), picture, 30), atol=3)
    np.testing.assert_allclose(fit("crop", 0.5), area((0, 22.5, 150, 67.5), picture, 30), atol=4)


def fit_rows(picture: np.ndarray) -> np.ndarray:
    tall = area((0, 0, 150, 90), picture, 90)  # [90, 90]: take every fifth pair of rows and third of columns
    return tall.reshape(18, 5, 30, 3, -1).mean(axis=(1, 3))


def test_depth_and_colour_keep_white_white() -> None:
    np.testing.assert_array_equal(in_depth(GREY, np.dtype(np.uint16)), GREY.astype(int) * 257)
    np.testing.assert_array_equal(in_depth(in_depth(GREY, np.dtype(np.uint16)), np.dtype(np.uint8)), GREY)
    grey = fitted(RGB, Target(20, "stretch", 1, np.dtype(np.uint8)), None)
    np.testing.assert_array_equal(
        grey[..., 0], np.asarray(Image.fromarray(RGB).convert("L").resize((20, 20), Image.Resampling.BILINEAR))
    )
    deep = fitted(RGB, Target(20, "stretch", 1, np.dtype(np.uint16)), None)
    np.testing.assert_allclose(deep / 257, grey, atol=1.2)


def test_the_recipe_of_medmnist() -> None:
    picture = smooth(91, 150, 3)
    grey = Image.fromarray(picture).convert("L")
    left = int(round((150 - 91) / 2))  # noqa: RUF046 (as it is published)
    small = grey.crop((left, 0, left + 91, 91)).resize((28, 28), Image.Resampling.BILINEAR)
    expected = np.asarray(Image.open(io.BytesIO(saved(small, "JPEG", quality=75))))
    made = fitted(picture, Target(28, "medmnist", 1, np.dtype(np.uint8)), None)
    np.testing.assert_array_equal(made[..., 0], expected)


def test_libraries_that_warn_stay_silent(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    del tmp_path
    with quiet():
        warnings.warn("Jane Doe", stacklevel=1)
    assert not list(recwarn)
