"""DICOM files to the grey values or colours that a viewer shows: DICOM PS3.3 C.7.6.3 (pixels) and C.11 (look-up).

pydicom decodes; rescaling, the window and MONOCHROME1 are applied here, so that black and white are known values and
not those of the one image. Imported only when such a file is met: pydicom is an extra.
"""

import io
import logging
from typing import Any

import numpy as np
import pydicom
import pydicom.config
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, pixel_array

from medx.dataset.pictures import MOST_PIXELS, Header, Picture, Reading, UnreadableError, chosen_frame, scaled, windowed

MOST_BITS = 16  # of stored values; beyond, only a window says which of them matter
# Its messages quote elements, and elements are patients.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


def read_header(content: bytes) -> Header:
    """Colour and depth of a file, without decoding its pixels."""
    file = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, force=True)
    if "Rows" not in file:
        raise UnreadableError("a DICOM file without an image")
    colour = not str(file.PhotometricInterpretation).startswith("MONOCHROME")
    palette = file.get("RedPaletteColorLookupTableDescriptor")
    return Header(colour, int(palette[2] if colour and palette else file.BitsStored) > 8)


def read_picture(content: bytes, reading: Reading) -> Picture:
    """The pixels of one frame."""
    file = pydicom.dcmread(io.BytesIO(content), force=True)
    if "PixelData" not in file or "Rows" not in file:
        raise UnreadableError("a DICOM file without an image")
    if "TransferSyntaxUID" not in getattr(file, "file_meta", {}):
        raise UnreadableError("a DICOM file that does not say how its pixels are encoded")
    if int(file.Rows) * int(file.Columns) > MOST_PIXELS:
        raise UnreadableError(f"more than {MOST_PIXELS // 10**6} million pixels")
    frame = chosen_frame(int(file.get("NumberOfFrames") or 1), reading.frame)
    kind = str(file.PhotometricInterpretation)
    values = _decoded(file, frame)
    pixels = _grey(values, file, frame, reading) if kind.startswith("MONOCHROME") else _colours(values, file, kind)
    return Picture(np.ascontiguousarray(pixels), f"DICOM {kind}", int(file.BitsStored))


def _decoded(file: Dataset, frame: int) -> np.ndarray:
    try:
        return pixel_array(file, index=frame)
    except (NotImplementedError, RuntimeError) as error:
        name = file.file_meta.TransferSyntaxUID.name
        raise UnreadableError(f"pixels in {name} that no installed package decodes, or that are damaged") from error


def _grey(values: np.ndarray, file: Dataset, frame: int, reading: Reading) -> np.ndarray:
    """0 to 255 or 65535: rescaled, windowed, and white where there is most of what the picture calls white."""
    facts = _facts(file, frame)
    bits, signed = int(file.BitsStored), bool(file.PixelRepresentation)
    top = 255 if bits <= 8 else 65535
    rescaled = np.asarray(apply_modality_lut(values, facts), np.float64)
    centres, widths = _numbers(facts.get("WindowCenter")), _numbers(facts.get("WindowWidth"))
    if reading.window is not None:
        pixels = windowed(rescaled, reading.window, top)
    elif facts.get("VOILUTSequence"):
        looked_up = apply_voi(rescaled.astype(np.int64), facts)
        most = 2 ** int(facts.VOILUTSequence[0].LUTDescriptor[2]) - 1
        pixels = scaled(looked_up / most, top)
    elif centres and widths:
        function = str(facts.get("VOILUTFunction") or "LINEAR").upper()
        pixels = windowed(rescaled, (centres[0], widths[0]), top, function)
    elif bits > MOST_BITS:
        raise UnreadableError(f"values of {bits} bits without a window (dataset.window names one)")
    else:
        low, high = _ends(facts, bits, signed)
        if not (np.isfinite(rescaled).all() and np.isfinite([low, high]).all()):
            raise UnreadableError("values that are no numbers")
        pixels = scaled((rescaled - low) / ((high - low) or 1.0), top)
    return top - pixels if file.PhotometricInterpretation == "MONOCHROME1" else pixels


def _ends(facts: Dataset, bits: int, signed: bool) -> tuple[float, float]:
    """The least and the largest value, after rescaling, that the bits can hold."""
    if facts.get("ModalityLUTSequence"):
        return 0.0, float(2 ** int(facts.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope, intercept = float(facts.get("RescaleSlope", 1)), float(facts.get("RescaleIntercept", 0))
    low, high = sorted((least * slope + intercept, most * slope + intercept))
    return low, high


def _colours(values: np.ndarray, file: Dataset, kind: str) -> np.ndarray:
    """``[height, width, 3]``; pixel_array has made RGB of YBR."""
    if kind == "PALETTE COLOR":
        values, bits = apply_color_lut(values, file), int(file.RedPaletteColorLookupTableDescriptor[2])
    elif kind == "RGB" or kind.startswith("YBR"):
        bits = int(file.BitsStored)
    else:
        raise UnreadableError(f"the colour model {kind}")
    if bits == 8 and values.dtype == np.uint8:
        return values[..., :3]
    return scaled(values[..., :3] / (2**bits - 1), 255 if bits <= 8 else 65535)


def _facts(file: Dataset, frame: int) -> Dataset:
    """The elements that grey values depend on: the file's own, else of the frame, which newer files keep in groups."""
    groups = [*list(file.get("SharedFunctionalGroupsSequence") or [])[:1]]
    groups += list(file.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]
    found = Dataset()
    for group in groups:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in list(group.get(name) or [])[:1]:
                found.update(item)
    found.update(file)
    return found


def _numbers(value: Any) -> list[float]:
    """One or several numbers, of which the first is the usual one; none of what is none."""
    several = [value] if isinstance(value, (str, int, float)) else list(value or [])
    return [float(each) for each in several if str(each).strip()]
