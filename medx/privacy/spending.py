"""What a run has spent: epsilon after every round, and the result's privacy record from what was executed."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from medx.privacy.accounting import Event, epsilon_curve, epsilon_pld, epsilon_prv, epsilon_rdp, epsilon_spent
from medx.privacy.base import ClientPlan, PrivacyPlan, SampledGaussian
from medx.privacy.groups import epsilon_by_group, epsilon_replace
from medx.privacy.statement import planned_events, statement
from medx.results import AggregationResult, ClientEvents, PrivacyResult
from medx.schema import PrivacyError

SERVER = "the server and its assumed colluders"
OTHERS = "all other hospitals together"


@lru_cache(maxsize=256)
def _curve(step: SampledGaussian, steps_per_round: int, num_rounds: int, delta: float) -> tuple[float, ...]:
    return tuple(epsilon_curve(step, steps_per_round, num_rounds, delta))


def epsilon_after(plan: PrivacyPlan, steps: dict[int, int]) -> float | None:
    """The largest epsilon of any client after these executed steps; None without a guarantee."""
    if not plan.private:
        return None
    return max((client_epsilon(plan, client, steps.get(client.client, 0)) for client in plan.clients), default=0.0)


def client_epsilon(plan: PrivacyPlan, client: ClientPlan, steps: int) -> float:
    """One client's epsilon after ``steps`` releases, a whole number of rounds or not."""
    event = plan.event_of(client)
    assert event is not None
    assert plan.delta is not None
    if not steps:
        return 0.0
    per_round = plan.events_per_round(client)
    rounds, rest = divmod(steps, per_round)
    if rest or rounds > client.num_rounds:
        return epsilon_spent([(event, steps)], plan.delta).value
    return _curve(event, per_round, client.num_rounds, plan.delta)[rounds - 1]


def privacy_result(
    plan: PrivacyPlan,
    steps: dict[int, int],
    synthetic: bool,
    aggregation: AggregationResult | None = None,
    baselines: Mapping[int, Sequence[Event]] | None = None,
) -> PrivacyResult:
    """The guarantee of a run, composed over exactly the steps that its clients executed.

    ``baselines`` are the events of other models that were trained on a client's records, by client.
    """
    clients = [_events(plan, client, steps.get(client.client, 0)) for client in plan.clients]
    if not plan.private:
        return PrivacyResult(
            mechanism=plan.mechanism,
            epsilon=None,
            clients=clients,
            aggregation=aggregation,
            statement=statement(plan, synthetic, aggregation=aggregation),
        )
    assert plan.delta is not None
    executed = executed_events(plan, steps)
    beside = [list((baselines or {}).get(client.client, ())) for client in plan.clients]
    observers = epsilon_by_observer(plan, executed, beside)
    spent = {(*own, *others) for own, others in zip(executed, beside, strict=True)}
    single = max((epsilon_spent(history, plan.delta).value for history in spent), default=0.0)
    groups = epsilon_by_group(spent, plan.delta, single), epsilon_replace(spent, plan.delta, single)
    return PrivacyResult(
        mechanism=plan.mechanism,
        epsilon=single,
        epsilon_by_accountant=by_accountant(spent, plan.delta),
        delta=plan.delta,
        target_epsilon=plan.target_epsilon,
        unit=plan.unit,
        adjacency=plan.adjacency,
        noise_source=plan.noise_source,
        epsilon_by_observer=observers,
        epsilon_by_group=groups[0],
        epsilon_replace=groups[1],
        warning=plan.warning,
        clients=clients,
        baselines=[
            _record(client, event, count, plan.delta)
            for client, others in zip(plan.clients, beside, strict=True)
            for event, count in others
        ],
        aggregation=aggregation,
        statement=statement(
            plan,
            synthetic,
            executed=executed,
            observers=observers,
            aggregation=aggregation,
            beside=beside,
            groups=groups,
        ),
    )


def by_accountant(histories: Collection[Sequence[Event]], delta: float) -> dict[str, float]:
    """The largest epsilon by ``prv``, ``pld`` and ``rdp``, each its own; ``prv`` is left out where it fails."""
    found = {
        "pld": max((epsilon_pld(history, delta) for history in histories), default=0.0),
        "rdp": max((epsilon_rdp(history, delta) for history in histories), default=0.0),
    }
    try:
        return {"prv": max((epsilon_prv(history, delta) for history in histories), default=0.0), **found}
    except PrivacyError:
        return found


def executed_events(plan: PrivacyPlan, steps: dict[int, int]) -> list[list[Event]]:
    """What every client executed; one without records has nothing to protect, unless it is itself the unit."""
    histories: list[list[Event]] = []
    for client in plan.clients:
        event, count = plan.event_of(client), steps.get(client.client, 0)
        counts = event is not None and count and (client.num_records or plan.client_release)
        histories.append([(event, count)] if event is not None and counts else [])
    return histories


def _events(plan: PrivacyPlan, client: ClientPlan, steps: int) -> ClientEvents:
    event = plan.event_of(client)
    return ClientEvents(
        client=client.client,
        num_records=client.num_records,
        sampling_probability=event.sampling_probability if event else client.sampling_probability,
        noise_multiplier=event.noise_multiplier if event else None,
        clip_norm=event.clip_norm if event else None,
        steps=steps,
        epsilon=client_epsilon(plan, client, steps) if event else None,
    )


def _record(client: ClientPlan, event: SampledGaussian, steps: int, delta: float) -> ClientEvents:
    return ClientEvents(
        client=client.client,
        num_records=client.num_records,
        sampling_probability=event.sampling_probability,
        noise_multiplier=event.noise_multiplier,
        clip_norm=event.clip_norm,
        steps=steps,
        epsilon=epsilon_spent([(event, steps)], delta).value,
    )


def planned_observers(plan: PrivacyPlan) -> dict[str, float]:
    """``epsilon_by_observer`` of a run that executes all of its plan."""
    planned = planned_events(plan)
    return epsilon_by_observer(plan, planned, [[]] * len(planned))


def epsilon_by_observer(
    plan: PrivacyPlan, executed: Sequence[Sequence[Event]], beside: Sequence[Sequence[Event]]
) -> dict[str, float]:
    """Epsilon towards the outside, the server with its colluders, one other hospital, and all others together.

    Empty unless the noise is shared: then an observer subtracts the shares that it knows. The outside knows none, so
    all ``minimum_survivors`` shares count; one other hospital knows its own; the others together leave one hospital
    with its own share alone, and so does a trusted aggregator, which sees each hospital's part by itself. ``beside``
    are events of baselines, whose noise is nobody's share.
    """
    shared = plan.shared_noise
    if shared is None or plan.delta is None:
        return {}
    server = ("the server (trusted)", 1) if shared.trusted_aggregator else (SERVER, shared.contributors)
    fewest = shared.minimum_survivors
    known = {"the outside": fewest, server[0]: server[1], "one other hospital": max(1, fewest - 1), OTHERS: 1}
    result = {}
    for observer, shares in known.items():
        factor = (shares / shared.contributors) ** 0.5
        seen = {
            (
                *((replace(event, noise_multiplier=event.noise_multiplier * factor), count) for event, count in own),
                *others,
            )
            for own, others in zip(executed, beside, strict=True)
        }
        result[observer] = max((epsilon_spent(history, plan.delta).value for history in seen), default=0.0)
    return result
