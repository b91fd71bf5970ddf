"""Replies of clients, each of which may be anything: a valid answer, or that client's failure, and nothing besides.

What a client says about why it fails is a code, never a text, and goes no further than its silence would. That its
budget is spent, or that it abstains, costs it its place in the round. Whom it accuses is left out of the next attempt
only where so many accuse that without them there could have been no sum anyway.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from medx.aggregation.wire import ProtocolError
from medx.schema import LedgerError, MedxError

log = logging.getLogger(__name__)
T = TypeVar("T")
SHOWN = 300  # characters of what a client says


class Code(IntEnum):
    """Why a client has no answer; below 1000 are Flower's own codes, all of them FAILED to us."""

    FAILED = 1000
    REFUSED = 1001  # a MedxError of another kind
    LEDGER = 1002  # its budget does not allow this
    ABSTAINED = 1003  # its gradient or update is not finite, or beyond the grid
    MALFORMED = 1004  # what it sent is no answer to the question
    SILENT = 1005  # nothing came in time
    ACCUSES = 2000  # and more: it refuses what the client of this number less 2000 sent through the server


class ReplyError(MedxError):
    """What a client sent is no answer to what it was asked."""


@dataclass(frozen=True)
class Failure:
    """One client's failure. ``accused`` is the client whose part it refuses."""

    client: int
    code: Code
    text: str
    accused: int | None = None

    def __str__(self) -> str:
        return self.text


def error_of(error: MedxError, code: int) -> Error:
    """What a client's reply tells of its refusal."""
    if isinstance(error, ProtocolError) and isinstance(error.sender, int):
        code = Code.ACCUSES + error.sender
    if isinstance(error, LedgerError):
        code = Code.LEDGER
    return Error(code, f"{type(error).__name__}: {error}")


def failure_of(client: int, error: Error) -> Failure:
    """The failure that a reply tells of; an unknown code is one like any other."""
    code = error.code if isinstance(error.code, int) else 0
    text = line_of(error.reason)
    if code >= Code.ACCUSES:
        return Failure(client, Code.ACCUSES, text, code - Code.ACCUSES)
    return Failure(client, Code(code) if code in set(Code) else Code.FAILED, text)


def line_of(text: object) -> str:
    """The first line of what a client says, of bounded length, without what a terminal would obey."""
    first = next(iter(str(text)[: 4 * SHOWN].splitlines()), "")
    return "".join(letter if letter.isprintable() else "?" for letter in first)[:SHOWN]


def ask(
    grid: Grid,
    messages: Iterable[Message],
    clients: Mapping[int, int],
    timeout: float | None,
    read: Callable[[int, RecordDict], T],
) -> tuple[dict[int, T], list[Failure]]:
    """Valid answers by client, in the order of clients, and the failures of those that gave none.

    ``clients`` says whose a node is: who the sender is comes from the node, not from what it says. ``read`` takes
    (client, content) and raises ReplyError for what is no answer. A node's second answer is dropped, and so is all that
    comes from a node that was not asked; a late or malformed one is dropped while a valid one may still come.
    """
    answers: dict[int, T] = {}
    failed: dict[int, Failure] = {}
    asked = list(messages)
    for reply in grid.send_and_receive(asked, timeout=timeout) if asked else ():
        node = reply.metadata.src_node_id
        client = clients.get(node)
        if client is None or client in answers:
            log.warning("an answer of node %s was dropped: it has answered, or was not asked", node)
        elif reply.has_error():
            failed[client] = failure_of(client, reply.error)
        else:
            try:
                answers[client] = read(client, reply.content if reply.has_content() else RecordDict())
            except ReplyError as error:
                log.warning("an answer of node %s was dropped: %s", node, line_of(error))
                failed.setdefault(client, Failure(client, Code.MALFORMED, line_of(error)))
    for message in asked:
        client = clients[message.metadata.dst_node_id]
        late = f"no answer of client {client} in time" + ("" if timeout is None else f" (runtime.timeout={timeout:g})")
        failed.setdefault(client, Failure(client, Code.SILENT, late))
    return (
        {client: answers[client] for client in sorted(answers)},
        [failed[client] for client in sorted(failed) if client not in answers],
    )


def first_of(failed: Iterable[Failure]) -> str:
    """``; the first failure: ...`` for the end of an error: one that was told, if there is any."""
    told = sorted(failed, key=lambda failure: failure.code == Code.SILENT)
    return f"; the first failure: {told[0]}" if told else ""


def refuse_exhausted(asked: int, failed: Sequence[Failure], needed: int) -> None:
    """Raise LedgerError where ``needed`` of those asked would be there, but for those whose budget is spent."""
    spent = {failure.client: failure for failure in failed if failure.code == Code.LEDGER}
    others = {failure.client for failure in failed} - spent.keys()
    if spent and asked - len(others) >= needed:
        raise LedgerError(spent[min(spent)].text.removeprefix("LedgerError: "))


def integer_of(record: Mapping[str, object], key: str) -> int:
    """A whole number; raises ReplyError where there is none."""
    value = record.get(key)
    if type(value) is not int:
        raise ReplyError(f"{key} is {str(value)[:50]!r} in an answer; accepted: a whole number")
    return value


def config_of(content: RecordDict, name: str) -> ConfigRecord:
    """The record of settings of this name; raises ReplyError where there is none."""
    record = content.get(name)
    if not isinstance(record, ConfigRecord):
        raise ReplyError(f"an answer without its record {name}")
    return record
