"""An audit by canaries: a run of the whole pipeline, and what its observers can prove of records that may be in it.

Partition, sampling, clipping, noise, sum and server are those of any run. Only the learning rate is so small that the
model hardly moves: then a record pulls the same way in every step, as hard as clipping lets it (Nasr et al. 2021;
Andrew et al. 2024, whose canaries share one run as these do).
"""

import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from medx.attacks.canaries import CanaryData
from medx.attacks.evidence import Evidence, Knowledge, gaussian_epsilon, one_run_epsilon, together, weigh
from medx.attacks.overheard import Overheard, contents
from medx.configuration import typed
from medx.experiment import Experiment, make_setup
from medx.federation.flower import from_record
from medx.federation.hospital import Hospitals
from medx.federation.hospital_app import client_app
from medx.federation.ledgers import check_ledgers, recorded_steps
from medx.federation.plain_rounds import RoundAborted
from medx.federation.prepared import Prepared, prepare
from medx.federation.replies import integer_of
from medx.federation.server import Server
from medx.federation.setup import Job, build_module, draw_key, make_job
from medx.federation.sums import with_sums
from medx.privacy.statement import privacy_result
from medx.privacy.units import CLIENT
from medx.schema import ConfigError
from medx.trainer.state import ModelState, trained_parameters

CLIP = 1e-3  # so small that every record's gradient is cut to it
LONG = 1e3  # a canary's feature; all others are nought
STEP = 3e-6  # noise on every weight by a step: above float32's rounding, far below the weights
QUIET = ("tracking=none", "trainer.momentum=0", "trainer.share_momentum=false", "trainer.schedule=constant")
SETTINGS: dict[str, tuple[str, ...]] = {
    "record": (
        *QUIET,
        f"privacy.clip_norm={CLIP}",
        "trainer.learning_rate=null",
        f"trainer.learning_rate_noise={STEP / CLIP}",
        "trainer.max_learning_rate=1e6",
    ),
    "client": (*QUIET, "privacy.clip_norm=1e-4", "privacy.target_quantile=null", "trainer.learning_rate=0.01",
               "trainer.learning_rate_noise=null", "partition=site"),
    "none": (*QUIET, "trainer.learning_rate=1e-3", "trainer.learning_rate_noise=null"),
}  # fmt: skip
SERVER, MODEL, MOMENTUM = "server", "whoever gets the model", "server, momentum"


@dataclass(frozen=True)
class Finding:
    """What one observer of audited runs can prove, beside what was claimed.

    ``claimed`` is None where nothing is. ``planned`` is the shift that the plan's noise gives. ``found`` is a lower bound
    for epsilon at ``delta`` by the shift, ``one_run`` one that assumes nothing of the noise, and ``ceiling`` the most that
    could have come out of that.
    """

    observer: str
    claimed: float | None
    delta: float
    planned: float | None
    evidence: Evidence
    seconds: float

    @property
    def found(self) -> float:
        """The lower bound, with 95 % confidence."""
        return gaussian_epsilon(self.evidence.at_least(), self.delta)

    @property
    def one_run(self) -> float:
        """The same from right guesses alone."""
        return one_run_epsilon(self.evidence.right, self.evidence.guessed, self.evidence.canaries, self.delta)

    @property
    def ceiling(self) -> float:
        """What ``one_run`` would be with all guesses right."""
        return one_run_epsilon(self.evidence.guessed, self.evidence.guessed, self.evidence.canaries, self.delta)

    @property
    def refutes(self) -> bool:
        """Whether more was found than is claimed."""
        return self.claimed is not None and max(self.found, self.one_run) > self.claimed


@dataclass(frozen=True)
class Heard:
    """Sums of releases by observer and hospital (None: of all hospitals), in any unit, ``[dimension]``."""

    releases: Mapping[tuple[str, int | None], np.ndarray]
    releases_each: int


def settings_for(unit: str) -> tuple[str, ...]:
    """Overrides that make a run one that is audited: of a record, a client, or where nothing is claimed ``none``."""
    return SETTINGS[unit]


def audit(
    config: Mapping[str, Any], folder: Path, *, canaries: int, seeds: Sequence[int], delta: float = 1e-5
) -> list[Finding]:
    """Run the composed ``config`` once for each seed, with so many canaries, and weigh what every observer has.

    ``delta`` is for the bounds where the run has none of its own.
    """
    began = time.perf_counter()
    found: dict[str, list[Evidence]] = defaultdict(list)
    claims: dict[str, tuple[float | None, float, float | None]] = {}
    for seed in seeds:
        experiment, named = with_canaries(dict(config), canaries, seed)
        job, prepared = planned(experiment, named, folder / f"seed_{seed}")
        heard, epsilon = listen(experiment, job, prepared)
        knowledge = Directions.of(job, prepared)
        for (observer, hospital), release in heard.releases.items():
            known, coins = knowledge.towards(hospital, heard.releases_each)
            shift = planned_shift(job, observer, heard.releases_each)
            found[observer].append(weigh(release, coins, known, shift or 1.0))
            claims[observer] = (epsilon, job.plan.delta or delta, shift)
    seconds = time.perf_counter() - began
    return [Finding(who, *claims[who], together(evidence), seconds) for who, evidence in found.items()]


