"""A study from its first message to its result, in the coordinator's folder: what the ServerApp does."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from flwr.serverapp import Grid
from pydantic import BaseModel, ConfigDict, Field

import medx
from medx import files
from medx.configuration import build
from medx.experiment import follow
from medx.federation.checkpoint import resumed_state
from medx.federation.prepared import Prepared, prepare_own
from medx.federation.setup import Job, build_network, solved
from medx.federation.sums import aggregation_result
from medx.folder import LOCK_FILE, moment
from medx.hints import option
from medx.machine import environment
from medx.measurement import Measurement, describe, described, measure
from medx.model import weights_of
from medx.model.export import describe as describe_model
from medx.model.export import save_model
from medx.outcome import Outcome, guarantee, write_down
from medx.privacy.executed import privacy_result
from medx.privacy.plan_table import summarise
from medx.privacy.statement import statement
from medx.results import DatasetInfo, ExperimentResult, Observer, RunContext, Together
from medx.schema import ConfigError
from medx.screen import Screen
from medx.site.consortium import Consortium, checked, read_yaml
from medx.site.coordinator import Receipt, SiteServer
from medx.site.flower import Patient
from medx.site.planning import Place, configured, job_of
from medx.site.study import Study, check_fits, read_study

log = logging.getLogger(__name__)
FILE = "coordinator.yaml"
RUNS = "runs"


class CoordinatorConfig(BaseModel):
    """What a coordinator sets on its own machine, each key with a default.

    ``timeout`` bounds an exchange with the hospitals and ``patience`` the wait for those that are not there, in
    seconds. ``evaluation`` is a public data set, as option and values, on which rounds are evaluated; null: none.
    ``tracking`` is an option of that group with its values, from this folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Annotated[str, Field(description="auto, cpu, cuda, cuda:1")] = "auto"
    cache: Annotated[Path, Field(description="a path")] = Path("~/.cache/medx")
    timeout: Annotated[float, Field(gt=0, description="seconds, more than 0")] = 600.0
    patience: Annotated[float, Field(ge=0, description="seconds")] = 120.0
    evaluation: Annotated[dict[str, Any] | None, Field(description="null, or option and values of a data set")] = None
    tracking: Annotated[dict[str, Any], Field(description="option and values of a tracking store")] = {"option": "none"}

    @classmethod
    def load(cls, folder: Path) -> "CoordinatorConfig":
        """Read ``coordinator.yaml``, where there is one; raises ConfigError that names the key."""
        path = folder / FILE
        found = checked(cls, read_yaml(path) or {}, path) if path.exists() else cls()
        return found.model_copy(update={"cache": found.cache.expanduser()})


@dataclass(frozen=True)
class Conduct:
    """One study in the coordinator's folder: its job, its run's folder, and the public images, if there are any."""

    study: Study
    consortium: Consortium
    config: CoordinatorConfig
    job: Job
    prepared: Prepared | None

    @property
    def folder(self) -> Path:
        """Where checkpoints and result lie."""
        return self.job.folder


def run_folder(folder: Path, study: Study) -> Path:
    """The folder of a study's run: the same study, submitted again, goes on there."""
    return folder.absolute() / RUNS / study.digest[:16]


def conduct(folder: Path, text: str, grid: Grid) -> ExperimentResult:
    """Run the study whose signed text this is with the hospitals behind the grid; raises MedxError.

    A study that was stopped goes on from its last checkpoint.
    """
    consortium, config = Consortium.load(folder), CoordinatorConfig.load(folder)
    study = read_study(text, consortium.coordinator)
    check_fits(study, consortium)
    place = run_folder(folder, study)
    place.mkdir(parents=True, exist_ok=True)
    try:
        with files.locked(place / LOCK_FILE, wait=False):
            files.write_text(place / "study.json", text)
            return _held(study, consortium, config, place, grid)
    except BlockingIOError:
        raise ConfigError(f"{place}: this study is running; accepted: to wait for its end, or to stop it") from None


def _held(study: Study, consortium: Consortium, config: CoordinatorConfig, place: Path, grid: Grid) -> ExperimentResult:
    began, started = time.perf_counter(), moment()
    reached = resumed_state(place / "checkpoints", study.run)
    side = Place(device=config.device, cache=config.cache, folder=place)
    dataset = None if config.evaluation is None else evaluation(config.evaluation, study)
    job = job_of(study, consortium, side, dataset=dataset, reached=reached)
    prepared = None if dataset is None else prepare_own(job.setup, 0)
    held = Conduct(study, consortium, config, job, prepared)
    observers: list[Observer] = [Screen(), *_tracking(config, folder=place.parents[1])]
    told = Together(observers)
    told.on_start(_context(held, side))
    server = SiteServer(job, study, consortium, told.on_round, prepared, patience=config.patience)
    patient = Patient(grid, timeout=config.timeout, patience=config.patience, genuine=server.genuine)
    try:
        outcome = follow(server, reached, lambda serve: serve(patient))
        result = _concluded(held, side, server, outcome)
    except BaseException as error:
        told.on_error(error)
        raise
    result.timing = {"total": time.perf_counter() - began}
    result.started = started if reached is None else None  # of one that is gone on with nobody has kept it
    write_down(result, place)
    told.on_end(result)
    write_down(result, place)  # again: now it says where it is tracked
    return result


