"""Shadow runs: one configuration trained again and again, each time on a random half of every hospital's records.

They are jobs of the sweep's own pool, each a run with a folder, below ``cache=``: what has finished is not run again.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medx.api import composed
from medx.attacks.shadows import Claims, Halves, Observed, halves, logits
from medx.configuration import Composed, typed
from medx.experiment import make_setup
from medx.federation.prepared import Prepared, prepare
from medx.federation.server import predict
from medx.federation.setup import Setup, build_network, draw_key
from medx.folder import CONFIG_FILE, read_result
from medx.job import cache_at, run_job
from medx.launcher.outcomes import FAILURE_FILE, failures_kept, is_done, why_unfinished
from medx.launcher.pool import Job, run_jobs
from medx.model.storage import read_tensors
from medx.privacy.units import RECORD
from medx.randomness import NUMERICS, derive_seed
from medx.schema import ConfigError, MedxError

# A shadow run is not measured in between, and nobody follows it but the attack.
QUIET = ("tracking=none", "runtime=in_process", "baseline=null", "select=null", "attack=none", "resume=null")
SEEDS = 2**31  # of the runs' own draws


@dataclass(frozen=True)
class Shadows:
    """``runs`` shadow runs, an even number, of the run that the overrides describe."""

    overrides: Sequence[str]
    runs: int
    config: dict[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.runs < 12 or self.runs % 4:  # half of them, less a pair, must leave two of each kind
            raise ConfigError(
                f"runs={self.runs}: they are halved, and each half is of pairs; accepted: 12, 16, 20, ..."
            )
        config, _ = composed([*self.overrides, *QUIET], None, None)
        config["federation"] |= {"evaluate_every": config["federation"]["num_rounds"]}
        config["privacy"] = {
            # What these runs spend is nobody's budget: no model of theirs leaves the house.
            key: None if key in ("ledger", "budget") else value
            for key, value in config["privacy"].items()
        }
        whole = typed(config)
        if (unit := whole.experiment.privacy.protected) not in (None, RECORD):
            raise ConfigError(
                f"privacy: its unit is a {unit.name if unit else unit}; accepted: runs that protect a record, or none"
            )
        object.__setattr__(self, "config", {**whole.config, "resume": None})

    @cached_property
    def prepared(self) -> Prepared:
        """All records, dealt as the runs have them."""
        with cache_at(self._whole.experiment.cache):
            return prepare(self._setup)

    def train(self, at_once: int | None = None) -> None:
        """Run those that have not finished, in processes of their own; raises MedxError where one does not finish."""
        jobs = [job for job in self.jobs() if not is_done(job.folder)]
        if jobs:
            run_jobs(jobs, len(jobs), at_once)

    def jobs(self) -> Iterator[Job]:
        """Each run; what is not known by its configuration, the records, is in its folder's name."""
        for number in range(self.runs):
            config = self.of(number)
            named = f"{typed(config).hash} {config['seed']} {self.prepared.declared.records.hex()} {NUMERICS}"
            name = hashlib.sha256(named.encode()).hexdigest()[:24]
            folder = self._whole.experiment.cache / "shadows" / name
            yield Job(f"shadow {number} of {self.runs}", folder, ShadowRun(config, folder))

    def of(self, number: int) -> dict[str, Any]:
        """The configuration of one run."""
        seed = self.config["seed"]
        partition = {
            "_target_": f"{Halves.__module__}.{Halves.__qualname__}",
            "base": self.config["partition"],
            "number": number,
            "seed": seed,
        }
        return self.config | {"partition": partition, "seed": derive_seed(seed, "shadow run", number) % SEEDS}

    def observed(self) -> Observed:
        """What all runs say; raises MedxError where one has not finished."""
        parts = self.prepared.parts
        hospitals = np.full(len(self.prepared.splits.train), -1)
        inside = np.zeros((self.runs, len(hospitals)), bool)
        for hospital, part in enumerate(parts):
            hospitals[part] = hospital
        for number in range(self.runs):
            inside[number, np.concatenate(halves(parts, self.config["seed"], number))] = True
        results, signals, others = [], [], []
        for job in self.jobs():
            if (why := why_unfinished(job.folder)) is not None:
                raise MedxError(f"{job.title}: {why} ({job.folder})")
            results.append(read_result(job.folder))
            own, held_out = self._signals(job.folder)
            signals.append(own)
            others.append(held_out)
        rows = np.flatnonzero(2 * inside.sum(0) == self.runs)  # every draw may leave another one out
        said = (np.stack(signals)[:, rows], np.stack(others))
        return Observed(inside[:, rows], *said, rows, hospitals[rows], Claims.of(results))

    def _signals(self, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """The averaged model's signals of training and of test records."""
        saved, _ = read_tensors(folder / "model.safetensors")
        state = {name.removeprefix("head."): each for name, each in saved.items() if name.startswith("head.")}
        module = build_network(self._setup, self.prepared.spec)
        inputs, labels = self.prepared.inputs, self.prepared.labels
        with torch.no_grad():
            train, test = (
                logits(predict(module, state, self.prepared, inputs[split], "cpu").numpy(), labels[split].numpy())
                for split in ("train", "test")
            )
        return train, test

    @cached_property
    def _whole(self) -> Composed:
        return typed(self.config)

    @cached_property
    def _setup(self) -> Setup:
        return make_setup(self._whole.experiment, self._whole.config, draw_key(self._whole.what))


@dataclass(frozen=True)
class ShadowRun:
    """The work of one job, which goes on with what lies in its folder; how it ended is told by its files."""

    config: dict[str, Any]
    folder: Path

    def __call__(self) -> None:
        """Raises KeyboardInterrupt where the user stopped it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        again = str(self.folder) if (self.folder / CONFIG_FILE).exists() else None
        result = None
        with failures_kept(self.folder, [f"partition.number={self.config['partition']['number']}"]):
            result = run_job(self.config | {"resume": again}, self.folder, [])
            (self.folder / FAILURE_FILE).unlink(missing_ok=True)  # of an earlier attempt
        if result is not None and result.status == "killed":
            raise KeyboardInterrupt
