"""All that MedX knows of Flower's inside, in one place: ``tests/federation/test_flower.py`` says what it relies on.

And tensors on the wire. What comes from the other side is read in the one form in which it is written here, and refused
in any other: NumPy's own reader would evaluate a header, and make room for what that says.
"""

import logging
from functools import lru_cache
from io import BytesIO
from typing import cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from medx.schema import CheckpointError, MedxError
from medx.trainer.state import ModelLayout, ModelState, Tensors

NUMPY = "numpy.ndarray"  # Flower's name for data in NumPy's .npy format
DICTIONARIES = ("m_t", "v_t")  # the buffers of FedAdam and FedYogi, by name of the vector
LIST = "momentum_vector"  # that of FedAvgM, by position


class PayloadError(MedxError):
    """A record of tensors in another form than ``to_record`` writes."""


def to_record(state: ModelState) -> ArrayRecord:
    """The state's vectors, one array each, since every array of a message has a price of its own."""
    return _record({name: to_array(vector) for name, vector in zip(state.layout.names, state.vectors, strict=False)})


def from_record(record: object, layout: ModelLayout, *, momentum: bool) -> ModelState:
    """The state in a record, as read-only views of its bytes; raises PayloadError for any other tensors than these.

    Nothing is made room for before names, types, sizes and the number of bytes are the expected ones.
    """
    names = layout.names if momentum else layout.names[:1]
    if not isinstance(record, ArrayRecord) or set(record) != set(names):
        raise PayloadError("other tensors than those of the model that is configured here")
    return ModelState(layout, *(values_of(record[name], layout) for name in names))


def to_array(vector: np.ndarray) -> Array:
    """The Array of a vector ``[n]``: byte for byte what Flower makes of it."""
    return Array(str(vector.dtype), vector.shape, NUMPY, npy_header(vector.dtype, vector.size) + vector.tobytes())


def values_of(array: Array, layout: ModelLayout) -> np.ndarray:
    """The array's values ``[layout.size]``, read-only; raises PayloadError unless it is as ``to_array`` has it."""
    header, data = npy_header(layout.kind, layout.size), array.data
    if (array.dtype, tuple(array.shape), array.stype) != (str(layout.kind), (layout.size,), NUMPY):
        raise PayloadError(f"an array of {array.dtype!r:.50} and shape {array.shape!r:.100} as {array.stype!r:.50}")
    if len(data) != len(header) + layout.size * layout.kind.itemsize or not data.startswith(header):
        raise PayloadError(f"{len(data)} bytes that are not {layout.size} values of {layout.kind}")
    return np.frombuffer(data, layout.kind, layout.size, len(header))


def wire_bytes(state: ModelState) -> int:
    """Bytes of the state's arrays in a message."""
    return sum(len(npy_header(vector.dtype, vector.size)) + vector.nbytes for vector in state.vectors)


@lru_cache(maxsize=64)
def npy_header(kind: np.dtype, size: int) -> bytes:
    """What ``np.save`` writes before the values of a vector."""
    buffer = BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (size,)}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def _record(arrays: dict[str, Array]) -> ArrayRecord:
    record = ArrayRecord()  # filled one by one: a record made of a dictionary copies and checks its arrays anew
    for name, array in arrays.items():
        record[name] = array
    return record


class ValuesAtHand(Array):
    """An Array for a strategy in this process: it has its values and no bytes, and is never sent."""

    def __init__(self, vector: np.ndarray) -> None:
        super().__init__(str(vector.dtype), vector.shape, NUMPY, b"")
        self.vector = vector.view()
        self.vector.flags.writeable = False

    def numpy(self) -> np.ndarray:
        """The values, read-only."""
        return self.vector


class OneNode:
    """A grid as far as a strategy looks at it: it has a node."""

    def get_node_ids(self) -> list[int]:
        """The node."""
        return [1]


def _for_strategy(state: ModelState) -> ArrayRecord:
    return _record({state.layout.names[0]: ValuesAtHand(state.parameters)})


def show(strategy: Strategy, number: int, state: ModelState) -> None:
    """Tell the strategy the round's model: server optimisers take their step from what they were shown here.

    Its messages are not used: MedX draws its clients itself, and a client takes no setting from a server.
    """
    list(strategy.configure_train(number, _for_strategy(state), ConfigRecord(), cast(Grid, OneNode())))


def aggregate(strategy: Strategy, number: int, answers: list[tuple[ModelState, int]]) -> np.ndarray | None:
    """Where the strategy goes, given the parameters of (state, weight); None where it gives no result."""
    contents = (
        RecordDict({"arrays": _for_strategy(state), "metrics": MetricRecord({"num-examples": weight})})
        for state, weight in answers
    )
    arrays, _ = strategy.aggregate_train(number, [Message(content, 1, MessageType.TRAIN) for content in contents])
    layout = answers[0][0].layout
    return None if arrays is None else arrays[layout.names[0]].numpy().astype(layout.kind, copy=False)


def strategy_state(strategy: Strategy, layout: ModelLayout) -> Tensors:
    """The server optimiser's buffers (FedAdam, FedYogi, FedAvgM) as tensors, for the checkpoint."""
    state: Tensors = {}
    for buffer in DICTIONARIES:
        for vector in (getattr(strategy, buffer, None) or {}).values():
            state |= {f"{buffer}/{name}": torch.tensor(part) for name, part in layout.split(np.array(vector)).items()}
    for place, vector in enumerate(getattr(strategy, LIST, None) or []):
        state[f"{LIST}/{place}"] = torch.tensor(np.array(vector))
    return state


def restore_strategy(strategy: Strategy, state: Tensors, layout: ModelLayout) -> None:
    """Put the buffers of a checkpoint back into a fresh strategy; raises CheckpointError for one of MedX 0.2."""
    for buffer in (*DICTIONARIES, LIST):
        kept = {name.split("/", 1)[1]: tensor for name, tensor in state.items() if name.startswith(buffer + "/")}
        if kept and buffer != LIST:
            setattr(strategy, buffer, {layout.names[0]: layout.join(kept)})
        elif kept:
            vectors = [tensor.numpy() for tensor in kept.values()]
            if [vector.shape for vector in vectors] != [(layout.size,)]:
                raise CheckpointError("resume: the checkpoint keeps the server's momentum as MedX 0.2 did; run it anew")
            setattr(strategy, buffer, vectors)


def become_a_server() -> None:
    """Let this process make messages: Flower reads their sender from here, and its own runtimes set it the same way."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def empty_run() -> Run:
    """The run of a grid without a network."""
    return Run.create_empty(1)


def name_message(message: Message, identifier: str) -> None:
    """Give a message the id that a network would give it; a reply refers to it."""
    message.metadata.__dict__["_message_id"] = identifier


def quiet_flower() -> None:
    """Keep Flower's running commentary off the screen; its errors stay."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
