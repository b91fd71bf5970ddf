"""Pictures of all sizes to squares of one: cropped, padded or stretched, in grey or in colour, in 8 or in 16 bits."""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

Fit = Literal["crop", "pad", "stretch", "medmnist"]
QUALITY = 75  # of the JPEG that MedMNIST's pictures went through
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow has it for 8 bits


@dataclass(frozen=True)
class Target:
    """What every picture becomes: ``[size, size, channels]`` of uint8 or uint16."""

    size: int
    fit: Fit
    channels: int
    dtype: np.dtype


def fitted(pixels: np.ndarray, target: Target, ratio: float | None) -> np.ndarray:
    """The target's shape and type, from uint8 or uint16 ``[height, width]`` or ``[height, width, 3]``.

    ``crop`` keeps the centre square, ``pad`` adds black. Scaling is bilinear and averages over what it leaves out.
    ``ratio`` is the width over the height that the picture had before it was stretched; its square is cut there.
    """
    size, coloured = target.size, in_channels(in_depth(pixels, target.dtype), target.channels)
    height, width = pixels.shape[:2]
    shape = (float(width), float(height)) if ratio is None else (ratio, 1.0)
    if target.fit == "medmnist":
        return as_medmnist(coloured[..., 0], size, ratio)[..., None]
    if target.fit == "pad":
        return _padded(coloured, size, shape)
    if target.fit == "crop":
        # In the picture as it lies here, stretched or not, the square is as wide and high as these shares.
        across, down = min(shape) / shape[0] * width, min(shape) / shape[1] * height
        left, top = max(0.0, (width - across) / 2), max(0.0, (height - down) / 2)
        box = (left, top, min(float(width), left + across), min(float(height), top + down))
        return _scale(coloured, (size, size), box)
    return _scale(coloured, (size, size), (0, 0, width, height))


def as_medmnist(grey: np.ndarray, size: int, ratio: float | None) -> np.ndarray:
    """MedMNIST's recipe, bit for bit: centre square, bilinear, JPEG and back. ``uint8 [size, size]`` of a grey one."""
    image = Image.fromarray(grey)
    if ratio is not None:
        width, height = image.size
        wide = ratio >= width / height
        image = image.resize(
            (round(height * ratio), height) if wide else (width, round(width / ratio)), Image.Resampling.BILINEAR
        )
    width, height = image.size
    side = min(width, height)
    left, top = round((width - side) / 2), round((height - side) / 2)
    small = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    return np.asarray(Image.open(file))


def in_depth(pixels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The same shares of white in 8 or 16 bits: 255 and 65535 are one white."""
    if pixels.dtype == dtype:
        return pixels
    if dtype == np.uint16:
        return pixels.astype(np.uint16) * np.uint16(257)
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def in_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """``[height, width, channels]``: grey by luma, or grey values in all three."""
    if channels == 3:
        return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)
    if pixels.ndim == 2:
        return pixels[..., None]
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    return (pixels @ LUMA + 0.5).astype(pixels.dtype)[..., None]


def _padded(pixels: np.ndarray, size: int, shape: tuple[float, float]) -> np.ndarray:
    width, height = (max(1, round(size * side / max(shape))) for side in shape)
    square = np.zeros((size, size, pixels.shape[2]), pixels.dtype)
    left, top = (size - width) // 2, (size - height) // 2
    whole = (0, 0, pixels.shape[1], pixels.shape[0])
    square[top : top + height, left : left + width] = _scale(pixels, (width, height), whole)
    return square


def _scale(pixels: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]) -> np.ndarray:
    """``[size[1], size[0], channels]``; 16 bits go through floats, a channel at a time, as Pillow has no more."""
    if pixels.dtype == np.uint8:
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        scaled = np.asarray(image.resize(size, Image.Resampling.BILINEAR, box))
        return scaled.reshape(size[1], size[0], -1)
    planes = [Image.fromarray(np.ascontiguousarray(plane, np.float32)) for plane in np.moveaxis(pixels, 2, 0)]
    scaled = np.stack([np.asarray(plane.resize(size, Image.Resampling.BILINEAR, box)) for plane in planes], axis=-1)
    return (scaled + 0.5).clip(0, 65535).astype(np.uint16)
