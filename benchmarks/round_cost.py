"""What a round costs beside the training: clients that only answer; and whether cost stays linear in clients."""

from collections.abc import Callable
from dataclasses import fields, replace
from statistics import median
from typing import Any
from unittest.mock import patch

from benchmarks.common import Row, interleaved, ratio
from benchmarks.in_process import configure, random_images, time_rounds, with_data
from medx.federation.setup import Setup
from medx.runtime import Runtime
from medx.schema import component
from medx.trainer.local_training import ClientUpdate, Trainer

CLIENTS = (5, 50, 500)
MANY, DRAWN = 1000, 20  # clients, and how many of them a round draws
RECORDS = 32  # of every client, all of them in each of its steps
STEPS = (4, 1)  # of a client in a round; the target is for the first, with a round long enough to be one


@component
class Idle(Trainer):
    """A trainer that sends back what it was given."""

    def train(self, **given: Any) -> ClientUpdate:  # type: ignore[override]
        """No step at all."""
        return ClientUpdate(given["state"])


def set_up(clients: int, device: str, privacy: str, steps: int = 1, drawn: float = 1.0) -> tuple[Setup, Runtime]:
    """A federation of the small CNN with 32 records at every client, ``steps`` full-batch steps a round.

    A round draws the fraction ``drawn`` of the clients.
    """
    setup, runtime = configure(
        [
            f"device={device}",
            "model=cnn",
            privacy,
            f"federation.num_clients={clients}",
            f"federation.fraction_clients={drawn}",
            "federation.num_rounds=1000",
            "federation.evaluate_every=1000",
            f"trainer.local_steps={steps}",
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
    for steps in STEPS:
        for clients in CLIENTS[1:]:
            few, many = (f"private {count} {steps}" for count in (CLIENTS[0], clients))
            growth = ratio(figures, many, few) * CLIENTS[0] / clients
            counts = {many: clients, few: CLIENTS[0]}
            micro = [1e6 * median(figures[name]) / (RECORDS * steps * count) for name, count in counts.items()]
            name = f"time a record, {clients} over {CLIENTS[0]} clients, {steps} step(s)"
            rows.append(
                Row(name, growth, "x", 1.15 if steps == STEPS[0] else None, f"{micro[0]:.0f} / {micro[1]:.0f} us")
            )
    return rows


def parts(clients: int, device: str) -> dict[str, Callable[[], float]]:
    """Seconds of a round, idle and private; small federations are timed over more rounds."""
    idle, runtime = set_up(clients, device, "privacy=none")
    values = {field.name: getattr(idle.trainer, field.name) for field in fields(idle.trainer)}  # type: ignore[arg-type]
    idle = replace(idle, trainer=Idle(**values))
    private = {steps: set_up(clients, device, "privacy=local_dp", steps)[0] for steps in STEPS}
    count = max(1, 50 // clients)
    timed: dict[str, Setup] = {f"idle {clients}": idle}
    timed |= {f"private {clients} {steps}": setup for steps, setup in private.items()}
    return {name: lambda setup=setup: median(time_rounds(setup, runtime, count)) for name, setup in timed.items()}


def measure_drawn(repeats: int, device: str) -> list[Row]:
    """Milliseconds a drawn client: all that a round does for it, ledger and trainer included, but for private steps."""
    setup, runtime = set_up(MANY, device, "privacy=local_dp", drawn=DRAWN / MANY)
    fixed, busy = [], []
    for _ in range(repeats):
        cpu: list[float] = []
        with patch("medx.trainer.module.ClassificationModule.take_step", lambda module, *batch: None):
            times = time_rounds(setup, runtime, DRAWN, cpu)
        fixed.append(1e3 * median(times) / DRAWN)
        busy.append(1e3 * median(cpu) / DRAWN)
    name, note = f"fixed cost a drawn client, {DRAWN} of {MANY}", f"least {min(fixed):.1f} ms, CPU {min(busy):.1f} ms"
    return [Row(name, median(fixed), "ms", 5.0, note)]
