"""The rows to compare with: each hospital alone, and all records in one place."""

import logging
from dataclasses import replace
from typing import Any

from flwr.serverapp import Grid

from medx.federation.client import client_app
from medx.federation.job import Job, Setup, make_job, prepare
from medx.federation.local_client import forget
from medx.federation.rounds import RoundAborted
from medx.federation.server import Server
from medx.federation.sums import alone, with_sums
from medx.measurement import Measurement, mean_intervals, measure
from medx.results import Interval
from medx.runtime.in_process import InProcess

log = logging.getLogger(__name__)


def run_baselines(names: list[str], setup: Setup, job: Job, config: dict[str, Any]) -> dict[str, dict[str, Interval]]:
    """The baselines that were asked for, each with the same mechanism and budget as the run itself."""
    results: dict[str, dict[str, Interval]] = {}
    for name in names:
        if name == "centralized":
            variants = [replace(setup, pooled=True)]
        else:
            variants = [replace(setup, only_client=client) for client in range(setup.federation.num_clients)]
        measured = [run_variant(variant, f"{name}_{i}", job, config) for i, variant in enumerate(variants)]
        results[name] = measured[0].test if len(measured) == 1 else mean_intervals([m.test for m in measured])
    return results


def run_variant(setup: Setup, name: str, job: Job, config: dict[str, Any]) -> Measurement:
    """Train one baseline model in this process, in a folder of its own."""
    setup, prepared = alone(setup), prepare(setup)
    variant = make_job(setup, prepared, f"{job.run_id}-{name}", job.folder / "baselines" / name)
    variant = with_sums(variant, prepared)
    server = Server(variant, prepared, config, None, None)
    states = [server.initial_state()]

    def serve(grid: Grid) -> None:
        for state in server.rounds(grid, states[-1]):
            states[:] = [state]

    try:
        InProcess(timeout=None, workers=None).run(client_app(variant), 1, serve)
    except RoundAborted as problem:  # the run itself is done: its result stands, and the baseline is as far as it got
        log.warning("baseline %s stopped early: %s", name, problem)
    finally:
        forget(variant)
    return measure(server.module, states[-1].average, prepared, setup.device, setup.seed)
