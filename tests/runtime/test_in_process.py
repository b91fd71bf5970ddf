"""Clients in this process: each sees a copy, answers come in order, errors stay where they arise."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from medx.federation.client import tell_refusal
from medx.runtime.in_process import InProcess
from medx.schema import LedgerError


def serve(answer: Callable[[Message, Context], RecordDict], num_clients: int, workers: int = 2) -> list[Message]:
    """The replies of these clients to one message each."""
    app = ClientApp(mods=[tell_refusal])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(answer(message, context), reply_to=message)

    replies: list[Message] = []

    def server(grid: Grid) -> None:
        shared = RecordDict({"arrays": ArrayRecord({"w": torch.zeros(3)}), "config": ConfigRecord({"n": 0})})
        messages = [Message(shared, node, MessageType.TRAIN) for node in grid.get_node_ids()]
        replies.extend(grid.send_and_receive(messages))
        assert shared.config_records["config"]["n"] == 0
        assert list(shared.array_records["arrays"]) == ["w"]

    InProcess(timeout=None, workers=workers).run(app, num_clients, server)
    return replies


def index(context: Context) -> int:
    return int(context.node_config["partition-id"])


def test_no_client_sees_what_another_did_to_its_message() -> None:
    def answer(message: Message, context: Context) -> RecordDict:
        assert message.content.config_records["config"]["n"] == 0
        message.content.config_records["config"]["n"] = index(context) + 1
        del message.content.array_records["arrays"]["w"]
        return message.content

    replies = serve(answer, 4)
    assert [reply.content.config_records["config"]["n"] for reply in replies] == [1, 2, 3, 4]


def test_replies_come_in_the_order_of_the_messages_and_clients_work_at_once() -> None:
    together = threading.Barrier(2, timeout=20)

    def answer(message: Message, context: Context) -> RecordDict:
        together.wait()  # passes only where two clients are at work
        time.sleep(0.05 if index(context) == 0 else 0)
        return RecordDict({"reply": ConfigRecord({"client": index(context)})})

    replies = serve(answer, 2)
    assert [reply.content.config_records["reply"]["client"] for reply in replies] == [0, 1]


def test_an_error_is_that_client_s_answer() -> None:
    def answer(message: Message, context: Context) -> RecordDict:
        if index(context) == 1:
            raise RuntimeError("no power")
        if index(context) == 2:
            raise LedgerError("budget=1 would be exceeded")
        return RecordDict()

    replies = serve(answer, 4)
    assert [reply.has_error() for reply in replies] == [False, True, True, False]
    assert replies[1].error.reason == "RuntimeError: no power"
    assert replies[2].error.reason == "LedgerError: budget=1 would be exceeded"


def test_after_an_interrupt_no_further_client_begins() -> None:
    begun: list[int] = []
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        begun.append(index(context))
        time.sleep(0.05)
        return Message(RecordDict(), reply_to=message)

    def server(grid: Grid) -> None:
        replies: Iterator[Any] = iter(
            grid.send_and_receive([Message(RecordDict(), node, MessageType.TRAIN) for node in grid.get_node_ids()])
        )
        next(replies)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        InProcess(timeout=None, workers=1).run(app, 12, server)
    assert len(begun) < 6
