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
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from medx.attacks.canaries import CanaryData
from medx.attacks.evidence import Evidence, gaussian_epsilon, one_run_epsilon, together, weigh
from medx.attacks.knowledge import Directions, canary_data, put_in
from medx.attacks.overheard import Listener, Overheard, contents
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
from medx.federation.setup import Job, draw_key, make_job
from medx.federation.sums import with_sums
from medx.privacy.residuals import DOUBTFUL, NoiseFound, Residuals
from medx.privacy.statement import privacy_result
from medx.privacy.units import CLIENT, PATIENT
from medx.results import AttackResult
from medx.schema import ConfigError
from medx.trainer.state import ModelState

CLIP = 1e-3  # so small that every record's gradient is cut to it
PLAIN = 100.0  # a shift beyond which noise hides nothing
STEP = 3e-6  # noise on every weight by a step: above float32's rounding, far below the weights
Settings = Mapping[str, Mapping[str, Any]]  # by group
STILL: dict[str, Any] = {
    "momentum": 0.0, "share_momentum": False, "weight_decay": 0.0, "optimizer": "sgd",
    "schedule": "constant", "warmup_steps": 0, "augmentation": "none", "augmentation_multiplicity": 1,
    "learning_rate_noise": None,
}  # fmt: skip
# What makes a run one that is audited, where a canary is a record, a client, or nothing is protected.
SETTINGS: dict[str, Settings] = {
    "record": {
        "privacy": {"clip_norm": CLIP},
        "trainer": STILL | {"learning_rate": None, "learning_rate_noise": STEP / CLIP, "max_learning_rate": 1e6},
    },
    "client": {
        "privacy": {"clip_norm": 1e-4, "target_quantile": None},
        "trainer": STILL | {"learning_rate": 0.01},
        "partition": {"_target_": "medx.partition.Site", "shared_patients": "refuse"},
    },
    "none": {"trainer": STILL | {"learning_rate": 1e-5}},
}
NO_CHANGES: Settings = {}
SERVER, MODEL, MOMENTUM = "server", "whoever gets the model", "server, momentum"


@dataclass(frozen=True)
class Finding:
    """What one observer of audited runs can prove, beside what was claimed.

    ``claimed`` is None where nothing is. ``planned`` is the shift that the plan's noise gives. ``found`` is a lower
    bound for epsilon at ``delta`` by the shift, ``one_run`` one that assumes nothing of the noise, and ``ceiling`` the
    most that could have come out of that. ``noise`` is what was left of the releases, where they were seen one by one.
    """

    observer: str
    claimed: float | None
    delta: float
    planned: float | None
    evidence: Evidence
    noise: Sequence[NoiseFound]
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
    def everything(self) -> bool:
        """Whether no noise is left to speak of: every record shows."""
        return self.evidence.shift > PLAIN

    @property
    def refutes(self) -> bool:
        """Whether more was found than is claimed."""
        return self.claimed is not None and max(self.found, self.one_run) > self.claimed

    @property
    def doubts(self) -> list[str]:
        """What does not agree with the plan, in words; each is a fault, or one chance in several hundred thousand."""
        found = [doubt for noise in self.noise for doubt in noise.doubts]
        if self.planned is not None and self.evidence.shift > self.planned + DOUBTFUL * self.evidence.error:
            found.append(f"a record shows {self.evidence.shift / self.planned:.2f} times as strongly as planned")
        return found

    def result(self) -> AttackResult:
        """As a record."""
        evidence = self.evidence
        return AttackResult(
            attack="canaries",
            observer=self.observer,
            claimed=self.claimed,
            delta=self.delta,
            found=None if self.everything else self.found,
            shift=evidence.shift,
            error=evidence.error,
            planned=self.planned,
            one_run=self.one_run,
            ceiling=self.ceiling,
            trials=evidence.canaries,
            seconds=self.seconds,
            against=self.doubts + (["the lower bound found is above the claim"] if self.refutes else []),
        )

    @property
    def raised(self) -> bool:
        """Whether anything speaks against the claim."""
        return self.refutes or bool(self.doubts)


def unit_of(config: Mapping[str, Any]) -> str:
    """What a canary is, a key of ``SETTINGS``; raises ConfigError where canaries cannot be that."""
    experiment = typed({"resume": None} | dict(config)).experiment
    protected = experiment.privacy.protected
    if protected is PATIENT:
        raise ConfigError("privacy.unit=patient: canaries are images; accepted: record")
    return "none" if protected is None else "client" if protected is CLIENT else "record"


