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

from medx.attacks.canaries import CanaryData
from medx.attacks.evidence import Evidence, gaussian_epsilon, one_run_epsilon, together, weigh
from medx.attacks.knowledge import Directions, canary_data, put_in
from medx.attacks.listening import Ears, listen, planned_shift, releases_of
from medx.configuration import typed
from medx.experiment import Experiment, make_setup
from medx.federation.fedbuff import FedBuff
from medx.federation.ledgers import check_ledgers
from medx.federation.prepared import Prepared, prepare
from medx.federation.setup import Job, draw_key, make_job
from medx.federation.sums import with_sums
from medx.privacy.residuals import DOUBTFUL, NoiseFound
from medx.privacy.units import CLIENT, PATIENT
from medx.results import AttackResult
from medx.schema import ConfigError, identity_of

CLIP = 1e-3  # so small that every record's gradient is cut to it
REFUTED = "more was found than is claimed, and not by chance"
PLAIN = 20.0  # a shift beyond which noise hides nothing
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
        """Whether more was found than is claimed, and not by chance.

        Noise as planned comes so near to the claim that one in twenty bounds at 95 % is above it. What is proved by
        guesses stays far below, so that bound may count as it is.
        """
        found = gaussian_epsilon(self.evidence.shift - DOUBTFUL * self.evidence.error, self.delta)
        return self.claimed is not None and max(found, self.one_run) > self.claimed

    @property
    def doubts(self) -> list[str]:
        """What does not agree with the plan, in words; each is a fault, or one chance in a hundred thousand."""
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
            against=[*self.doubts, *([REFUTED] if self.refutes else [])],
        )

    @property
    def raised(self) -> bool:
        """Whether anything speaks against the claim."""
        return self.refutes or bool(self.doubts)


def unit_of(config: Mapping[str, Any]) -> str:
    """What a canary is, a key of ``SETTINGS``; raises ConfigError where canaries cannot be that."""
    experiment = typed({"resume": None} | dict(config)).experiment
    personal = experiment.personalisation
    if personal.keeps_own:
        raise ConfigError(
            f"personalisation={personal.name}: an audit hears rounds in which all begin from one model; accepted: none "
            "or one whose models are trained afterwards"
        )
    if isinstance(experiment.federation, FedBuff):
        raise ConfigError(
            "federation=fedbuff: an audit hears rounds in which all begin from one model; accepted: a federation that "
            "waits for all"
        )
    if not experiment.trainer.sums_gradients:
        name = identity_of(type(experiment.trainer)).rpartition("/")[2]
        raise ConfigError(
            f"trainer={name}: an audit looks for canaries' gradients in a sum, and this is no sum of gradients; "
            "accepted: another trainer"
        )
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
    experiment = typed({"resume": None} | dict(config)).experiment
    kept: Settings = {"trainer": getattr(experiment.trainer, "fixed", {})}  # what it takes no other value of
    for settings in (SETTINGS[unit], more, own, kept, changes):
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
