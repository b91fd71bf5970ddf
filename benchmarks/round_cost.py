"""What a round costs beside the training: clients that only answer; and whether cost stays linear in clients."""

from dataclasses import fields, replace
from statistics import median
from typing import Any

from benchmarks.common import Row
from benchmarks.in_process import configure, random_images, time_rounds, with_data
from medx.federation.job import Setup
from medx.runtime.base import Runtime
from medx.schema import component
from medx.trainer.base import ClientUpdate
from medx.trainer.local_training import Trainer

CLIENTS = (5, 50, 500)
RECORDS = 64  # of every client, all of them in each of its steps


@component
class Idle(Trainer):
    """A trainer that sends back what it was given."""

    def train(self, **given: Any) -> ClientUpdate:  # type: ignore[override]
        """No step at all."""
        return ClientUpdate(dict(given["state"]), 0)


def set_up(clients: int, device: str, privacy: str) -> tuple[Setup, Runtime]:
    """A federation of the small CNN with 64 records at every client, one full-batch step a round."""
    setup, runtime = configure(
        [
            f"device={device}",
            "model=cnn",
            privacy,
            f"federation.num_clients={clients}",
            "federation.num_rounds=1000",
            "federation.evaluate_every=1000",
            "trainer.local_steps=1",
            "trainer.expected_batch_size=null",
            "trainer.share_momentum=false",
        ]
    )
    return with_data(setup, random_images(RECORDS * clients)), runtime


def measure(repeats: int, device: str) -> list[Row]:
    """Milliseconds a client for clients that do nothing, and for one private step, at 5, 50 and 500 clients."""
    rows, per_record = [], {}
    for clients in CLIENTS:
        setup, runtime = set_up(clients, device, "privacy=none")
        values = {field.name: getattr(setup.trainer, field.name) for field in fields(setup.trainer)}  # type: ignore[arg-type]
        idle = replace(setup, trainer=Idle(**values))
        count = max(repeats, 50 // clients)
        fixed = 1e3 * median(time_rounds(idle, runtime, count))
        note = f"{fixed:.1f} ms a round"
        rows.append(Row(f"fixed cost a client, {clients} clients, 60k", fixed / clients, "ms", 2.0, note))
        private, runtime = set_up(clients, device, "privacy=local_dp")
        per_record[clients] = 1e6 * median(time_rounds(private, runtime, count)) / (RECORDS * clients)
    few = per_record[CLIENTS[0]]
    for clients, value in per_record.items():
        target = None if clients == CLIENTS[0] else 1.15
        rows.append(Row(f"time a record, {clients} clients over 5", value / few, "x", target, f"{value:.0f} us"))
    return rows
