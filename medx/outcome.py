"""What the rounds came to: measured, accounted for by what was executed, saved and written down."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from medx.baselines import Baseline, run_baselines
from medx.federation.checkpoint import ServerState
from medx.federation.ledgers import finish_ledgers, recorded_steps
from medx.federation.prepared import Prepared
from medx.federation.setup import Job, build_network, solved
from medx.federation.sums import aggregation_result
from medx.folder import RESULT_FILE, load_result
from medx.machine import environment
from medx.measurement import Measurement, describe, described, measure, measure_clients, own_test_rows
from medx.model import weights_of
from medx.model.export import describe as describe_model
from medx.model.export import save_model
from medx.output import say
from medx.personal import personal_models
from medx.privacy.executed import privacy_result
from medx.results import ExperimentResult, NoiseMeasured, PrivacyResult, Status
from medx.schema import option_of


@dataclass(frozen=True)
class Outcome:
    """How the rounds ended: the last state, and why it stopped if it stopped early."""

    server: ServerState
    status: Status = "finished"
    error: str | None = None
    noise: NoiseMeasured | None = None


def finish(
    job: Job,
    prepared: Prepared,
    outcome: Outcome,
    config: dict[str, Any],
    *,
    planned: Sequence[Baseline],
    config_hash: str,
) -> ExperimentResult:
    """Measure the averaged model, account for what was executed, export the checkpoint."""
    say("measuring the model")
    setup, splits = job.setup, prepared.splits
    module = build_network(setup, prepared.spec).to(setup.device)
    average = solved(job, module, outcome.server.average.tensors())
    measured = measure(module, average, prepared, setup, test_rows=own_test_rows(prepared))
    module.load_state_dict(module.state_dict() | average)  # what is not trained stays as it was built
    baselines = run_baselines(planned if outcome.status == "finished" else [])  # else a resume would find them spent
    weights = weights_of(setup.model)
    privacy = privacy_result(
        *(job.plan, executed_steps(job, outcome), splits.synthetic, aggregation_result(job), baselines.spent),
        noise=outcome.noise,
        weights=weights,
        personal=setup.personalisation.told,
        bounds=setup.trainer.bounds,
    )
    checkpoint = export(job, prepared, measured, privacy, module)
    return ExperimentResult(
        run=job.run_id,
        status=outcome.status,
        error=outcome.error,
        seed=setup.seed,
        config_hash=config_hash,
        dataset=describe(splits),
        model=described(option_of("model", config["model"]["_target_"]), module, weights),
        **{name: value for name, value in measured if name != "by_hospital"},
        clients=measure_clients(
            *(module.to(setup.device), average, prepared, setup.device),
            measured=measured,
            baselines=baselines.by_hospital,
        ),
        baselines=baselines.results,
        personal=personal_models(job, prepared, average) if outcome.status == "finished" else [],
        privacy=privacy,
        rounds=outcome.server.records,
        checkpoint=str(checkpoint),
        environment=environment(setup.device),
        config=config,
    )


def export(job: Job, prepared: Prepared, measured: Measurement, privacy: PrivacyResult, module: nn.Module) -> Path:
    """The model as a file of the run's folder, with its threshold and its guarantee; the module ends on the CPU."""
    splits = prepared.splits
    about = describe_model(
        job.setup.model,
        splits.spec,
        splits.mean,
        splits.std,
        threshold=measured.threshold if measured.thresholds is None else measured.thresholds,
        privacy=guarantee(privacy),
        run=job.run_id,
        classes=splits.class_names,
        recipe=getattr(job.setup.dataset, "recipe", None),
    )
    path = job.folder / "model.safetensors"
    save_model(path, about, prepared.features, module.cpu())
    return path


def guarantee(privacy: PrivacyResult) -> dict[str, Any]:
    """What a model file says of its own privacy, and of the threshold beside the weights."""
    kept = ("mechanism", "unit", "adjacency", "epsilon", "delta", "noise_source", "warning")
    covered = {name: getattr(privacy, name) for name in kept}
    return covered | {"threshold": "chosen on validation records, which epsilon does not cover"}


def executed_steps(job: Job, outcome: Outcome) -> dict[int, int]:
    """Steps that every client executed: from its ledger where there is one, else from its answers."""
    if not job.plan.private:
        return outcome.server.steps
    if outcome.status == "finished":
        finish_ledgers(job)
    return recorded_steps(job, outcome.server.steps)


def noise_before(folder: Path) -> NoiseMeasured | None:
    """What the run's earlier result says of its noise, for a resume that has no round left to do; None without one."""
    before = load_result(folder)
    return None if before is None else before.privacy.noise


def write_down(result: ExperimentResult, folder: Path) -> None:
    """The owner's view as ``result.json``, and beside it what may leave the house as ``released.json``."""
    result.save(folder / RESULT_FILE)
    result.released().save(folder / "released.json")
