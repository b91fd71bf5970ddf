"""What a round costs beside the training: clients that only answer; and whether cost stays linear in clients."""

from collections.abc import Callable
from dataclasses import fields, replace
from statistics import median
from typing import Any

from benchmarks.common import Row, interleaved, ratio
from benchmarks.in_process import configure, random_images, time_rounds, with_data
from medx.federation.job import Setup
from medx.runtime.base import Runtime
from medx.schema import component
from medx.trainer.base import ClientUpdate
from medx.trainer.local_training import Trainer

CLIENTS = (5, 50, 500)
RECORDS = 32  # of every client, all of them in each of its steps


@component
class Idle(Trainer):
    """A trainer that sends back what it was given."""

    def train(self, **given: Any) -> ClientUpdate:  # type: ignore[override]
        """No step at all."""
        return ClientUpdate(dict(given["state"]), 0)


def set_up(clients: int, device: str, privacy: str) -> tuple[Setup, Runtime]:
    """A federation of the small CNN with 32 records at every client, one full-batch step a round."""
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
    figures = interleaved({name: part for clients in CLIENTS for name, part in parts(clients, device).items()}, repeats)
    rows = []
    for clients in CLIENTS:
        fixed = 1e3 * median(figures[f"idle {clients}"])
        note = f"{fixed:.1f} ms a round"
        rows.append(Row(f"fixed cost a client, {clients} clients, 60k", fixed / clients, "ms", 2.0, note))
    for clients in CLIENTS[1:]:
        growth = ratio(figures, f"private {clients}", f"private {CLIENTS[0]}") * CLIENTS[0] / clients
        micro = [1e6 * median(figures[f"private {count}"]) / (RECORDS * count) for count in (clients, CLIENTS[0])]
        note = f"{micro[0]:.0f} / {micro[1]:.0f} us"
        rows.append(Row(f"time a record, {clients} over {CLIENTS[0]} clients", growth, "x", 1.15, note))
    return rows


def parts(clients: int, device: str) -> dict[str, Callable[[], float]]:
    """Seconds of a round, idle and private; small federations are timed over more rounds."""
    idle, runtime = set_up(clients, device, "privacy=none")
    values = {field.name: getattr(idle.trainer, field.name) for field in fields(idle.trainer)}  # type: ignore[arg-type]
    idle = replace(idle, trainer=Idle(**values))
    private, _ = set_up(clients, device, "privacy=local_dp")
    count = max(1, 50 // clients)
    return {
        f"idle {clients}": lambda: median(time_rounds(idle, runtime, count)),
        f"private {clients}": lambda: median(time_rounds(private, runtime, count)),
    }
