"""One experiment: typed, planned before it runs, run, measured, and written down."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge
from flwr.serverapp import Grid
from pydantic import BeforeValidator, InstanceOf, SkipValidation

from medx.aggregation import Aggregation
from medx.baselines import PHANTOMS, check_phantoms, phantoms_alone, plan_baselines, share_epsilon, that_train
from medx.dataset import Dataset
from medx.federation.checkpoint import ServerState, resumed_state
from medx.federation.fedbuff import FedBuff
from medx.federation.hospital import Hospitals
from medx.federation.hospital_app import client_app
from medx.federation.ledgers import check_ledgers, withdraw
from medx.federation.plain_rounds import RoundAborted
from medx.federation.prepared import Prepared, prepare
from medx.federation.server import Server
from medx.federation.setup import Job, Setup, build_module, data_key, make_job
from medx.federation.strategies import Federation
from medx.federation.sums import aggregation_result, with_sums
from medx.folder import RunFolder
from medx.machine import resolve_device
from medx.measurement import check_model
from medx.metrics import ThresholdRule
from medx.metrics.evaluate import refuse_unknown_metric
from medx.model import Model, weights_of
from medx.outcome import Outcome, finish, noise_before, write_down
from medx.partition import Partition, partition_table
from medx.personalisation import Personalisation
from medx.privacy.base import PrivacyMechanism
from medx.privacy.plan_table import summarise
from medx.privacy.statement import statement
from medx.results import (
    AttackResult,
    ExperimentResult,
    Observer,
    RoundRecord,
    RunContext,
    Status,
    Together,
)
from medx.runtime import Runtime
from medx.schema import CheckpointError, ConfigError, LedgerError, MedxError, Place, component, option_of
from medx.trainer.local_training import Trainer

log = logging.getLogger(__name__)
Baseline = Literal["local_only", "centralized", "phantoms_alone"]
Attacks = Callable[[dict[str, Any], Prepared, Path], list[AttackResult]]


def _as_list(value: object) -> object:
    """``baseline=local_only`` and ``baseline=[local_only,centralized]`` both read well."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(dict.fromkeys(value)) if isinstance(value, list) else value


@component
class Experiment:
    """Everything that a run is. Each group is one component, chosen by Hydra."""

    study: str | None
    seed: Annotated[int, Ge(0)]
    device: str
    cache: Place
    select: str | None
    attack: Literal["none", "standard"] = "none"  # of runs from before there were any
    threshold: ThresholdRule
    baseline: Annotated[list[Baseline], BeforeValidator(_as_list)]
    dataset: SkipValidation[Dataset]
    partition: SkipValidation[Partition]
    model: SkipValidation[Model]
    trainer: SkipValidation[Trainer]
    privacy: InstanceOf[PrivacyMechanism]
    federation: SkipValidation[Federation]
    aggregation: SkipValidation[Aggregation]
    personalisation: InstanceOf[Personalisation]
    runtime: SkipValidation[Runtime]


def run_experiment(
    experiment: Experiment,
    config: dict[str, Any],
    setup: Setup,
    place: RunFolder,
    observers: Sequence[Observer],
    *,
    attacks: Attacks | None = None,
) -> ExperimentResult:
    """Plan, train and measure one experiment; writes ``config.json`` and ``result.json`` in its folder.

    ``attacks`` are what a finished run is followed by, on a copy of it.
    Raises a MedxError before anything is trained where the experiment cannot be run; a run that stops early
    (aborted, out of budget, killed) ends in a result with that status and the last round's model.
    """
    began = time.perf_counter()
    setup = share_epsilon(setup, that_train(experiment.baseline))
    prepared = prepare(setup)
    check_combination(experiment, setup, prepared, config)
    # A run that was stopped before its first checkpoint has trained nothing: it starts anew, on the same ledgers.
    reached = resumed_state(place.path / "checkpoints", place.run) if place.resumed else None
    job = with_sums(make_job(setup, prepared.declared, place.run, place.path, reached))
    check_model(job, prepared)
    check_ledgers(job)
    baselines = plan_baselines(that_train(experiment.baseline), job, prepared)
    if baselines:  # their models are what the epsilon is shared with, and not runs to choose among
        job = replace(job, plan=replace(job.plan, num_runs=1, baselines=tuple(that_train(experiment.baseline))))
    place.occupy(config)
    import_module("medx.trainer.module")  # lightning takes seconds, which are the start's and not the first round's
    loaded = time.perf_counter()
    told = Together(observers)
    told.on_start(make_context(experiment, job, prepared, config, place.config_hash))
    try:
        outcome = run_rounds(experiment, Hospitals(job, prepared), told.on_round, begin=reached)
        if outcome.noise is None and place.resumed:
            outcome = replace(outcome, noise=noise_before(place.path))
        trained = time.perf_counter()
        result = finish(job, prepared, outcome, config, planned=baselines, config_hash=place.config_hash)
        ended = time.perf_counter()
        phases = {"prepare": loaded - began, "rounds": trained - loaded, "measure": ended - trained}
        if PHANTOMS in experiment.baseline and result.status == "finished":
            result.baselines[PHANTOMS] = phantoms_alone(setup, prepared)
        result.timing, result.started = phases | {"total": ended - began}, place.started
        write_down(result, place.path)
        if attacks is not None and result.status == "finished":
            result.attacks = attacked(attacks, config, prepared, place.path)
    except BaseException as error:
        told.on_error(error)
        raise
    told.on_end(result)
    write_down(result, place.path)  # again: now it says where it is tracked, and what attacks found
    return result