def settled(config: Mapping[str, Any], canaries: int, changes: Settings) -> dict[str, Any]:
    """The configuration as it is audited, on ledgers of its own; ``changes`` are to what ``SETTINGS`` says."""
    unit = unit_of(config)
    whole = dict(config) | {"resume": None, "baseline": [], "select": None}
    more: Settings = {"federation": {"num_clients": canaries}} if unit == "client" else {}
    own: Settings = {} if unit == "none" else {"privacy": {"ledger": None, "budget": None, "num_runs": 1}}
    for settings in (SETTINGS[unit], more, own, changes):
        for group, values in settings.items():
            replaced = "_target_" in values
            whole[group] = dict(values) if replaced else whole[group] | dict(values)
    return whole


def audit(
    config: Mapping[str, Any],
    folder: Path,
    *,
    canaries: int,
    seeds: Sequence[int],
    delta: float = 1e-5,
    changes: Settings = NO_CHANGES,
) -> list[Finding]:
    """Run the composed ``config`` once for each seed, with so many canaries, and weigh what every observer has.

    Where the unit is a client there are as many clients as canaries. ``delta`` is for the bounds where the run has none
    of its own; ``changes`` go over the settings of an audit.
    """
    found: dict[str, list[Seen]] = defaultdict(list)
    whole = settled(config, canaries, changes)
    for seed in seeds:
        for each in audited(whole | {"seed": seed}, folder / f"seed_{seed}", canaries, delta=delta):
            found[each.observer].append(each)
    return [
        Finding(
            who,
            max((seen.claimed for seen in parts if seen.claimed is not None), default=None),
            parts[0].delta,
            parts[0].planned,
            together(evidence for seen in parts for evidence in seen.evidence),
            [seen.noise for seen in parts if seen.noise],
            sum(seen.seconds for seen in parts),
        )
        for who, parts in found.items()
    ]


@dataclass(frozen=True)
class Seen:
    """What one observer of one run has."""

    observer: str
    claimed: float | None
    delta: float
    planned: float | None
    evidence: list[Evidence]
    noise: NoiseFound | None
    seconds: float


def audited(config: dict[str, Any], folder: Path, canaries: int, *, delta: float) -> Iterator[Seen]:
    """One run, and what each observer has of it."""
    began = time.perf_counter()
    experiment, named = with_canaries(config, canaries)
    job, prepared = planned(experiment, named, folder)
    directions = Directions.of(job, prepared)
    ears = Ears(job, directions)
    claimed = listen(experiment, job, prepared, ears)
    releases = releases_of(job)
    seconds = time.perf_counter() - began
    for observer in sorted({observer for observer, _ in ears.sums}):
        evidence = []
        shift = planned_shift(job, observer)
        for (who, hospital), release in ears.sums.items():
            if who == observer:
                known, coins = directions.towards(hospital, releases)
                evidence.append(weigh(release, coins, known, shift or 1.0))
        noise = ears.residuals.found() if ears.residuals and observer == ears.watched else None
        yield Seen(observer, claimed, job.plan.delta or delta, shift, evidence, noise, seconds)


def with_canaries(config: dict[str, Any], canaries: int) -> tuple[Experiment, dict[str, Any]]:
    """The experiment on its data set with canaries, and the configuration that names it."""
    experiment = typed(config).experiment
    by_hospital = experiment.privacy.protected is CLIENT
    data = CanaryData(experiment.dataset, canaries, experiment.seed, hospitals=by_hospital)
    named = config | {"dataset": config["dataset"] | dict(data.described)}
    return replace(experiment, dataset=data), named


def planned(experiment: Experiment, config: dict[str, Any], folder: Path) -> tuple[Job, Prepared]:
    """The job as any run would have it."""
    folder.mkdir(parents=True, exist_ok=True)
    setup = make_setup(experiment, config, draw_key(config))
    prepared = prepare(setup)
    job = with_sums(make_job(setup, prepared.declared, uuid.uuid4().hex, folder))
    put_in(prepared, canary_data(job))
    check_ledgers(job)
    return job, prepared


def listen(experiment: Experiment, job: Job, prepared: Prepared, ears: Listener) -> float | None:
    """Run all rounds, and the epsilon that is claimed of what was executed; None where none is."""
    hospitals = Hospitals(job, prepared)
    server = Server(job, hospitals.recorded, None, experiment.runtime.timeout, prepared)
    states = [server.initial_state()]

    def serve(grid: Grid) -> None:
        for state in server.rounds(Overheard(grid, ears.hear), states[-1]):
            ears.see(states[-1].state, state.state, state.round)
            states[:] = [state]

    try:
        experiment.runtime.run(client_app(hospitals), job.setup.num_clients, serve)
    finally:
        hospitals.close()
    if states[-1].round < job.setup.federation.num_rounds:
        raise RoundAborted(f"{states[-1].round} of {job.setup.federation.num_rounds} rounds came to an end")
    if not job.plan.private:
        return None
    return privacy_result(job.plan, recorded_steps(job, states[-1].steps), True).epsilon


