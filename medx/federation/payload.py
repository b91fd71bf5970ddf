"""Tensors to Flower records and back."""

from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord

State = dict[str, torch.Tensor]

MOMENTUM = "momentum/"


def to_record(state: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """An ArrayRecord with the tensors' values, in the given order."""
    return ArrayRecord({name: Array(tensor.detach().cpu().numpy()) for name, tensor in state.items()})


def from_record(record: ArrayRecord) -> State:
    """Tensors of the record, each with memory of its own."""
    return {name: torch.from_numpy(np.array(array.numpy())) for name, array in record.items()}


def parameters_of(state: State) -> State:
    """The model's own tensors, without the optimiser's buffers."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(MOMENTUM)}


def momentum_of(state: State) -> State:
    """The optimiser's buffers that travel with the model."""
    return {name: tensor for name, tensor in state.items() if name.startswith(MOMENTUM)}


def all_finite(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether every value of every tensor is finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in state.values())