def evaluation(given: dict[str, Any], study: Study) -> Any:
    """The coordinator's public data set, at the study's size."""
    values = dict(given)
    known = option("dataset", str(values.pop("option", None)))
    size = {"size": study.image_size} if "size" in known else {}
    return build({"dataset": known | size | values}, "dataset")


def _tracking(config: CoordinatorConfig, folder: Path) -> list[Observer]:
    values = dict(config.tracking)
    known = option("tracking", str(values.pop("option", None)))
    defaults = {key: None if isinstance(value, str) and "${" in value else value for key, value in known.items()}
    store = build({"tracking": defaults | values}, "tracking").settled(folder)
    observers: list[Observer] = store.observers(None)
    return observers


def full_config(study: Study, side: Place) -> dict[str, Any]:
    """The configuration that stands in the result: the study's groups, and what is elsewhere by its name alone."""
    others = {"dataset": study.dataset, "partition": "site"}
    named = {group: {"_target_": option(group, name)["_target_"]} for group, name in others.items()}
    return {"study": None, "seed": study.seed, "runtime": "deployment", **named, **configured(study, side)}


def _context(held: Conduct, side: Place) -> RunContext:
    study, job = held.study, held.job
    sums = aggregation_result(job)
    return RunContext(
        title=study.title,
        dataset=study.dataset,
        run=study.run,
        config_hash=study.digest[:16],
        folder=job.folder,
        config=full_config(study, side),
        num_rounds=job.setup.federation.updates,
        resumed=job.resumed,
        synthetic=study.synthetic,
        public=study.synthetic,
        warning=job.plan.warning,
        statement=statement(
            *(job.plan, study.synthetic),
            aggregation=sums,
            weights=weights_of(job.setup.model),
            bounds=job.setup.trainer.bounds,
        ),
        plan_rows=summarise(job.plan),
        partition_rows=[{"hospital": each.name, "records": each.num_records} for each in study.hospitals],
    )


def _concluded(held: Conduct, side: Place, server: SiteServer, outcome: Outcome) -> ExperimentResult:
    """Receipts and reports, the model's file and the result; each hospital's steps are what it signed for."""
    job, study, state = held.job, held.study, outcome.server
    receipts = server.receipts() if outcome.status == "finished" else {}
    reports = server.reports(state) if outcome.status == "finished" else {}
    files.write_json(held.folder / "receipts.json", [_signed(receipt) for receipt in receipts.values()])
    files.write_json(held.folder / "reports.json", {study.hospitals[client].name: r for client, r in reports.items()})
    steps = server.asked_for(state.steps) if job.plan.private else state.steps
    for client, receipt in receipts.items():
        least = state.charged.get(client, 0)  # what it has answered for
        if job.plan.private and receipt.steps < least:
            log.warning("the receipt of %s shows %d steps of %d", receipt.hospital, receipt.steps, least)
        steps = steps | {client: max(receipt.steps, least)} if job.plan.private else steps
    weights = weights_of(job.setup.model)
    privacy = privacy_result(
        *(job.plan, steps, study.synthetic, aggregation_result(job)), weights=weights, bounds=job.setup.trainer.bounds
    )
    module = build_network(job.setup, study.spec)
    module.load_state_dict(module.state_dict() | solved(job, module, state.average.tensors()))
    measured = _measured(held, server, outcome)
    about = describe_model(
        *(job.setup.model, study.spec, study.mean, study.std),
        threshold=None if measured is None else measured.thresholds or measured.threshold,
        privacy=guarantee(privacy),
        run=study.run,
        classes=study.class_names,
    )
    checkpoint = held.folder / "model.safetensors"
    save_model(checkpoint, about, job.setup.model.features(study.spec), module.cpu())
    known = {} if measured is None else {name: value for name, value in measured if name != "by_hospital"}
    return ExperimentResult(
        run=study.run,
        status=outcome.status,
        error=outcome.error,
        seed=study.seed,
        config_hash=study.digest[:16],
        dataset=_dataset(held),
        model=described(str(study.config["model"]["option"]), module, weights),
        privacy=privacy,
        rounds=state.records,
        checkpoint=str(checkpoint),
        environment=environment(job.setup.device) | {"medx": medx.__version__},
        config=full_config(study, side),
        **known,
    )


def _signed(receipt: Receipt) -> dict[str, Any]:
    return {"receipt": receipt.said, "signature": receipt.signature}


def _measured(held: Conduct, server: SiteServer, outcome: Outcome) -> Measurement | None:
    if held.prepared is None:
        return None
    average = solved(held.job, server.network, outcome.server.average.tensors())
    return measure(server.network, average, held.prepared, held.job.setup, test_rows={})


def _dataset(held: Conduct) -> DatasetInfo:
    """Which data: the hospitals' training images, counted by what they declared, and the coordinator's own others."""
    study = held.study
    trained = sum(each.num_records for each in study.hospitals)
    if held.prepared is not None:
        found = describe(held.prepared.splits)
        return found.model_copy(update={"sizes": found.sizes | {"train": trained}, "class_counts": {}})
    return DatasetInfo(
        name=study.dataset,
        title=study.title,
        task=study.task,
        synthetic=study.synthetic,
        sizes={"train": trained, "validation": 0, "test": 0},
        class_names=list(study.class_names),
        image_size=study.image_size,
        num_channels=study.num_channels,
    )