def attacked(attacks: Attacks, config: dict[str, Any], prepared: Prepared, folder: Path) -> list[AttackResult]:
    """What attacks find; where they end in an error a person is told, and the run, which is complete, has none."""
    try:
        return attacks(config, prepared, folder)
    except MedxError as error:
        log.warning("attack=standard came to no end: %s; the run itself is complete", error)
        return []


def make_setup(experiment: Experiment, config: dict[str, Any], draw_key: str) -> Setup:
    """The set-up that every process builds its data and clients from."""
    groups = {name: config[name] for name in ("dataset", "partition", "model")}
    clients = experiment.federation.num_clients
    files = getattr(experiment.dataset, "fingerprint", str)()  # a person may change them between two runs of a process
    return Setup(
        seed=experiment.seed,
        device=resolve_device(experiment.device),
        dataset=experiment.dataset,
        partition=experiment.partition,
        model=experiment.model,
        trainer=experiment.trainer,
        privacy=experiment.privacy,
        federation=experiment.federation,
        aggregation=experiment.aggregation,
        personalisation=experiment.personalisation,
        threshold=experiment.threshold,
        cache=experiment.cache,
        data_key=data_key(experiment.seed, num_clients=clients, files=files, **groups),
        draw_key=draw_key,
    )


def check_combination(experiment: Experiment, setup: Setup, prepared: Prepared, config: dict[str, Any]) -> None:
    """Refuse groups that do not go together, or not on this machine."""
    virtual_speeds(experiment.runtime, setup.federation)
    experiment.runtime.check()
    several = prepared.spec.task == "multilabel"
    setup.trainer.check(prepared.spec.num_classes, images=prepared.features is None, several=several)
    if experiment.select is not None:
        refuse_unknown_metric(experiment.select, prepared.spec.num_classes, prepared.spec.task)
    federation = option_of("federation", config["federation"]["_target_"])
    setup.aggregation.check_strategy(federation)
    if setup.personalisation.told is not None:
        network = build_module(setup, prepared.spec)
        setup.personalisation.check(setup.trainer, setup.privacy, federation, setup.aggregation, network)
    experiment.privacy.check_baselines(that_train(experiment.baseline))
    check_phantoms(experiment.baseline, setup, prepared.spec)


def make_context(
    experiment: Experiment, job: Job, prepared: Prepared, config: dict[str, Any], config_hash: str
) -> RunContext:
    """What the screen and the tracking store show before the first round."""
    splits, model = prepared.splits, option_of("model", config["model"]["_target_"])
    return RunContext(
        title=f"{splits.title}: {model}, {job.plan.mechanism.name}, seed {experiment.seed}",
        dataset=splits.name,
        run=job.run_id,
        config_hash=config_hash,
        folder=job.folder,
        config=config,
        num_rounds=experiment.federation.updates,
        resumed=job.resumed,
        synthetic=splits.synthetic,
        public=splits.public,
        warning=job.plan.warning,
        statement=statement(
            *(job.plan, splits.synthetic),
            aggregation=aggregation_result(job),
            weights=weights_of(experiment.model),
            personal=experiment.personalisation.told,
            bounds=experiment.trainer.bounds,
        ),
        plan_rows=summarise(job.plan),
        partition_rows=partition_table(list(prepared.parts), splits.train.labels, splits.class_names),
    )


def run_rounds(
    experiment: Experiment,
    hospitals: Hospitals,
    on_round: Callable[[RoundRecord], None],
    *,
    begin: ServerState | None = None,
) -> Outcome:
    """Run the rounds on the configured runtime, from ``begin`` on; an early stop keeps what was reached."""
    job = hospitals.job
    server = Server(
        *(job, hospitals.recorded, on_round, experiment.runtime.timeout, hospitals.prepared),
        speeds=virtual_speeds(experiment.runtime, job.setup.federation),
    )

    def run(serve: Callable[[Grid], None]) -> None:
        experiment.runtime.run(client_app(hospitals), job.setup.num_clients, serve)

    try:
        return replace(follow(server, begin, run), noise=hospitals.noise.found() or server.noise_found())
    except LedgerError:
        if not job.resumed:
            withdraw(job)
        raise
    finally:
        hospitals.close()


def virtual_speeds(runtime: Runtime, federation: Federation) -> tuple[float, ...] | None:
    """The time that each hospital takes by a virtual clock; None where neither rounds nor a person ask for one.

    Raises ConfigError where the real one would say who is late, and the result depend on the machine.
    """
    if isinstance(federation, FedBuff) and runtime.timeout is not None:
        raise ConfigError(
            f"runtime.timeout={runtime.timeout:g}: federation=fedbuff goes by a virtual clock in a simulation, where "
            "nobody is late; accepted: null"
        )
    alike = (1.0,) * federation.num_clients if isinstance(federation, FedBuff) else None
    return runtime.speeds_of(federation.num_clients) or alike


def follow(server: Server, begin: ServerState | None, run: Callable[[Callable[[Grid], None]], None]) -> Outcome:
    """The server's rounds from ``begin`` on, where ``run`` calls what it is given with a grid.

    Raises LedgerError where a budget refuses the run before it has started.
    """
    reached = [begin or server.initial_state()]

    def serve(grid: Grid) -> None:
        for state in server.rounds(grid, reached[-1]):
            reached[:] = [state]

    status: Status = "finished"
    error = None
    try:
        run(serve)
    except RoundAborted as problem:
        status, error = "aborted", str(problem)
    except CheckpointError as problem:
        status, error = "failed", str(problem)
    except LedgerError as problem:
        if not server.started:
            raise
        status, error = "budget_exhausted", str(problem)
    except KeyboardInterrupt:
        status, error = "killed", "stopped by the user"
    return Outcome(reached[-1], status, error)
