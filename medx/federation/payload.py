"""Tensors to Flower records and back, without reading NumPy's file header anew for every tensor of every client."""

import math
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO

import numpy as np
import torch
from flwr.app import Array, ArrayRecord

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
    """An ArrayRecord with the tensors' values, in the given order."""
    record = ArrayRecord()  # filled one by one: a record made of a dictionary copies and checks its arrays anew
    for name, tensor in state.items():
        record[name] = to_array(tensor.detach().cpu().numpy())
    return record


def to_array(values: np.ndarray) -> Array:
    """The Array of these values: byte for byte what Flower makes of them in C order."""
    kind = values.dtype
    return Array(name_of(kind), values.shape, NUMPY, npy_header(kind, values.shape) + values.tobytes())


def from_record(record: ArrayRecord) -> State:
    """Tensors of the record, each with memory of its own."""
    return {name: torch.from_numpy(values_of(array).copy()) for name, array in record.items()}


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


def finite_record(record: ArrayRecord) -> bool:
    """The same of a record, without a copy of its values."""
    return all(bool(np.isfinite(values_of(array)).all()) for array in record.values())