def with_canaries(config: dict[str, Any], canaries: int, seed: int) -> tuple[Experiment, dict[str, Any]]:
    """The experiment on its data set with canaries, and the configuration that names it."""
    config["seed"] = seed
    experiment = typed(config | {"resume": None}).experiment if "resume" not in config else typed(config).experiment
    by_hospital = experiment.privacy.protected is CLIENT
    data = CanaryData(experiment.dataset, canaries, seed, hospitals=by_hospital)
    named = config | {"dataset": config["dataset"] | dict(data.described)}
    return replace(experiment, dataset=data), named


def planned(experiment: Experiment, config: dict[str, Any], folder: Path) -> tuple[Job, Prepared]:
    """The job as any run would have it."""
    folder.mkdir(parents=True, exist_ok=True)
    setup = make_setup(experiment, config, draw_key(config))
    prepared = prepare(setup)
    assert isinstance(experiment.dataset, CanaryData)
    put_in(prepared, experiment.dataset)
    job = with_sums(make_job(setup, prepared.declared, uuid.uuid4().hex, folder))
    check_ledgers(job)
    return job, prepared


def put_in(prepared: Prepared, data: CanaryData) -> None:
    """Where a model takes fixed features, canaries are rows of those, each long in one feature and orthogonal to all.

    Images cannot make them: features of any two have much in common.
    """
    if prepared.features is not None and not data.hospitals:
        rows, blank = feature_rows(prepared.inputs["train"], data.count)
        prepared.inputs["train"][: data.count] = torch.where(torch.from_numpy(data.coins)[:, None], rows, blank)


def feature_rows(inputs: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``[count, features]``, and the blank row in whose place they are; raises ConfigError where there are too few."""
    features = inputs.shape[1:].numel()
    if inputs.ndim != 2 or count > features:
        raise ConfigError(f"canaries={count}: accepted are at most the {features} features of this model")
    return LONG * torch.eye(count, features), torch.zeros(1, features)


def listen(experiment: Experiment, job: Job, prepared: Prepared) -> tuple[Heard, float | None]:
    """Run all rounds; what observers have of them, and the epsilon that is claimed of what was executed."""
    hospitals = Hospitals(job, prepared)
    server = Server(job, hospitals.recorded, None, experiment.runtime.timeout, prepared)
    first = server.initial_state()
    states = [first]
    ears = Ears(job)

    def serve(grid: Grid) -> None:
        states.extend(server.rounds(Overheard(grid, ears.hear), first))

    try:
        experiment.runtime.run(client_app(hospitals), job.setup.num_clients, serve)
    finally:
        hospitals.close()
    if len(states) <= job.setup.federation.num_rounds:
        raise RoundAborted(f"{len(states) - 1} of {job.setup.federation.num_rounds} rounds came to an end")
    moved = first.state.parameters.astype(np.float64) - states[-1].state.parameters
    epsilon = None
    if job.plan.private:
        epsilon = privacy_result(job.plan, recorded_steps(job, states[-1].steps), True).epsilon
    releases = {**ears.sums, (MODEL, None): moved}
    plan = job.plan.clients[0]
    return Heard(releases, job.plan.planned_events(plan) if job.plan.private else plan.total_steps), epsilon


class Ears:
    """Adds up what a server that sees hospitals one by one learns of each."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.sums: dict[tuple[str, int | None], np.ndarray] = {}

    def hear(self, question: Message, answer: Message) -> None:
        """A model that was sent, and the one that came back: what is between them is the hospital's releases."""
        if question.metadata.message_type != MessageType.TRAIN:
            return
        sent, came = (self._state(message) for message in (question, answer))
        client = integer_of(contents(answer)["metrics"], "client")  # type: ignore[arg-type]
        trainer, plan = self._job.setup.trainer, self._job.plan.clients[client]
        moved = sent.parameters.astype(np.float64) - came.parameters
        if sent.momentum is not None and came.momentum is not None:
            decay = trainer.momentum**plan.steps_per_round
            carried = trainer.momentum * (1 - decay) / (1 - trainer.momentum) * trainer.learning_rate_for(plan)
            moved -= carried * sent.momentum
            self._add(MOMENTUM, client, came.momentum - decay * sent.momentum.astype(np.float64))
        self._add(SERVER, client, moved)

    def _state(self, message: Message) -> ModelState:
        return from_record(contents(message).get("arrays"), self._job.layout, momentum=self._job.sends_momentum)

    def _add(self, observer: str, client: int, moved: np.ndarray) -> None:
        key = (observer, client)
        self.sums[key] = self.sums[key] + moved if key in self.sums else moved


@dataclass(frozen=True)
class Directions:
    """Every record's clipped gradient at the first model, by a loop over records, and where each record is."""

    job: Job
    coins: np.ndarray
    canaries: np.ndarray
    blanks: np.ndarray
    others: np.ndarray
    parts: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, job: Job, prepared: Prepared) -> "Directions":
        """Of the run's own data and model."""
        data = job.setup.dataset
        assert isinstance(data, CanaryData)
        mosaics, blank, labels = data.everything(prepared.splits)
        classes = np.unique(labels)
        rows = np.arange(len(prepared.splits.train)) if not data.hospitals else np.arange(0)
        rows = rows[rows >= data.count]
        gradients = Gradients(job, prepared)
        if prepared.features is not None and not data.hospitals:
            there, absent = feature_rows(prepared.inputs["train"], data.count)
        else:
            there, absent = gradients.inputs(mosaics), gradients.inputs(blank)
        return cls(
            job,
            data.coins,
            gradients(there, torch.from_numpy(labels)),
            gradients(absent.expand(len(classes), *absent.shape[1:]), torch.from_numpy(classes)),
            gradients(prepared.inputs["train"][rows], prepared.labels["train"][rows]),
            prepared.parts,
        )

    def towards(self, hospital: int | None, releases: int) -> tuple[Knowledge, np.ndarray]:
        """What is known of one hospital's records, or of all; and the coins of the canaries there."""
        count = len(self.coins)
        here = np.arange(count + len(self.others)) if hospital is None else self.parts[hospital]
        canaries, others = here[here < count], here[here >= count] - count
        event = self.job.plan.event_of(self.job.plan.clients[0])
        sampling = event.sampling_probability if event else self.job.plan.clients[0].sampling_probability
        known = Knowledge(self.canaries[canaries], self.others[others], self.blanks, sampling, releases)
        return known, self.coins[canaries]


