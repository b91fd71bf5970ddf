"""Runs of the real server and clients in this process, with data and trainer given by a benchmark."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import hydra
import numpy as np
from flwr.serverapp import Grid

from benchmarks.common import ROOT
from medx.configuration import plain, typed
from medx.dataset import DataSplits, Split
from medx.experiment import make_setup
from medx.federation.hospital import Hospitals
from medx.federation.hospital_app import client_app
from medx.federation.prepared import prepare
from medx.federation.server import Server
from medx.federation.setup import Setup, draw_key, make_job
from medx.results import RoundRecord
from medx.runtime import Runtime


@dataclass(frozen=True)
class Given:
    """A data set that is already there."""

    splits: DataSplits

    def load(self) -> DataSplits:
        """The splits."""
        return self.splits


def random_images(count: int) -> Given:
    """``count`` training images of noise, 28x28 and grey, with two classes; 32 in each other split."""
    generator = np.random.default_rng(0)
    train, validation, test = (
        Split(generator.integers(0, 256, (size, 28, 28, 1), dtype=np.uint8), np.arange(size) % 2)
        for size in (count, 32, 32)
    )
    facts = {"name": "noise", "title": "SYNTHETIC noise", "task": "binary", "class_names": ("even", "odd")}
    half = {"mean": (0.5,), "std": (0.5,), "md5": None, "synthetic": True, "content_hash": f"noise {count}"}
    return Given(DataSplits(train=train, validation=validation, test=test, **facts, **half))  # type: ignore[arg-type]


def configure(overrides: Sequence[str]) -> tuple[Setup, Runtime]:
    """The set-up and runtime that ``medx.run`` would make of these overrides."""
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = plain(hydra.compose("config", overrides=list(overrides)))
    composed = typed(config)
    return make_setup(composed.experiment, composed.config, draw_key(composed.what)), composed.experiment.runtime


def with_data(setup: Setup, data: Given) -> Setup:
    """The set-up on other data."""
    key = f"{data.splits.content_hash} {setup.federation.num_clients}"
    return replace(setup, dataset=data, data_key=key)


def time_rounds(setup: Setup, runtime: Runtime, count: int, cpu: list[float] | None = None) -> list[float]:
    """Seconds of ``count`` rounds, after one that is not counted; everything between two rounds is included.

    Those of this process's CPU are added to ``cpu``.
    """
    times: list[float] = []
    with TemporaryDirectory() as folder:
        prepared = prepare(setup)
        hospitals = Hospitals(make_job(setup, prepared.declared, "benchmark", Path(folder)), prepared)
        server = Server(hospitals.job, hospitals.recorded, ignore, runtime.timeout, prepared)

        def serve(grid: Grid) -> None:
            rounds = server.rounds(grid, server.initial_state())
            next(rounds)
            for _ in range(count):
                started, before = time.perf_counter(), time.process_time()
                next(rounds)
                times.append(time.perf_counter() - started)
                if cpu is not None:
                    cpu.append(time.process_time() - before)

        try:
            runtime.run(client_app(hospitals), setup.num_clients, serve)
        finally:
            hospitals.close()
    return times


def ignore(record: RoundRecord) -> None:
    """Nobody watches."""
