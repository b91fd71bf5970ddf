"""One run as every process sees it: what is configured, and the data dealt to the clients."""

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from medx.aggregation import Aggregation
from medx.aggregation.ring import Layout
from medx.aggregation.roster import Roster
from medx.dataset import FEATURE_VALUE, Dataset, DataSplits, InputSpec, refuse_beyond_memory
from medx.dataset.checks import check_splits
from medx.dataset.labels import strata
from medx.federation.checkpoint import ServerState
from medx.federation.strategies import Federation
from medx.model import FixedFeatures, Model, Objective
from medx.model.storage import cached_features
from medx.output import say
from medx.partition import Partition
from medx.privacy.base import Exposure, PatientImages, PrivacyMechanism, PrivacyPlan
from medx.privacy.units import PATIENT
from medx.randomness import NUMERICS, Key, derive_key, derive_seed, numpy_generator, system_key
from medx.schema import CheckpointError, DataError
from medx.trainer.local_training import Trainer
from medx.trainer.state import ModelLayout, trained_parameters

log = logging.getLogger(__name__)
ON_A_GPU = 1024  # images at once that a GPU has memory for; pieces are halved where it has not


@dataclass(frozen=True)
class Setup:
    """The configured components that data and clients follow from. Picklable, so that it can go to a worker.

    Its ``repr`` shows no seed: with noise of the seed, who has it can take the noise off.
    ``only_client`` and ``pooled`` make the baselines: one hospital alone, or all records in one place.
    """

    seed: int = field(repr=False)
    device: str
    dataset: Dataset
    partition: Partition
    model: Model
    trainer: Trainer
    privacy: PrivacyMechanism
    federation: Federation
    aggregation: Aggregation
    cache: Path
    data_key: str = field(repr=False)
    draw_key: str
    only_client: int | None = None
    pooled: bool = False

    @property
    def num_clients(self) -> int:
        """How many clients this run has; one for the baselines."""
        return 1 if self.pooled or self.only_client is not None else self.federation.num_clients

    @property
    def variant(self) -> tuple[Key, ...]:
        """Tells the baselines' draws from those of the run."""
        if self.pooled:
            return ("pooled",)
        return () if self.only_client is None else ("alone", self.only_client)


@dataclass(frozen=True)
class SumPlan:
    """One job's sums. ``noise_stddev`` is a client's share in grid units, 0 where updates carry noise already.

    ``server_noise_stddev`` is what a trusted server adds to the sum, in grid units. ``roster`` and ``identities`` (raw
    Ed25519 keys, one trust domain) are None where the sum is in the clear.
    """

    kind: Literal["gradient", "update", "clipped_update"]
    layout: Layout
    noise_stddev: int = 0
    server_noise_stddev: int = 0
    roster: Roster | None = None
    identities: tuple[bytes, ...] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Job:
    """A set-up with its plan and a place to write: all that a client or the server needs to start.

    ``layout`` is that of the model that is trained. ``run_id`` is the id in the run's folder. ``charged`` are, of a run
    that is gone on with, the clients that had reserved it, each with the fewest releases that its ledger must show.
    ``sums`` is None where updates go in the clear; see ``sums.with_sums``.
    """

    setup: Setup
    plan: PrivacyPlan
    layout: ModelLayout
    run_id: str
    folder: Path
    resumed: bool
    sums: SumPlan | None = None
    charged: Mapping[int, int] = field(default_factory=dict)

    @property
    def sends_momentum(self) -> bool:
        """Whether clients get and answer the momentum: a server that takes the step keeps it to itself."""
        return self.setup.trainer.share_momentum and not self._steps_at_server

    @property
    def keeps_momentum(self) -> bool:
        """Whether the momentum is a part of the server's state."""
        return self.sends_momentum or (self._steps_at_server and self.setup.trainer.momentum > 0)

    @property
    def _steps_at_server(self) -> bool:
        return self.sums is not None and self.sums.kind == "gradient"


