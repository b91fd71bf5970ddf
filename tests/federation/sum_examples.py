"""Sums of a linear model on random pixels, and a grid that loses chosen messages."""

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from flwr.app import Message
from hydra.utils import instantiate
from torch import nn

from medx.aggregation import PlainAggregation, SecureAggregation
from medx.dataset import DataSplits, InputSpec, Split, content_hash
from medx.federation.hospital import Hospitals
from medx.federation.hospital_app import client_app
from medx.federation.hospital_sums import words_of
from medx.federation.prepared import Prepared, prepare
from medx.federation.server import Server
from medx.federation.setup import Job, Setup, make_job
from medx.federation.sums import CLIP, Position, with_sums
from medx.model.network import WholeNetwork
from medx.partition import Iid
from medx.runtime.in_process import InProcessGrid, Turns
from medx.trainer.state import ModelState

CONF = Path(__file__).parents[2] / "conf"
SIZE = 4
DIMENSION = SIZE * SIZE + 1
RECORDS = 60


@dataclass(frozen=True)
class Pixels:
    """Random images whose label shows in the mean."""

    num_train: int = RECORDS
    seed: int = 0

    def load(self) -> DataSplits:
        train, validation, test = (self.split(name, n) for name, n in ((0, self.num_train), (1, 30), (2, 40)))
        return DataSplits(
            name="pixels",
            title="random pixels",
            task="binary",
            class_names=("dark", "light"),
            train=train,
            validation=validation,
            test=test,
            md5=None,
            content_hash=content_hash(train, validation, test),
            synthetic=True,
            mean=(0.5,),
            std=(0.5,),
        )

    def split(self, name: int, count: int) -> Split:
        generator = np.random.default_rng([self.seed, name])
        labels = generator.integers(0, 2, count)
        images = generator.integers(0, 200, (count, SIZE, SIZE, 1)) + 50 * labels[:, None, None, None]
        return Split(images.astype(np.uint8), labels.astype(np.int64))


@dataclass(frozen=True)
class Linear(WholeNetwork):
    """One logit; weights start at zero."""

    def build(self, spec: InputSpec, seed: int) -> nn.Module:
        layer = nn.Linear(spec.num_channels * spec.image_size**2, 1)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        return nn.Sequential(nn.Flatten(), layer)


def option(group: str, name: str, **changes: Any) -> Any:
    """The component of an option's yaml with some keys changed."""
    content = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    content = content.get(group, content)
    if group == "federation":
        content = yaml.safe_load((CONF / group / "_base.yaml").read_text()) | content
    content.pop("defaults", None)
    return instantiate(content | changes)


TRAINER = {"expected_batch_size": None, "learning_rate": 0.5, "micro_batch_size": 64}
SUMMED = {"distributed_dp": {"local_steps": 1, "share_momentum": False}, "central_dp": {"share_momentum": False}}


def make(
    folder: Path,
    *,
    privacy: str = "distributed_dp",
    secure: bool = True,
    clients: int = 5,
    rounds: int = 3,
    federation: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    mechanism: dict[str, Any] | None = None,
    aggregation: dict[str, Any] | None = None,
    dataset: Pixels | None = None,
    seed: int = 0,
    draw_key: str = "sums",
) -> Job:
    """A job with its sums worked out."""
    dataset = dataset or Pixels()
    own: dict[str, Any] = {} if privacy == "none" else {"delta": 1e-3, "noise_source": "seed"}
    if privacy == "distributed_dp":
        own |= {"trusted_aggregator": not secure}
    summed = option("aggregation", "secure" if secure else "plain", **(aggregation or {}))
    assert isinstance(summed, SecureAggregation if secure else PlainAggregation)
    given = {"name": "fedavg", "num_clients": clients, "num_rounds": rounds, "evaluate_every": rounds}
    given |= federation or {}
    setup = Setup(
        seed=seed,
        device="cpu",
        dataset=dataset,
        partition=Iid(min_records=1, allow_empty=False),
        model=Linear(),
        trainer=option("trainer", "cnn", **(TRAINER | SUMMED.get(privacy, {}) | (trainer or {}))),
        privacy=option("privacy", privacy, **(own | (mechanism or {}))),
        federation=option("federation", str(given.pop("name")), **given),
        aggregation=summed,
        cache=folder / "cache",
        data_key=f"{dataset}-{clients}-{seed}",
        draw_key=draw_key,
    )
    return with_sums(make_job(setup, prepare(setup).declared, folder.as_posix(), folder))


