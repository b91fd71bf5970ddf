"""One run as every process sees it: what is configured, what is declared of the data, and the plan that follows."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from pydoc import locate
from typing import Any, Literal

import torch
from torch import nn

from medx.aggregation import Aggregation
from medx.aggregation.ring import Layout
from medx.aggregation.roster import Roster
from medx.dataset import Dataset, InputSpec
from medx.federation.checkpoint import ServerState
from medx.federation.fedbuff import FedBuff
from medx.federation.strategies import Federation
from medx.metrics import ThresholdRule
from medx.model import Model
from medx.output import say
from medx.partition import Partition
from medx.personalisation import NoPersonalisation, Personalisation
from medx.privacy.base import Exposure, PatientImages, PrivacyMechanism, PrivacyPlan
from medx.privacy.units import PATIENT
from medx.randomness import NUMERICS, Key, derive_key, derive_seed, system_key
from medx.schema import CheckpointError, class_of, identity_of
from medx.trainer.local_training import Trainer
from medx.trainer.state import ModelLayout, Tensors, trained_parameters

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
    personalisation: Personalisation = field(default_factory=NoPersonalisation)
    threshold: ThresholdRule = "best"

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
class Declared:
    """What everybody may know of the training data, and all that a plan follows from. Counts are by client.

    ``records`` (32 bytes) names the training records and whose they are: draws of the seed are keyed by it. ``dealt``
    names that and which client has which. ``patient_images`` are the most images of a patient at each hospital, for
    each set of hospitals that patients are at; empty, as ``num_patients`` is None, where patients are not known.
    """

    spec: InputSpec
    num_records: tuple[int, ...]
    num_patients: tuple[int, ...] | None
    patient_images: tuple[PatientImages, ...]
    records: bytes = field(repr=False)
    dealt: str


@dataclass(frozen=True)
class SumPlan:
    """One job's sums. ``noise_stddev`` is a client's share in grid units, 0 where updates carry noise already.

    ``server_noise_stddev`` is what a trusted server adds to the sum, in grid units. ``roster`` and ``identities`` are
    None where the sum is in the clear. ``identities`` are the raw Ed25519 keys, by client, that this process has: all
    of them in a simulation, a hospital's own, none at a server.
    """

    kind: Literal["gradient", "update", "clipped_update"]
    layout: Layout
    noise_stddev: int = 0
    server_noise_stddev: int = 0
    roster: Roster | None = None
    identities: Mapping[int, bytes] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Job:
    """A set-up with its plan and a place to write: all that a client or the server needs to start.

    ``layout`` is that of the model that is trained. ``run_id`` is the id in the run's folder. ``charged`` are, of a run
    that is gone on with, the clients that had reserved it, each with the fewest releases that its ledger must show.
    ``sums`` is None where updates go in the clear; see ``sums.with_sums``. ``touches_all``: it counts for every record
    of the ledger, whichever it reads, as at a hospital whose images a study reads at a size that it chooses itself.
    """

    setup: Setup
    declared: Declared
    plan: PrivacyPlan
    layout: ModelLayout
    run_id: str
    folder: Path
    resumed: bool
    sums: SumPlan | None = None
    charged: Mapping[int, int] = field(default_factory=dict)
    touches_all: bool = False

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


def build_network(setup: Setup, spec: InputSpec) -> nn.Module:
    """The model's own module, initialised from the seed: the same in every process."""
    return setup.model.build(spec, derive_seed(setup.seed, "initialisation"))


def build_module(setup: Setup, spec: InputSpec) -> nn.Module:
    """What is trained: the model's own module, or what the trainer puts in its place."""
    return setup.trainer.trained_module(build_network(setup, spec), setup.model.objective(spec))


def solved(job: Job, network: nn.Module, average: Tensors) -> Tensors:
    """The tensors of the model's own module, as ``build_network`` gives it, that the trained ones stand for."""
    objective = job.setup.model.objective(job.declared.spec)
    return job.setup.trainer.solved(network, objective, average, job.plan)


def data_key(seed: int, **configs: Any) -> str:
    """What ``prepare`` depends on, as text."""
    return json.dumps({"seed": seed, **configs}, sort_keys=True, default=str)


def draw_key(config: dict[str, Any]) -> str:
    """Names what is trained and how updates are summed: one of the things by which secret draws are keyed.

    Two runs that add the same noise to different sums do not add up: their difference takes the noise off. So all of
    the configuration is in it but where things lie, also how a step is computed, which moves its last bits.
    """
    groups = ["dataset", "partition", "model", "trainer", "privacy", "federation", "aggregation"]
    if begins_from_own(config.get("personalisation")):  # others move nothing that is sent
        groups.append("personalisation")
    where = ("ledger", "budget", "roster", "root", "path", "csv")
    named = {group: {k: v for k, v in config[group].items() if k not in where} for group in groups}
    return hashlib.sha256(json.dumps(named, sort_keys=True, default=str).encode()).hexdigest()


def begins_from_own(personalisation: Mapping[str, Any] | None) -> bool:
    """Whether what hospitals send depends on the option of this configuration, by its component or its class."""
    if personalisation is None:
        return False
    named = personalisation.get("component")
    kind = class_of(named) if named else locate(str(personalisation.get("_target_")))
    return bool(getattr(kind, "keeps_own", False))


def secret_key(job: Job, purpose: str, *keys: Key) -> bytes:
    """The key of a draw that must stay secret: of sampling, noise or views. From the system, nobody makes it again.

    With ``noise_source=seed`` it follows from everything that changes what is drawn for: seed, configuration, data, the
    versions and the device that compute, and ``keys``, which say whose it is, when, and for which model.
    """
    if job.plan.noise_source == "system":
        return system_key()
    setup, data = job.setup, job.declared.records
    return derive_key(setup.seed, purpose, setup.draw_key, data, *_computed_by(setup.device), *setup.variant, *keys)


@cache
def _computed_by(device: str) -> tuple[Key, ...]:
    """What moves the last bits of a gradient: our version of the numbers, torch's, the kind of device or the CPU's."""
    kind = torch.cuda.get_device_name(device) if device.startswith("cuda") else torch.backends.cpu.get_cpu_capability()
    return (NUMERICS, torch.__version__, device, kind)


def make_job(setup: Setup, declared: Declared, run_id: str, folder: Path, reached: ServerState | None = None) -> Job:
    """The whole run's privacy plan, worked out before any of it happens; ``reached`` is where a resumed run stands."""
    if reached is not None and reached.data not in ("", declared.dealt):
        raise CheckpointError(
            f"resume={folder}: the data, or which hospital has which of them, are not those that the run began with; "
            "accepted: the same data, or a new run"
        )
    told = declared.num_patients if setup.privacy.protected is PATIENT else None
    sizes = told or declared.num_records
    exposure = Exposure(
        num_records=declared.num_records,
        num_patients=told,
        patient_images=declared.patient_images,
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
    if isinstance(setup.federation, FedBuff):
        setup.federation.check(setup.privacy, setup.aggregation)
    named = identity_of(type(setup.federation))
    setup.trainer.check_round(setup.federation.num_rounds, named, setup.privacy.protected)
    plan = setup.privacy.plan(exposure)
    charged = reached.charged if reached is not None and plan.private else {}
    layout = ModelLayout.of(dict(trained_parameters(build_module(setup, declared.spec))))
    return Job(setup, declared, plan, layout, run_id, folder, reached is not None, charged=charged)


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
