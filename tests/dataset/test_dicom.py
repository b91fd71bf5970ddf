"""Every DICOM file of pydicom and pydicom-data is read as pydicom's own steps show it, or refused in one line."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medx.dataset.pictures import Reading, UnreadableError, is_dicom, quiet, read_header, read_picture

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("openjpeg")
store = pytest.importorskip("data_store")
FOLDERS = (Path(pydicom.__file__).parent / "data", Path(store.__file__).parent / "data")
FILES = {
    path.name: path
    for folder in FOLDERS
    for path in sorted(folder.rglob("*"))
    if path.is_file() and is_dicom(path.read_bytes())
}
# Of those with an image. Damaged on purpose, 12-bit JPEG, and doses of 32 bits, whose range no header tells.
REFUSED = 11


def test_real_files_give_what_pydicom_shows_or_one_line() -> None:
    compared, reasons = {"grey": 0, "colour": 0}, list[str]()
    with quiet():
        for name, path in FILES.items():
            content = path.read_bytes()
            try:
                header = read_header(content)
                picture = read_picture(content, Reading(frame=0))
            except UnreadableError as reason:
                reasons.append(str(reason))
                continue
            file = pydicom.dcmread(io.BytesIO(content), force=True)
            expected, top = shown(file)
            assert (picture.pixels.dtype == np.uint16) == header.deep == (top > 255), name
            white = np.iinfo(picture.pixels.dtype).max
            np.testing.assert_allclose(picture.pixels / white, expected, atol=0.51 / white + 1e-6, err_msg=name)
            compared["colour" if picture.pixels.ndim == 3 else "grey"] += 1
    assert compared["grey"] > 90, compared
    assert compared["colour"] > 40, compared
    assert not any("\n" in reason for reason in reasons)
    assert sum("without an image" not in reason for reason in reasons) <= REFUSED, reasons


def shown(file: Any) -> tuple[np.ndarray, int]:
    """The picture on 0..1 by pydicom's own functions, and the largest value of its depth."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

    values = pixel_array(file, index=0)
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):  # pydicom's steps pass over
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            if groups in file and name in file[groups][0]:
                file.update(file[groups][0][name][0])
    if file.PhotometricInterpretation == "PALETTE COLOR":
        bits = file.RedPaletteColorLookupTableDescriptor[2]
        return apply_color_lut(values, file) / (2**bits - 1), 255 if bits == 8 else 65535
    top = 255 if file.BitsStored <= 8 else 65535
    if file.SamplesPerPixel == 3:
        return values / (2**file.BitsStored - 1), top
    low, high = (-(2 ** (file.BitsStored - 1)), 2 ** (file.BitsStored - 1) - 1)
    if not file.PixelRepresentation:
        low, high = 0, 2**file.BitsStored - 1
    ends = np.sort(apply_modality_lut(np.array([low, high]), file)) if "RescaleSlope" in file else (low, high)
    if "ModalityLUTSequence" in file:
        ends = (0, 2 ** file.ModalityLUTSequence[0].LUTDescriptor[2] - 1)
    if "VOILUTSequence" in file:
        ends = (0, 2 ** file.VOILUTSequence[0].LUTDescriptor[2] - 1)
    grey = (apply_voi_lut(apply_modality_lut(values, file), file).astype(float) - ends[0]) / (ends[1] - ends[0])
    grey = grey.clip(0, 1)
    return (1 - grey if file.PhotometricInterpretation == "MONOCHROME1" else grey), top


def made(values: np.ndarray, bits: int, **elements: Any) -> bytes:
    """A file of its own: these stored values, and elements as they are given."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    file.PatientName = "Doe^Jane"
    file.Rows, file.Columns = values.shape[-2:]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, bits, bits - 1
    file.PixelRepresentation = int(values.dtype.kind == "i")
    file.PixelData = values.astype("<i2" if values.dtype.kind == "i" else "<u2").tobytes()
    for name, value in elements.items():
        setattr(file, name, value)
    out = io.BytesIO()
    file.save_as(out, enforce_file_format=True)
    return out.getvalue()


def grey(content: bytes, **reading: Any) -> np.ndarray:
    with quiet():
        return read_picture(content, Reading(**reading)).pixels / 65535


HOUNSFIELD = np.array([[-1024, -600, 0, 40, 100, 3000]], np.int16)
CT = {"RescaleSlope": 1, "RescaleIntercept": 0, "BitsStored": 16, "HighBit": 15}


def test_windows_by_the_formulas_of_the_standard() -> None:
    values = HOUNSFIELD.astype(float)
    linear = made(HOUNSFIELD, 16, WindowCenter=[40, 500], WindowWidth=[400, 2000])
    expected = ((values - 39.5) / 399 + 0.5).clip(0, 1)
    np.testing.assert_allclose(grey(linear), expected, atol=1e-5)
    exact = made(HOUNSFIELD, 16, WindowCenter=40, WindowWidth=400, VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_allclose(grey(exact), ((values - 40) / 400 + 0.5).clip(0, 1), atol=1e-5)
    sigmoid = made(HOUNSFIELD, 16, WindowCenter=40, WindowWidth=400, VOILUTFunction="SIGMOID")
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(grey(sigmoid), 1 / (1 + np.exp(-4 * (values - 40) / 400)), atol=1e-5)
    np.testing.assert_allclose(grey(linear, window=(0, 2000)), ((values + 0.5) / 1999 + 0.5).clip(0, 1), atol=1e-5)
    inverse = made(HOUNSFIELD, 16, WindowCenter=40, WindowWidth=400, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(grey(inverse), 1 - expected, atol=1e-5)


def test_without_a_window_white_is_the_most_that_the_bits_can_hold() -> None:
    twelve = np.array([[0, 1, 2048, 4095]], np.uint16)
    np.testing.assert_allclose(grey(made(twelve, 12)), twelve / 4095, atol=1e-5)
    rescaled = made(twelve, 12, RescaleSlope=2, RescaleIntercept=-1024)
    np.testing.assert_allclose(grey(rescaled), twelve / 4095, atol=1e-5)
    np.testing.assert_allclose(grey(made(HOUNSFIELD, 16)), (HOUNSFIELD + 32768.0) / 65535, atol=1e-5)


def test_frames_and_what_newer_files_say_of_each() -> None:
    from pydicom.dataset import Dataset

    def group(slope: float) -> Any:
        rescale, each = Dataset(), Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = slope, 0
        each.PixelValueTransformationSequence = [rescale]
        return each

    window, shared = Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = 128, 256
    shared.FrameVOILUTSequence = [window]
    two = np.array([[[0, 255]], [[0, 51]]], np.uint16)
    elements = {"NumberOfFrames": 2, "SharedFunctionalGroupsSequence": [shared]}
    content = made(two, 12, **elements, PerFrameFunctionalGroupsSequence=[group(1), group(5)])
    for frame in (0, 1):
        np.testing.assert_allclose(grey(content, frame=frame), [[0, 1]], atol=1e-5)
    for reading in ({}, {"frame": 2}):
        with pytest.raises(UnreadableError, match="2 frames"):
            grey(content, **reading)


def test_no_reason_tells_of_the_patient(caplog: pytest.LogCaptureFixture) -> None:
    whole = made(HOUNSFIELD, 16)
    for content in (whole[:-5], made(HOUNSFIELD, 16, RescaleSlope="1e999"), made(HOUNSFIELD, 16, Rows=60000)):
        with quiet(), pytest.raises(UnreadableError) as refused:
            read_picture(content, Reading())
        assert "Doe" not in str(refused.value)
    assert not caplog.records