@dataclass(frozen=True)
class Prepared:
    """Data in memory: model inputs (images, or fixed features of them) of every split, and the clients' rows."""

    splits: DataSplits = field(repr=False)
    parts: tuple[np.ndarray, ...] = field(repr=False)
    inputs: dict[str, torch.Tensor] = field(repr=False)
    labels: dict[str, torch.Tensor] = field(repr=False)
    objective: Objective
    features: FixedFeatures | None = field(repr=False)

    @property
    def spec(self) -> InputSpec:
        """Shape and task of the images."""
        return self.splits.spec

    @cached_property
    def digest(self) -> str:
        """Of the training records, whose they are, and which client has which."""
        total = hashlib.sha256(self.splits.train.digest)
        for part in self.parts:
            total.update(np.ascontiguousarray(part, "<i8").tobytes() + b"|")
        return total.hexdigest()

    def client(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One client's training inputs ``[n, ...]`` and labels ``[n]``."""
        rows = torch.from_numpy(self.parts[index])
        return self.inputs["train"][rows], self.labels["train"][rows]

    def num_records(self) -> tuple[int, ...]:
        """Records a client, declared to everybody."""
        return tuple(len(part) for part in self.parts)

    def patients(self, index: int) -> np.ndarray | None:
        """A client's patients, a number a record ``int64 [n]``; None where the data set does not tell them."""
        known = self.splits.train.patients
        return None if known is None else known[self.parts[index]]

    def test_rows(self, index: int) -> np.ndarray | None:
        """A client's own test rows, where the clients are the hospitals of the data; None where they are not."""
        train, test = self.splits.train.hospitals, self.splits.test.hospitals
        if train is None or test is None:
            return None
        own = [np.unique(train[part]) for part in self.parts]
        if any(len(each) != 1 for each in own) or len(np.unique(np.concatenate(own))) < len(own):
            return None
        return np.flatnonzero(test == own[index][0])

    def patient_images(self) -> tuple[PatientImages, ...]:
        """The most images of a patient at each hospital, for each set of hospitals that patients are at."""
        if self.splits.train.patients is None:
            return ()
        images: dict[int, dict[int, int]] = {}
        for client, part in enumerate(self.parts):
            numbers, counts = np.unique(self.splits.train.patients[part], return_counts=True)
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                images.setdefault(number, {})[client] = count
        most: dict[tuple[int, ...], dict[int, int]] = {}
        for each in images.values():
            known = most.setdefault(tuple(each), {})
            known |= {client: max(count, known.get(client, 0)) for client, count in each.items()}
        return tuple(tuple(sorted(known.items())) for _, known in sorted(most.items()))

    def dealt(self, setup: Setup) -> "Prepared":
        """The same data dealt as a baseline has them: all to one, or one hospital's alone."""
        if setup.pooled:
            return replace(self, parts=(np.arange(len(self.splits.train)),))
        return self if setup.only_client is None else replace(self, parts=(self.parts[setup.only_client],))


_PREPARED: OrderedDict[str, Prepared] = OrderedDict()
_KEEP = 2  # jobs of one process share data; more than two data sets in memory would only cost memory


def prepare(setup: Setup) -> Prepared:
    """Load, verify, transform and deal the data, once for a run, which hands them on, and for the next that wants them.

    Not only for its speed: the last bits of a product move with where its factors lie in memory.
    """
    if setup.data_key not in _PREPARED:
        try:
            _PREPARED[setup.data_key] = _load(setup)
        except MemoryError as error:
            raise DataError(f"dataset: memory ran out ({error}); accepted: fewer or smaller images") from error
        while len(_PREPARED) > _KEEP:
            _PREPARED.popitem(last=False)
    return _PREPARED[setup.data_key].dealt(setup)


def _load(setup: Setup) -> Prepared:
    say("preparing: the data set")
    splits = setup.dataset.load()
    check_splits(splits)
    generator = numpy_generator(derive_seed(setup.seed, "partition"))
    spec = splits.spec
    train, clients = splits.train, setup.federation.num_clients
    told = {"patients": train.patients, "hospitals": train.hospitals}
    known = {name: numbers for name, numbers in told.items() if numbers is not None}
    kinds = spec.num_classes + (spec.task == "multilabel")  # and records that have none of the labels
    parts = setup.partition.split(strata(train.labels), kinds, clients, generator, **known)
    features = setup.model.features(spec)
    if features is not None:
        _check_memory(splits, features)
    inputs, labels = {}, {}
    for name, split in (("train", splits.train), ("validation", splits.validation), ("test", splits.test)):
        if features is None:
            inputs[name] = splits.to_tensor(split.images)
        else:
            inputs[name] = cached_features(features, split.images, splits.to_tensor, setup.cache)
        labels[name] = torch.from_numpy(split.labels.astype(np.int64))
    return Prepared(splits, tuple(parts), inputs, labels, setup.model.objective(spec), features)


def _check_memory(splits: DataSplits, features: FixedFeatures) -> None:
    """Refuse features that do not fit into memory, by those of one image."""
    with torch.no_grad():
        each = features(splits.to_tensor(splits.train.images[:1])).numel()
    images = len(splits.train) + len(splits.validation) + len(splits.test)
    what = f"model: {each} features of each of {images} images"
    refuse_beyond_memory(what, FEATURE_VALUE * each * images, "a model with fewer features, or fewer images")


def build_module(setup: Setup, prepared: Prepared) -> nn.Module:
    """The trainable module, initialised from the seed: the same in every process."""
    return setup.model.build(prepared.spec, derive_seed(setup.seed, "initialisation"))


def data_key(seed: int, **configs: Any) -> str:
    """What ``prepare`` depends on, as text."""
    return json.dumps({"seed": seed, **configs}, sort_keys=True, default=str)


def draw_key(config: dict[str, Any]) -> str:
    """Names what is trained and how updates are summed: one of the things by which secret draws are keyed.

    Two runs that add the same noise to different sums do not add up: their difference takes the noise off. So all of
    the configuration is in it but where things lie, also how a step is computed, which moves its last bits.
    """
    groups = ("dataset", "partition", "model", "trainer", "privacy", "federation", "aggregation")
    where = ("ledger", "budget", "roster", "root", "path", "csv")
    named = {group: {k: v for k, v in config[group].items() if k not in where} for group in groups}
    return hashlib.sha256(json.dumps(named, sort_keys=True, default=str).encode()).hexdigest()


def secret_key(job: Job, prepared: Prepared, purpose: str, *keys: Key) -> bytes:
    """The key of a draw that must stay secret: of sampling, noise or views. From the system, nobody makes it again.

    With ``noise_source=seed`` it follows from everything that changes what is drawn for: seed, configuration, data, the
    versions and the device that compute, and ``keys``, which say whose it is, when, and for which model.
    """
    if job.plan.noise_source == "system":
        return system_key()
    setup, data = job.setup, prepared.splits.train.digest  # of what this process has loaded
    return derive_key(setup.seed, purpose, setup.draw_key, data, *_computed_by(setup.device), *setup.variant, *keys)


@cache
def _computed_by(device: str) -> tuple[Key, ...]:
    """What moves the last bits of a gradient: our version of the numbers, torch's, the kind of device or the CPU's."""
    kind = torch.cuda.get_device_name(device) if device.startswith("cuda") else torch.backends.cpu.get_cpu_capability()
    return (NUMERICS, torch.__version__, device, kind)


def make_job(setup: Setup, prepared: Prepared, run_id: str, folder: Path, reached: ServerState | None = None) -> Job:
    """The whole run's privacy plan, worked out before any of it happens; ``reached`` is where a resumed run stands."""
    if reached is not None and reached.data not in ("", prepared.digest):
        raise CheckpointError(
            f"resume={folder}: the data, or which hospital has which of them, are not those that the run began with; "
            "accepted: the same data, or a new run"
        )
    told, numbers = None, prepared.splits.train.patients
    if setup.privacy.protected is PATIENT and numbers is not None:
        told = tuple(len(np.unique(numbers[part])) for part in prepared.parts)
    sizes = told or prepared.num_records()
    exposure = Exposure(
        num_records=prepared.num_records(),
        num_patients=told,
        patient_images=prepared.patient_images(),
        # No batch is drawn from an empty client, so its probability is not used and must not refuse a batch size.
        sampling_probability=tuple(setup.trainer.sampling_probability_for(size) if size else 1.0 for size in sizes),
        steps_per_round=setup.trainer.local_steps,
        num_rounds=setup.federation.num_rounds,
        minimum_survivors=setup.aggregation.survivors_for(setup.num_clients),
        secure_aggregation=setup.aggregation.secure,
        fraction_clients=setup.federation.fraction_clients,
    )
    if setup.variant == ():
        _tell_of_small_hospitals(setup.trainer.expected_batch_size, sizes)
        _tell_of_small_pieces(setup, exposure.num_records)
    plan = setup.privacy.plan(exposure)
    charged = reached.charged if reached is not None and plan.private else {}
    layout = ModelLayout.of(dict(trained_parameters(build_module(setup, prepared))))
    return Job(setup, plan, layout, run_id, folder, reached is not None, charged=charged)


def _tell_of_small_pieces(setup: Setup, sizes: Sequence[int]) -> None:
    """A GPU waits for its orders: a step in pieces that suit a CPU's cache takes it as often as long."""
    pieces, most = setup.trainer.micro_batch_size, max(sizes)
    if setup.device != "cpu" and pieces < min(ON_A_GPU, most):
        say(f"device={setup.device}: trainer.micro_batch_size={pieces} suits a CPU, {ON_A_GPU} is faster here")


def _tell_of_small_hospitals(batch: float | None, sizes: Sequence[int]) -> None:
    """A preset's batch is more than some have: each of their steps takes all of it, and is accounted so."""
    small = [client for client, size in enumerate(sizes) if batch is not None and 0 < size < batch]
    if small:
        which, takes = (
            (f"hospital {small[0]} has", "takes") if len(small) == 1 else (f"{len(small)} hospitals have", "take")
        )
        least = min(sizes[client] for client in small)
        log.warning(
            "trainer.expected_batch_size=%g: %s fewer records (%d at least) and %s all of them in every step",
            *(batch, which, least, takes),
        )
