"""Tensors to Flower records and back: one array for all tensors of a kind, since every array has a price of its own."""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO

import numpy as np
import torch
from flwr.app import Array, ArrayRecord

from medx.aggregation.messages import model_hash

State = dict[str, torch.Tensor]

MOMENTUM = "momentum/"
NUMPY = "numpy.ndarray"  # Flower's name for data in NumPy's .npy format


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
    """Views of the tensors that ``layout`` names; raises ValueError where they are not as many values."""
    shapes = shapes_of(layout)
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    if values.shape != (ends[-1],):
        raise ValueError(f"an array of shape {values.shape} for {ends[-1]} values: {layout[:200]}")
    parts = np.split(values, ends[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


@lru_cache
def layout_of(prefix: str, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> str:
    """Names and shapes as text, the name of the array that holds their values."""
    return prefix + json.dumps(dict(shapes), separators=(",", ":"))


@lru_cache
def shapes_of(layout: str) -> dict[str, tuple[int, ...]]:
    """The shapes by name that ``layout_of`` wrote; raises ValueError for any other text.

    So no name stands in it twice, and a layout of momentum names no parameter.
    """
    prefix = MOMENTUM if layout.startswith(MOMENTUM) else ""
    shapes = json.loads(layout.removeprefix(prefix))
    plain = isinstance(shapes, dict) and all(
        name.startswith(MOMENTUM) == bool(prefix) and isinstance(shape, list) and all(type(n) is int for n in shape)
        for name, shape in shapes.items()
    )
    if not plain or not shapes:
        raise ValueError(f"not a layout of tensors: {layout[:200]}")
    found = {name: tuple(shape) for name, shape in shapes.items()}
    if layout != layout_of(prefix, tuple(found.items())) or any(n < 0 for shape in found.values() for n in shape):
        raise ValueError(f"not a layout of tensors: {layout[:200]}")
    return found


def signature_of(record: ArrayRecord) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Layouts, types and lengths: what every answer of a round has in common with the question."""
    return {layout: (array.dtype, tuple(array.shape)) for layout, array in record.items()}


def to_array(values: np.ndarray) -> Array:
    """The Array of these values: byte for byte what Flower makes of them in C order."""
    kind = values.dtype
    return Array(name_of(kind), values.shape, NUMPY, npy_header(kind, values.shape) + values.tobytes())


def hash_of(record: ArrayRecord) -> bytes:
    """The hash of a model as it was received."""
    return model_hash((layout, values_of(array)) for layout, array in record.items())


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
    """The array's values, read-only where its header is the plain one; Flower's slow way reads all others."""
    try:
        header = npy_header(np.dtype(array.dtype), tuple(array.shape))
    except (TypeError, ValueError):
        return np.asarray(Array.numpy(array))
    count = math.prod(array.shape)
    whole = len(array.data) == len(header) + count * np.dtype(array.dtype).itemsize
    if array.stype != NUMPY or not whole or not array.data.startswith(header):
        return np.asarray(Array.numpy(array))
    return np.frombuffer(array.data, array.dtype, count, len(header)).reshape(array.shape)


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
        return all(values_of(array).shape == tuple(array.shape) for array in record.values())
    except (ValueError, TypeError, EOFError):
        return False


def finite_record(record: ArrayRecord) -> bool:
    """The same of a record, without a copy of its values."""
    return all(bool(np.isfinite(values_of(array)).all()) for array in record.values())
