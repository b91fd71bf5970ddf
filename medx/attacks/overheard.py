"""What the server of a run receives, heard at the grid: the messages themselves, whatever the runtime."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from medx.federation.flower import to_record
from medx.federation.replies import config_of, integer_of
from medx.runtime.passing import PassingOn
from medx.trainer.state import ModelState

Hears = Callable[[Message, Message], None]  # a message and its answer
Lies = Callable[[int], ModelState]  # the model for a round, from 1


class Listener(Protocol):
    """Who listens to a run."""

    def hear(self, question: Message, answer: Message) -> None:
        """A message to a hospital, and its answer."""

    def see(self, before: ModelState, after: ModelState, number: int) -> None:
        """The model of the server before and after a round, which everybody gets."""


class Overheard(PassingOn):
    """A grid that tells ``hears`` of each message with its answer, and changes neither."""

    def __init__(self, grid: Grid, hears: Hears) -> None:
        super().__init__(grid)
        self._hears = hears

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Hand it on, and tell of each answer."""
        asked = list(messages)
        of_node = {message.metadata.dst_node_id: message for message in asked}
        for answer in self._grid.send_and_receive(asked, timeout=timeout):
            question = of_node.get(answer.metadata.src_node_id)
            if question is not None and answer.has_content():
                self._hears(question, answer)
            yield answer


class Lying(Overheard):
    """The grid of a server that sends every hospital another model than the one that it says it has."""

    def __init__(self, grid: Grid, hears: Hears, lies: Lies) -> None:
        super().__init__(grid, hears)
        self._lies = lies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send models that are not the round's, where hospitals are asked to train."""
        return super().send_and_receive([self._lied(message) for message in messages], timeout=timeout)

    def _lied(self, message: Message) -> Message:
        if message.metadata.message_type == MessageType.TRAIN:
            number = integer_of(config_of(message.content, "config"), "server-round")
            message.content = RecordDict({**message.content, "arrays": to_record(self._lies(number))})
        return message


def contents(message: Message) -> RecordDict:
    """A message's content, empty where it has none."""
    return message.content if message.has_content() else RecordDict()
