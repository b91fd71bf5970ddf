"""Tensors to Flower records and back: one array for all tensors of a kind, since every array has a price of its own.

What comes from the other side is read in the one form in which it is written here, and refused in any other.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from itertools import accumulate

import numpy as np
import torch
from flwr.app import Array, ArrayRecord

from medx.aggregation.messages import model_hash
from medx.schema import MedxError

State = dict[str, torch.Tensor]

MOMENTUM = "momentum/"
NUMPY = "numpy.ndarray"  # Flower's name for data in NumPy's .npy format
INTEGERS = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
KINDS = {name: np.dtype(name) for name in (*INTEGERS, "float16", "float32", "float64")}
MOST_VALUES = 1 << 48  # NumPy's own limits are below, where a product of sizes overflows
MOST_AXES = 32
LONGEST_LAYOUT = 1 << 18  # characters: a layout is remembered, and a network of 4000 tensors takes half of it


class PayloadError(MedxError):
    """A record of tensors in another form than ``to_record`` writes."""


class View(Array):
    """An Array whose ``numpy()`` is a read-only view of its bytes. For reading here; it is never sent."""

    def __init__(self, array: Array) -> None:
        self.__dict__.update(array.__dict__)

    def numpy(self) -> np.ndarray:
        """The values, ``array.shape``."""
        return values_of(self)


def to_record(state: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """An ArrayRecord with the tensors' values, in the given order; see ``pack``."""
    record = ArrayRecord()  # filled one by one: a record made of a dictionary copies and checks its arrays anew
    for layout, values in pack({name: tensor.detach().cpu().numpy() for name, tensor in state.items()}).items():
        record[layout] = to_array(values)
    return record