class Ears:
    """Adds up, by observer and hospital (None: all), what there is of releases, in units of the weights.

    ``watched`` is whose releases are looked at one by one: the server's, of single hospitals where it sees them.
    """

    def __init__(self, job: Job, directions: Directions) -> None:
        self._job = job
        self._rate = 0.0 if job.plan.client_release else job.setup.trainer.learning_rate_for(job.plan.clients[0])
        self.sums: dict[tuple[str, int | None], np.ndarray] = {}
        self.watched = SERVER if job.sums is None else MODEL
        size = planned_size(job)
        hospitals: list[int | None] = list(range(job.setup.num_clients)) if job.sums is None else [None]
        sampled = directions.sampling < 1
        self.residuals = Residuals(directions.span(hospitals), size, sampled) if size else None

    def hear(self, question: Message, answer: Message) -> None:
        """A model that was sent, and the one that came back: what is between them is the hospital's releases."""
        if question.metadata.message_type != MessageType.TRAIN:
            return
        sent, came = (self._state(message) for message in (question, answer))
        metrics = contents(answer)["metrics"]
        client, number = (integer_of(metrics, name) for name in ("client", "round"))  # type: ignore[arg-type]
        moved = sent.parameters.astype(np.float64) - came.parameters
        if sent.momentum is not None and came.momentum is not None:
            beta = self._job.setup.trainer.momentum
            decay = beta ** self._job.plan.clients[client].steps_per_round
            moved -= beta * (1 - decay) / (1 - beta) * self._rate * sent.momentum
            self._add(MOMENTUM, client, came.momentum - decay * sent.momentum.astype(np.float64))
        self._add(SERVER, client, moved)
        if self.residuals is not None:
            self.residuals.add(number, client, moved)

    def see(self, before: ModelState, after: ModelState, number: int) -> None:
        """A round's model, which everybody gets."""
        moved = before.parameters.astype(np.float64) - after.parameters
        self._add(MODEL, None, moved)
        if self.residuals is not None and self.watched == MODEL:
            self.residuals.add(number, 0, moved)

    def _state(self, message: Message) -> ModelState:
        return from_record(contents(message).get("arrays"), self._job.layout, momentum=self._job.sends_momentum)

    def _add(self, observer: str, client: int | None, moved: np.ndarray) -> None:
        key = (observer, client)
        self.sums[key] = self.sums[key] + moved if key in self.sums else moved


def releases_of(job: Job) -> int:
    """How many releases a record, or a hospital where that is the unit, is in or may be in."""
    plan = job.plan.clients[0]
    return job.plan.planned_events(plan) if job.plan.private else plan.total_steps


def planned_shift(job: Job, observer: str) -> float | None:
    """The shift of a record in what this observer has, by the plan's noise; None where there is none."""
    event = job.plan.event_of(job.plan.clients[0])
    if event is None or event.noise_multiplier == 0:
        return None
    alone = event.sampling_probability * releases_of(job) ** 0.5 / event.noise_multiplier
    clients, shared = job.setup.num_clients, job.plan.shared_noise
    if shared is not None:  # more answer than have to
        return alone * (shared.contributors / clients) ** 0.5
    if job.plan.client_release is None and observer == MODEL:  # every hospital has noise of its own
        return alone / clients**0.5
    return alone


def planned_size(job: Job) -> float | None:
    """The noise's standard deviation on a weight in one round of what is watched; None without noise, or with momentum.

    Hospitals are alike in an audit, so the first one's is everybody's.
    """
    plan, trainer = job.plan.clients[0], job.setup.trainer
    release, shared = job.plan.client_release, job.plan.shared_noise
    more = 1.0 if shared is None else (job.setup.num_clients / shared.contributors) ** 0.5
    if release is not None:
        expected = release.event.sampling_probability * job.setup.num_clients
        return release.update_noise_multiplier * release.event.clip_norm * more / expected
    if plan.step is None or plan.step.noise_multiplier == 0 or trainer.momentum > 0:
        return None
    batch = plan.expected_batch_size if job.sums is None else plan.federation_batch_size
    steps = plan.steps_per_round**0.5
    return trainer.learning_rate_for(plan) * plan.step.noise_stddev * more * steps / batch