class Gradients:
    """Clipped per-record gradients in clip norms, one backward pass each; of a client they are its update's direction."""

    def __init__(self, job: Job, prepared: Prepared) -> None:
        self._prepared = prepared
        self._module = build_module(job.setup, prepared.spec)
        self._parameters = [parameter for _, parameter in trained_parameters(self._module)]
        step = job.plan.clients[0].step
        release = job.plan.client_release
        self._clip = 0.0 if release else step.clip_norm if step else None

    def inputs(self, images: np.ndarray) -> torch.Tensor:
        """Images ``[n, height, width, channels]`` as the model takes them."""
        tensor = self._prepared.splits.to_tensor(images)
        features = self._prepared.features
        if features is None:
            return tensor
        with torch.no_grad():
            return torch.cat([features(part) for part in tensor.split(32)])

    def __call__(self, inputs: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
        """``float64 [n, dimension]``."""
        rows = [self._one(inputs[place : place + 1], labels[place : place + 1]) for place in range(len(labels))]
        size = sum(parameter.numel() for parameter in self._parameters)
        return np.stack(rows) if rows else np.zeros((0, size))

    def _one(self, row: torch.Tensor, label: torch.Tensor) -> np.ndarray:
        loss = self._prepared.objective.loss(self._module(row), label).sum()
        found = torch.autograd.grad(loss, self._parameters)
        vector = torch.cat([gradient.reshape(-1) for gradient in found]).double().numpy()
        if self._clip is None:
            return vector
        norm = float(np.linalg.norm(vector))
        return vector / max(norm, self._clip) if self._clip else vector / norm


def planned_shift(job: Job, observer: str, releases: int) -> float | None:
    """The shift of a record in what this observer has, by the plan's noise; None where there is none."""
    event = job.plan.event_of(job.plan.clients[0])
    if event is None or event.noise_multiplier == 0:
        return None
    alone = event.sampling_probability * releases**0.5 / event.noise_multiplier
    clients, shared = job.setup.num_clients, job.plan.shared_noise
    if shared is not None:  # more answer than have to
        return alone * (shared.contributors / clients) ** 0.5
    if job.plan.client_release is None and observer == MODEL:  # every hospital has noise of its own
        return alone / clients**0.5
    return alone


def lines(findings: Sequence[Finding]) -> Iterator[str]:
    """A line for each observer."""
    for each in findings:
        claimed = "nothing" if each.claimed is None else f"epsilon {each.claimed:.2f}"
        planned = "" if each.planned is None else f", planned {each.planned:.3f}"
        yield (
            f"{each.observer}: claimed {claimed}, lower bound found {each.found:.2f} (shift {each.evidence.shift:.3f} "
            f"+- {each.evidence.error:.3f}{planned}); by guesses alone {each.one_run:.2f} of at most {each.ceiling:.2f}; "
            f"{each.evidence.canaries} canaries, {each.seconds:.0f} s"
        )
