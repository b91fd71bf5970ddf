"""What a server receives of one hospital in a run, by the bytes on the wire: gradients, or what it takes for them.

Beside the bytes only what is public is used: the model that went out, and the configuration.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType

from medx.aggregation.messages import Masked
from medx.attacks.few_records import FewRecords
from medx.attacks.listening import listen
from medx.attacks.overheard import Lies, contents
from medx.configuration import typed
from medx.experiment import make_setup
from medx.federation.flower import from_record
from medx.federation.hospital import SERVER
from medx.federation.ledgers import check_ledgers
from medx.federation.prepared import Prepared, prepare
from medx.federation.replies import integer_of
from medx.federation.setup import Job, draw_key, make_job
from medx.federation.sums import with_sums
from medx.trainer.state import ModelState

# A step is the gradient times the rate, and nothing else, so that what moved is the gradient.
ONE_STEP = (
    "tracking=none", "partition=site", "trainer.local_steps=1", "trainer.expected_batch_size=null",
    "trainer.optimizer=sgd", "trainer.momentum=0", "trainer.share_momentum=false", "trainer.schedule=constant",
    "trainer.ema_decay=0", "federation.min_clients=1",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One round: the model that went out, and the mean gradient ``float64 [layout.size]`` that the server reads."""

    number: int
    model: ModelState
    gradient: np.ndarray


@dataclass
class Received:
    """What hospital 0 sent, round by round, and what the sum of all came to.

    ``own`` are its updates, or under secure aggregation its masked words read as if they were not masked; ``words``
    are those words. ``total`` is what the model moved by, which everybody sees.
    """

    job: Job
    prepared: Prepared
    data: FewRecords
    own: list[Step] = field(default_factory=list)
    total: list[Step] = field(default_factory=list)
    words: list[np.ndarray] = field(default_factory=list)
    claimed: float | None = None

    def hear(self, question: Message, answer: Message) -> None:
        """A message to a hospital, and its answer."""
        kind, content = question.metadata.message_type, contents(answer)
        if kind == MessageType.TRAIN:
            metrics = content["metrics"]
            if integer_of(metrics, "client") == 0:  # type: ignore[arg-type]
                sent, came = (self._state(message) for message in (question, answer))
                self._take(sent, (sent.parameters.astype(np.float64) - came.parameters) / self._rate)
        elif kind == "train.masked":
            reply = content["reply"]
            assert isinstance(reply, ConfigRecord)
            masked = Masked.from_bytes(reply["data"], SERVER)  # type: ignore[arg-type]
            if masked.sender == 0:
                self.words.append(masked.words)

    def see(self, before: ModelState, after: ModelState, number: int) -> None:
        """A round's model before and after it."""
        moved = (before.parameters.astype(np.float64) - after.parameters) / self._rate
        self.total.append(Step(number, before, moved))
        if self.job.sums is not None and len(self.own) < len(self.words):
            self._take(before, self._read(self.words[-1]))

    def _read(self, words: np.ndarray) -> np.ndarray:
        """Words as the mean gradient that they would be without a mask."""
        sums, plan = self.job.sums, self.job.plan.clients[0]
        assert sums is not None
        vector, _ = sums.layout.decode(words)
        if sums.kind == "gradient":
            return vector / plan.expected_batch_size
        weight = plan.num_records / sum(other.num_records for other in self.job.plan.clients)
        return -vector / weight / self._rate

    def _take(self, model: ModelState, gradient: np.ndarray) -> None:
        self.own.append(Step(len(self.own) + 1, model, gradient))

    @property
    def _rate(self) -> float:
        return self.job.setup.trainer.learning_rate_for(self.job.plan.clients[0])

    def _state(self, message: Message) -> ModelState:
        return from_record(contents(message).get("arrays"), self.job.layout, momentum=self.job.sends_momentum)


def receive(
    config: Mapping[str, Any],
    folder: Path,
    *,
    records: int,
    others: int,
    seed: int = 0,
    lies: Callable[["Received"], Lies] | None = None,
) -> Received:
    """Run the composed ``config`` with so many records at hospital 0 and at each other, and listen at the server.

    ``lies`` makes the models that a lying server sends, of what it knows before any round.
    """
    given = {"resume": None} | dict(config)
    experiment = typed(given).experiment
    data = FewRecords(experiment.dataset, records, others, experiment.federation.num_clients, seed)
    named = given | {"dataset": given["dataset"] | dict(data.described)}
    experiment = replace(experiment, dataset=data)
    folder.mkdir(parents=True, exist_ok=True)
    setup = make_setup(experiment, named, draw_key(named))
    prepared = prepare(setup)
    job = with_sums(make_job(setup, prepared.declared, uuid.uuid4().hex, folder))
    check_ledgers(job)
    received = Received(job, prepared, data)
    received.claimed = listen(experiment, job, prepared, received, lies(received) if lies else None)
    return received
