"""One image file to pixels: PNG, JPEG, TIFF, BMP, WebP by Pillow, DICOM by pydicom. What cannot be read says why.

The rules, the same for every file: values of 8 bits stay as they are, all others become 0 to 65535. Of 16 bits in a
plain file 0 is black and 65535 is white; ``dataset.window`` names another range; of colours with 16 bits the upper 8
are read. A DICOM file is shown as its own window says; without one, black and white are the least and the largest value
that its bits can hold. What is transparent is black, a palette is looked up, and a photograph is turned as its EXIF
orientation says.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import (
    BmpImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from medx.schema import ConfigError

PLUGINS = (PngImagePlugin, JpegImagePlugin, TiffImagePlugin, BmpImagePlugin, WebPImagePlugin)
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")  # of the plugins, and no other of the forty that Pillow has
MOST_PIXELS = 178_956_970  # of one file, Pillow's own limit: a small file can claim any size
WIDE = ("I", "F")  # Pillow's modes of 32 bits
GREY = ("1", "L", "LA", "La")
COLOUR = ("RGB", "RGBA", "RGBX", "RGBa", "P", "PA", "CMYK", "YCbCr", "HSV")
Window = tuple[float, float]


class UnreadableError(Exception):
    """Why a file gives no picture, in words without its name or any of its values."""


@dataclass(frozen=True)
class Reading:
    """What a configuration says of reading: ``window`` (centre, width), and which frame of a file with several."""

    window: Window | None = None
    frame: int | None = None


@dataclass(frozen=True)
class Picture:
    """Pixels ``[height, width]`` or ``[height, width, 3]``, uint8 or uint16, and how the file holds them."""

    pixels: np.ndarray
    mode: str
    bits: int


@dataclass(frozen=True)
class Header:
    """What the beginning of a file tells: whether it has colours, and whether more than 8 bits."""

    colour: bool
    deep: bool


def is_dicom(content: bytes) -> bool:
    """Whether it says so, or begins as those do that lack the preamble: with an element of group 2 or 8."""
    return content[128:132] == b"DICM" or content[:2] in (b"\x02\x00", b"\x08\x00")


def read_header(content: bytes) -> Header:
    """Colour and depth; raises UnreadableError."""
    with _one_reason():
        if is_dicom(content):
            return _dicom().read_header(content)
        with _opened(content) as image:
            colour = image.mode in COLOUR and not (image.mode == "P" and _is_grey(image))
            return Header(colour, image.mode.startswith(WIDE))


def read_picture(content: bytes, reading: Reading) -> Picture:
    """The pixels of a file's content; raises UnreadableError."""
    with _one_reason():
        if is_dicom(content):
            return _dicom().read_picture(content, reading)
        with _opened(content) as image:
            image.seek(chosen_frame(1 if image.format == "MPO" else getattr(image, "n_frames", 1), reading.frame))
            turned = ImageOps.exif_transpose(image)
            pixels = np.ascontiguousarray(_pixels(turned, reading.window))
            return Picture(pixels, image.mode, 8 * pixels.dtype.itemsize)


def chosen_frame(frames: int, frame: int | None) -> int:
    """The frame to read; raises UnreadableError where there are several and none, or a later one, is chosen."""
    if frames > 1 and (frame is None or frame >= frames):
        raise UnreadableError(f"{frames} frames (dataset.frame chooses one, from 0)")
    return (frame or 0) if frames > 1 else 0


def windowed(values: np.ndarray, window: Window, top: int, function: str = "LINEAR") -> np.ndarray:
    """Grey values 0 to ``top`` by centre and width, as DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3 have it."""
    from scipy.special import expit

    centre, width = window
    if not (np.isfinite(values).all() and np.isfinite(window).all()):
        raise UnreadableError("values that are no numbers")
    if width < 1 and (function == "LINEAR" or width <= 0):
        raise UnreadableError("a window without width")
    if function == "SIGMOID":
        shares = expit(4 * (values - centre) / width)
    elif function == "LINEAR_EXACT":
        shares = (values - centre) / width + 0.5
    else:
        shares = (values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5
    return scaled(shares, top)


def scaled(shares: np.ndarray, top: int) -> np.ndarray:
    """0 to ``top`` of 0..1, rounded; uint8 or uint16."""
    return (np.clip(shares, 0, 1) * top + 0.5).astype(np.uint8 if top == 255 else np.uint16)


@contextmanager
def quiet() -> Iterator[None]:
    """While files are read: libraries warn with names and values of patients, which must reach no log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _dicom():  # type: ignore[no-untyped-def]
    try:
        from medx.dataset import dicom
    except ImportError as error:
        raise ConfigError("dataset: DICOM files need the extra dicom: pip install 'medx[dicom]'") from error
    return dicom


@contextmanager
def _one_reason() -> Iterator[None]:
    """Whatever a decoder raises, of five libraries on damaged bytes, becomes one reason in our own words."""
    try:
        yield
    except (UnreadableError, ConfigError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise UnreadableError(f"more than {MOST_PIXELS // 10**6} million pixels") from None
    except UnidentifiedImageError:
        raise UnreadableError("no image of a known format") from None
    except Exception as error:
        raise UnreadableError(f"truncated or damaged ({type(error).__name__})") from None


def _opened(content: bytes) -> Image.Image:
    if not content:
        raise UnreadableError("empty")
    return Image.open(io.BytesIO(content), formats=FORMATS)


def _pixels(image: Image.Image, window: Window | None) -> np.ndarray:
    if image.mode in WIDE:
        if window is None:
            raise UnreadableError("values of 32 bits (dataset.window names their range)")
        return windowed(np.asarray(image, np.float64), window, 65535)
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)
        return values if window is None else windowed(values.astype(np.float64), window, 65535)
    if image.mode not in (*GREY, *COLOUR):
        raise UnreadableError(f"the colour model {image.mode}")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or (image.mode == "P" and "transparency" in image.info):
        grey = image.mode in ("LA", "La") or (image.mode == "P" and _is_grey(image))
        flat = Image.new("RGBA", image.size, (0, 0, 0, 255))
        flat.alpha_composite(image.convert("RGBA") if image.mode != "La" else image.convert("LA").convert("RGBA"))
        return np.asarray(flat.convert("RGB").convert("L" if grey else "RGB"))
    grey = image.mode in GREY or (image.mode == "P" and _is_grey(image))
    return np.asarray(image.convert("L" if grey else "RGB"))


def _is_grey(image: Image.Image) -> bool:
    """Whether a palette has grey values only."""
    colours = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    return bool((colours == colours[:, :1]).all())