SITES: dict[str, Hospitals] = {}


def site_of(job: Job) -> Hospitals:
    """The hospitals of a job in these tests, until they are forgotten."""
    if job.run_id not in SITES or SITES[job.run_id].job is not job:
        forget(job)
        SITES[job.run_id] = Hospitals(job, prepare(job.setup))
    return SITES[job.run_id]


def forget(job: Job) -> None:
    """Close what the job's hospitals keep."""
    if site := SITES.pop(job.run_id, None):
        site.close()


def prepared_of(job: Job) -> Prepared:
    return site_of(job).prepared


Lost = Callable[[str, int, Position], bool]


class LossyGrid(InProcessGrid):
    """Loses the requests that ``lost(stage, client, position)`` names, or the replies that ``mute`` names."""

    def __init__(self, job: Job, turns: Turns, lost: Lost, mute: Lost) -> None:
        super().__init__(client_app(site_of(job)), job.setup.num_clients, turns)
        self.lost, self.mute = lost, mute
        self.seen: list[tuple[str, int, Message]] = []
        self.rewrite: Callable[[str, int, Message], Message] = lambda stage, client, message: message

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Iterator[Message]:
        for message in messages:
            client = message.metadata.dst_node_id - 2
            stage = message.metadata.message_type.rpartition(".")[2]
            config = message.content.config_records.get("config")
            position = Position(*config["position"]) if config and "position" in config else Position(0, 0)
            if self.lost(stage, client, position):
                continue
            for reply in super().send_and_receive([self.rewrite(stage, client, message)]):
                self.seen.append((stage, client, copy.deepcopy(reply)))
                if not self.mute(stage, client, position):
                    yield reply

    def deliver(self, messages: Any) -> Any:
        """Past all losses."""
        return super().send_and_receive(messages)

    def state_of(self, client: int) -> Any:
        """What Flower keeps for one client between messages."""
        return self._contexts[client + 2].state


def never(stage: str, client: int, position: Position) -> bool:
    return False


@contextmanager
def grid_of(job: Job, lost: Lost = never, mute: Lost = never) -> Iterator[LossyGrid]:
    """A grid of the job's clients, closed and forgotten at the end."""
    with ThreadPoolExecutor(1) as pool:
        try:
            yield LossyGrid(job, Turns(pool, pool), lost, mute)
        finally:
            forget(job)


def server_of(job: Job) -> Server:
    site = site_of(job)
    return Server(job, site.recorded, lambda record: None, None, site.prepared)


def run(job: Job, lost: Lost = never, mute: Lost = never) -> list[Any]:
    """The server's states, one a round, the initial one first; what stops the run comes out of here."""
    server = server_of(job)
    states = [server.initial_state()]
    with grid_of(job, lost, mute) as grid:
        states += list(server.rounds(grid, states[0]))
    return states


def same(first: Any, second: Any) -> bool:
    """Bit by bit, of models or of tensors by name."""
    one, other = (state.tensors() if isinstance(state, ModelState) else state for state in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def model_of(job: Job) -> ModelState:
    """The initial model as clients receive it: a server that takes the step keeps its momentum to itself."""
    state = server_of(job).initial_state().state
    return state if job.sends_momentum else state.without_momentum()


def words(job: Job, client: int, round: int, attempt: int = 0, **settings: float) -> np.ndarray:
    """One client's words at the initial model."""
    return words_of(site_of(job).hospital(client), model_of(job), Position(round, attempt), settings.get(CLIP))
