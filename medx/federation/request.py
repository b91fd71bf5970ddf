"""What a server's message asks of a client, read strictly: what is not of the expected form ends before any data.

The other side may send anything. What a client does follows from its own configuration; a message gives it the model,
the place in the plan, and the bytes of the protocol, and nothing else is read.
"""

from collections.abc import Sequence

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from medx.aggregation.wire import ProtocolError, Reason
from medx.federation.job import Job
from medx.federation.payload import signature_of, well_formed

Signature = dict[str, tuple[str, tuple[int, ...]]]
SERVER = "server"


def config_of(content: RecordDict) -> ConfigRecord:
    """The message's settings; raises ProtocolError where it has none."""
    config = content.get("config")
    if not isinstance(config, ConfigRecord):
        raise ProtocolError(Reason.MALFORMED, SERVER, "a message without its record config")
    return config


def data_of(content: RecordDict) -> bytes:
    """The bytes of the protocol's own message."""
    data = config_of(content).get("data")
    if not isinstance(data, bytes):
        raise ProtocolError(Reason.MALFORMED, SERVER, "a message without bytes as its data")
    return data


def round_of(job: Job, content: RecordDict) -> int:
    """Which round of the plan a plain message asks for, counted from 1."""
    return _in_plan(job, [config_of(content).get("server-round")], 1)[0]


def position_of(job: Job, content: RecordDict, attempts: int) -> tuple[int, int]:
    """Which round, counted from 1, and which of its ``attempts``, counted from 0."""
    position = config_of(content).get("position")
    if not isinstance(position, list) or len(position) != 2:
        raise ProtocolError(Reason.MALFORMED, SERVER, "a position that is not a round and an attempt")
    number, attempt = _in_plan(job, position, attempts)
    return number, attempt


def model_of(content: RecordDict, expected: Signature) -> ArrayRecord:
    """The model in the message, which must have exactly the layouts, types and lengths that are trained here."""
    arrays = content.get("arrays")
    if not isinstance(arrays, ArrayRecord) or signature_of(arrays) != expected or not well_formed(arrays):
        raise ProtocolError(Reason.MODEL, SERVER, "its tensors are not those of the model that is configured here")
    return arrays


def _in_plan(job: Job, position: Sequence[object], attempts: int) -> list[int]:
    numbers = [value for value in position if type(value) is int]
    limits = ((1, job.setup.federation.num_rounds), (0, attempts - 1))
    if len(numbers) < len(position) or not all(
        low <= number <= high for number, (low, high) in zip(numbers, limits, strict=False)
    ):
        rounds = job.setup.federation.num_rounds
        raise ProtocolError(
            Reason.POSITION, SERVER, f"round and attempt {list(position)} of {rounds} rounds with {attempts} attempts"
        )
    return numbers
