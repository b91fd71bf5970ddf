"""The rows to compare with: each hospital alone, all records in one place, and phantoms alone.

The first two train on the records of the run, so with privacy on they share its epsilon: the noise of all is calibrated
for what is done to a record together, and what they spend is a part of what the run states. Phantoms alone are a head
that was fitted before any record was read: it spends nothing, and shares nothing.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flwr.serverapp import Grid

from medx.dataset import InputSpec
from medx.federation.hospital import Hospitals
from medx.federation.hospital_app import client_app
from medx.federation.ledgers import finish_ledgers, recorded_steps
from medx.federation.plain_rounds import RoundAborted
from medx.federation.prepared import Prepared
from medx.federation.server import Server
from medx.federation.setup import Job, Setup, build_network, make_job, solved
from medx.federation.sums import alone, with_sums
from medx.measurement import Measurement, TestRows, mean_intervals, measure, own_test_rows
from medx.model.heads import HeadOnFeatures
from medx.model.phantoms import phantoms_fit
from medx.output import counted
from medx.privacy.accounting import Event, epsilon_spent
from medx.privacy.base import ClientPlan, PrivacyPlan
from medx.results import Interval
from medx.runtime.in_process import InProcess
from medx.schema import ConfigError, LedgerError, PrivacyError

log = logging.getLogger(__name__)
PHANTOMS = "phantoms_alone"
MIXTURES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Baseline:
    """One model to compare with; ``clients`` of the run hold the records that it trains on.

    ``test_rows`` are their own test rows, where the data tell hospitals.
    """

    name: str
    job: Job
    prepared: Prepared
    clients: tuple[int, ...]
    test_rows: TestRows


@dataclass(frozen=True)
class Baselines:
    """What came of them: test metrics by name, and what they executed on the records of each client of the run.

    ``by_hospital`` are metrics on its own test images, by client and name, where the data tell hospitals: of the model
    that all share, and of those that are a hospital's alone, its own.
    """

    results: dict[str, dict[str, Interval]]
    spent: dict[int, list[Event]]
    by_hospital: dict[int, dict[str, dict[str, Interval]]]


def that_train(names: Sequence[str]) -> list[str]:
    """Those of the baselines that train on records."""
    return [name for name in names if name != PHANTOMS]


def check_phantoms(names: Sequence[str], setup: Setup, spec: InputSpec) -> None:
    """Raise ConfigError where phantoms alone are asked for and can give no head."""
    if PHANTOMS not in names:
        return
    model = setup.model
    if not isinstance(model, HeadOnFeatures) or model.hidden:
        why = "the model has no linear head on fixed features, which alone is fitted to phantoms"
    elif not phantoms_fit(spec):
        why = "the data set does not say that phantoms' labels mean the same as its own"
    else:
        return
    left = ",".join(that_train(names)) or "null"
    raise ConfigError(f"baseline={PHANTOMS}: {why}; accepted here: baseline={left}")


def phantoms_alone(setup: Setup, prepared: Prepared) -> dict[str, Interval]:
    """Test metrics of the head that phantoms' own labels give (``model.phantom_start`` of 1), before any training.

    No training record moves it, so its epsilon is 0; its threshold is chosen on validation, as every model's.
    """
    assert isinstance(setup.model, HeadOnFeatures)
    network = build_network(replace(setup, model=replace(setup.model, phantom_start=1.0)), prepared.spec)
    network = network.to(setup.device)
    state = {name: value.detach() for name, value in network.named_parameters()}
    return measure(network, state, prepared, setup, test_rows={}).test


def share_epsilon(setup: Setup, names: Sequence[str]) -> Setup:
    """The set-up with a mechanism whose epsilon is for the run and the baselines that train: one model more for each.

    Its noise is larger than without them, so it is drawn by another key: one noise at two scales would come off.
    """
    privacy = setup.privacy.shared_by(1 + len(names)) if names else setup.privacy
    if privacy == setup.privacy:
        return setup
    return replace(setup, privacy=privacy, draw_key=f"{setup.draw_key} beside {','.join(sorted(names))}")


def plan_baselines(names: Sequence[str], job: Job, prepared: Prepared) -> list[Baseline]:
    """The baselines that were asked for, planned before the run begins, under the mechanism of the run."""
    filled = tuple(plan.client for plan in job.plan.clients if plan.num_records)
    planned = []
    for name in names:
        if name == "centralized":
            planned.append(_planned(replace(job.setup, pooled=True), name, f"{name}_0", job, prepared, names=names))
        else:
            for client in filled:
                variant = replace(job.setup, only_client=client)
                planned.append(_planned(variant, name, f"{name}_{client}", job, prepared, names=names))
    own = own_test_rows(prepared)
    planned = [replace(each, clients=each.clients or filled) for each in planned]
    return [replace(each, test_rows={i: own[i] for i in each.clients if i in own}) for each in planned]


def _planned(setup: Setup, name: str, folder: str, job: Job, prepared: Prepared, *, names: Sequence[str]) -> Baseline:
    setup = alone(setup)
    prepared = prepared.dealt(setup)
    variant = make_job(setup, prepared.declared, f"{job.run_id}-{folder}", job.folder / "baselines" / folder)
    if setup.pooled and variant.plan.private:
        variant = replace(variant, plan=fitted(variant.plan, job.plan, names))
    clients = () if setup.only_client is None else (setup.only_client,)
    return Baseline(name, with_sums(variant), prepared, clients, {})


def fitted(pooled: PrivacyPlan, run: PrivacyPlan, names: Sequence[str]) -> PrivacyPlan:
    """The pooled model's plan with the least noise of a few by which all models together stay within epsilon.

    Its records are drawn less often than a hospital's, so its own calibration, for models that are all alike, is not
    enough. The noise of the run's noisiest client always is: rarer draws under that noise are no more than its own.
    """
    (client,) = pooled.clients
    assert client.step is not None
    assert run.delta is not None
    assert run.target_epsilon is not None
    filled = [plan for plan in run.clients if plan.num_records and plan.step]
    least, most = client.step.noise_multiplier, max(plan.step.noise_multiplier for plan in filled if plan.step)
    for part in MIXTURES:
        noise = most if part == 1 else max(least, least ** (1 - part) * most**part)
        planned = replace(client, step=replace(client.step, noise_multiplier=noise))
        histories = {tuple(_events(plan, len(names))) + tuple(_events(planned, 1)) for plan in filled}
        if max(epsilon_spent(history, run.delta).value for history in histories) <= run.target_epsilon:
            return replace(pooled, clients=(planned,))
    raise PrivacyError(
        f"baseline={','.join(names)}: no noise was found by which run and baselines stay within epsilon="
        f"{run.target_epsilon:g} together; accepted: baseline=null"
    )


def _events(plan: ClientPlan, models: int) -> list[Event]:
    assert plan.step is not None
    return [(plan.step, plan.reserved_steps * models)]


def run_baselines(baselines: Sequence[Baseline]) -> Baselines:
    """Train and measure them, each in this process and in a folder of its own."""
    measured: dict[str, list[Measurement]] = {}
    spent: dict[int, list[Event]] = {}
    by_hospital: dict[int, dict[str, dict[str, Interval]]] = {}
    stopped: set[str] = set()
    for baseline in baselines:
        found = run_baseline(baseline)
        if found is None:
            stopped.add(baseline.name)
        else:
            measured.setdefault(baseline.name, []).append(found)
            for client, intervals in found.by_hospital.items():
                by_hospital.setdefault(client, {})[baseline.name] = intervals
        event = baseline.job.plan.clients[0].step
        if event is not None:
            finish_ledgers(baseline.job)
            steps = recorded_steps(baseline.job, {})[0]
            for client in baseline.clients:
                spent.setdefault(client, []).append((event, steps))
    results = {
        name: models[0].test if len(models) == 1 else mean_intervals([each.test for each in models])
        for name, models in measured.items()
        if name not in stopped
    }
    executed = {client: [event for event in events if event[1]] for client, events in spent.items()}
    return Baselines(results, executed, by_hospital)


def run_baseline(baseline: Baseline) -> Measurement | None:
    """Train and measure one model; None for one that stops early, which would be no model to compare with."""
    job, prepared = baseline.job, baseline.prepared
    hospitals = Hospitals(job, prepared)
    server = Server(job, hospitals.recorded, None, None, prepared)
    states = [server.initial_state()]
    name = baseline.name if job.setup.only_client is None else f"{baseline.name}, hospital {job.setup.only_client}"
    progress = counted(f"baseline {name}", job.setup.federation.num_rounds)

    def serve(grid: Grid) -> None:
        for state in server.rounds(grid, states[-1]):
            states[:] = [state]
            progress(state.round)

    try:
        InProcess(timeout=None, workers=None).run(client_app(hospitals), 1, serve)
    except (RoundAborted, LedgerError) as problem:  # the run itself is done, and its result stands
        log.warning("baseline %s stopped early and is left out: %s", baseline.name, problem)
        return None
    finally:
        hospitals.close()
    average = solved(job, server.network, states[-1].average.tensors())
    return measure(server.network, average, prepared, job.setup, test_rows=baseline.test_rows)
