"""The result's record of a run's privacy, composed over exactly what its clients executed."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from medx.privacy.accountants import Event
from medx.privacy.accounting import epsilon_spent
from medx.privacy.base import ClientPlan, PrivacyPlan, SampledGaussian
from medx.privacy.meaning import meanings, meanings_by_observer, nothing_kept
from medx.privacy.spending import Spending, client_epsilon
from medx.privacy.statement import most_images, statement
from medx.results import AggregationResult, ClientEvents, NoiseMeasured, PrivacyResult, PublicWeights


def privacy_result(
    plan: PrivacyPlan,
    steps: Mapping[int, int],
    synthetic: bool,
    aggregation: AggregationResult | None = None,
    baselines: Mapping[int, Sequence[Event]] | None = None,
    *,
    noise: NoiseMeasured | None = None,
    weights: PublicWeights | None = None,
    personal: tuple[str, str] | None = None,
    bounds: str | None = None,
) -> PrivacyResult:
    """The guarantee of a run, composed over exactly the steps that its clients executed.

    ``baselines`` are the events of other models that were trained on a client's records, by client. ``noise`` is what
    it was like as it was added, where this process has seen that; ``weights`` are public ones that the model uses, and
    ``personal`` what is said of personal models; ``bounds`` is what the trainer says.
    """
    clients = [_executed(plan, client, steps.get(client.client, 0)) for client in plan.clients]
    states = partial(
        statement, *(plan, synthetic), aggregation=aggregation, weights=weights, personal=personal, bounds=bounds
    )
    common: dict[str, Any] = {"mechanism": plan.mechanism.name, "clients": clients, "aggregation": aggregation}
    if not plan.private:
        return PrivacyResult(**common, epsilon=None, meaning=nothing_kept(), statement=states())
    assert plan.unit is not None
    spent = Spending.of(plan, steps, baselines)
    return PrivacyResult(
        **common,
        epsilon=spent.epsilon().value,
        epsilon_by_accountant=spent.by_accountant(),
        delta=plan.delta,
        target_epsilon=plan.target_epsilon,
        unit=plan.unit.name,
        adjacency=plan.unit.adjacency,
        noise_source=plan.noise_source,
        epsilon_by_observer=spent.by_observer(),
        epsilon_by_group=spent.by_group(),
        epsilon_replace=spent.replaced(),
        epsilon_by_unit=spent.by_unit(),
        patient_images=most_images(plan),
        meaning=meanings(spent),
        meaning_by_observer=meanings_by_observer(spent),
        warning=plan.warning,
        baselines=[
            _events(client, event, count, epsilon_spent([(event, count)], spent.delta).value)
            for client, others in zip(plan.clients, spent.beside, strict=True)
            for event, count in others
        ],
        noise=noise,
        statement=states(spent=spent, noise=noise),
    )


def _executed(plan: PrivacyPlan, client: ClientPlan, steps: int) -> ClientEvents:
    event = plan.event_of(client)
    return _events(client, event, steps, client_epsilon(plan, client, steps) if event else None)


def _events(client: ClientPlan, event: SampledGaussian | None, steps: int, epsilon: float | None) -> ClientEvents:
    return ClientEvents(
        client=client.client,
        num_records=client.num_records,
        num_patients=client.num_patients,
        sampling_probability=event.sampling_probability if event else client.sampling_probability,
        noise_multiplier=event.noise_multiplier if event else None,
        clip_norm=event.clip_norm if event else None,
        steps=steps,
        epsilon=epsilon,
    )
