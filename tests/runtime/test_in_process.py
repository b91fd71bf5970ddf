"""Clients in this process: each sees a copy, answers come in order, errors stay where they arise."""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from medx.federation.hospital_app import tell_refusal
from medx.runtime.in_process import TRY_AGAIN, InProcess, busy_workers
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


@pytest.mark.parametrize(
    ("cores", "clients", "workers"),
    [
        (2, 1, 1),
        (2, 2, 2),
        (2, 4, 2),
        (2, 5, 3),
        (2, 7, 4),
        (2, 13, 2),
        (2, 500, 2),
        (16, 5, 5),
        (16, 20, 20),
        (1, 5, 1),
    ],
)
def test_workers_keep_the_cores_busy_to_the_last_client(cores: int, clients: int, workers: int) -> None:
    assert busy_workers(cores, clients) == workers


def test_clients_take_turns_where_threads_do_not_pay_and_are_tried_together_again() -> None:
    most: list[int] = []
    now, lock = [0], threading.Lock()
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        with lock:
            now[0] += 1
            most[-1] = max(most[-1], now[0])
        if message.content.config_records["config"]["busy"]:
            end = time.thread_time() + 0.05
            while time.thread_time() < end:
                hashlib.sha256(bytes(10**6))  # works outside the interpreter's lock, as operations on tensors do
        else:
            time.sleep(0.05)  # waits, as threads do for that lock
        with lock:
            now[0] -= 1
        return Message(RecordDict(), reply_to=message)

    def server(grid: Grid, busy: bool, batches: int) -> list[int]:
        most.clear()
        for _ in range(batches):
            most.append(0)
            content = RecordDict({"config": ConfigRecord({"busy": busy})})
            list(grid.send_and_receive([Message(content, node, MessageType.TRAIN) for node in grid.get_node_ids()]))
        return most.copy()

    runtime = InProcess(timeout=None, workers=2)
    found: list[list[int]] = []
    runtime.run(app, 2, lambda grid: found.append(server(grid, busy=False, batches=TRY_AGAIN + 1)))
    assert found[0] == [2, *[1] * (TRY_AGAIN - 2), 2, 1]
    if (os.cpu_count() or 1) > 1:
        runtime.run(app, 2, lambda grid: found.append(server(grid, busy=True, batches=3)))
        assert found[1][0] == 2