def pack(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The values end to end, ``[n]``, by their layout: one vector for each type, and momentum apart from parameters.

    Strategies treat coordinates alike, so a vector is to them what its tensors are.
    """
    groups: dict[tuple[str, np.dtype], dict[str, np.ndarray]] = {}
    for name, values in state.items():
        prefix = MOMENTUM if name.startswith(MOMENTUM) else ""
        groups.setdefault((prefix, values.dtype), {})[name] = values
    return {
        layout_of(prefix, tuple((name, values.shape) for name, values in group.items())): np.concatenate(
            [values.ravel() for values in group.values()]
        )
        for (prefix, _), group in groups.items()
    }


def unpack(layout: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Views of the tensors that ``layout`` names; raises PayloadError where they are not as many values."""
    shapes = shapes_of(layout)
    ends = list(accumulate(math.prod(shape) for shape in shapes.values()))
    if values.shape != (ends[-1],):
        raise PayloadError(f"an array of shape {values.shape} for {ends[-1]} values: {layout[:200]}")
    parts = np.split(values, ends[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


@lru_cache
def layout_of(prefix: str, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> str:
    """Names and shapes as text, the name of the array that holds their values."""
    return prefix + json.dumps(dict(shapes), separators=(",", ":"))


def shapes_of(layout: str) -> dict[str, tuple[int, ...]]:
    """The shapes by name that ``layout_of`` wrote; raises PayloadError for any other text.

    So no name stands in it twice, and a layout of momentum names no parameter.
    """
    if len(layout) > LONGEST_LAYOUT:
        raise PayloadError(f"a layout of {len(layout)} characters; accepted: up to {LONGEST_LAYOUT}")
    try:
        return _shapes_of(layout)
    except (ValueError, RecursionError):
        raise PayloadError(f"not a layout of tensors: {layout[:200]!r}") from None


@lru_cache(maxsize=64)
def _shapes_of(layout: str) -> dict[str, tuple[int, ...]]:
    prefix = MOMENTUM if layout.startswith(MOMENTUM) else ""
    shapes = json.loads(layout.removeprefix(prefix))
    plain = isinstance(shapes, dict) and all(
        name.startswith(MOMENTUM) == bool(prefix) and isinstance(shape, list) and is_shape(shape)
        for name, shape in shapes.items()
    )
    if not plain or not shapes:
        raise ValueError
    found = {name: tuple(shape) for name, shape in shapes.items()}
    if layout != layout_of.__wrapped__(prefix, tuple(found.items())):
        raise ValueError
    return found


def is_shape(shape: Sequence[object]) -> bool:
    """Whether these are the sizes of a tensor that an array can hold."""
    sizes = [size for size in shape if type(size) is int and size >= 0]
    return len(sizes) == len(shape) <= MOST_AXES and math.prod(max(size, 1) for size in sizes) <= MOST_VALUES


def signature_of(record: ArrayRecord) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Layouts, types and lengths: what every answer of a round has in common with the question."""
    return {layout: (array.dtype, tuple(array.shape)) for layout, array in record.items()}


def to_array(values: np.ndarray) -> Array:
    """The Array of these values: byte for byte what Flower makes of them in C order."""
    kind = values.dtype
    return Array(name_of(kind), values.shape, NUMPY, npy_header(kind, values.shape) + values.tobytes())


def hash_of(record: ArrayRecord, clip_norm: float | None = None) -> bytes:
    """The hash of a model as it was received, and of the clip norm that came with it."""
    values = [(layout, values_of(array)) for layout, array in record.items()]
    return model_hash(values if clip_norm is None else [*values, ("clip-norm", np.array(clip_norm))])


def from_record(record: ArrayRecord) -> State:
    """Tensors of the record, in memory of its own."""
    return {
        name: torch.from_numpy(values)
        for layout, array in record.items()
        for name, values in unpack(layout, values_of(array).copy()).items()
    }


def viewed(record: ArrayRecord) -> ArrayRecord:
    """The record, its arrays replaced by views that are cheap to read."""
    for name, array in list(record.items()):
        record[name] = View(array)
    return record


def values_of(array: Array) -> np.ndarray:
    """The array's values, read-only; raises PayloadError unless type, shape and bytes are as ``to_array`` has them.

    NumPy's own reader is not asked: it evaluates the header, and makes room for what that says.
    """
    kind, shape, data = KINDS.get(array.dtype), tuple(array.shape), array.data
    if kind is None or not is_shape(shape) or array.stype != NUMPY:
        raise PayloadError(f"an array of {array.dtype!r:.50} and shape {shape!r:.100} as {array.stype!r:.50}")
    header, count = npy_header(kind, shape), math.prod(shape)
    if len(data) != len(header) + count * kind.itemsize or not data.startswith(header):
        raise PayloadError(f"{len(data)} bytes that are not an array of {array.dtype} and shape {shape}")
    return np.frombuffer(data, kind, count, len(header)).reshape(shape)


@lru_cache
def name_of(kind: np.dtype) -> str:
    """``float32`` and so on; NumPy takes 12 us to say it."""
    return str(kind)


@lru_cache(maxsize=4096)
def npy_header(kind: np.dtype, shape: tuple[int, ...]) -> bytes:
    """What ``np.save`` writes before the values of an array in C order."""
    buffer = BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def parameters_of(state: State) -> State:
    """The model's own tensors, without the optimiser's buffers."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(MOMENTUM)}


def momentum_of(state: State) -> State:
    """The optimiser's buffers that travel with the model."""
    return {name: tensor for name, tensor in state.items() if name.startswith(MOMENTUM)}


def all_finite(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether every value of every tensor is finite."""
    # NumPy, since torch starts a second thread for a tensor of 32768 elements, which costs more than it saves.
    return all(bool(np.isfinite(tensor.detach().cpu().numpy()).all()) for tensor in state.values())


def well_formed(record: ArrayRecord) -> bool:
    """Whether every array's bytes hold the values that it says it holds."""
    try:
        for array in record.values():
            values_of(array)
    except PayloadError:
        return False
    return True


def finite_record(record: ArrayRecord) -> bool:
    """The same of a record, without a copy of its values."""
    return all(bool(np.isfinite(values_of(array)).all()) for array in record.values())
