"""What a run has spent: epsilon after every round, and the result's privacy record from what was executed."""

from dataclasses import replace
from functools import lru_cache

from medx.privacy.accounting import epsilon_curve, epsilon_pld, epsilon_rdp, epsilon_spent
from medx.privacy.base import ClientPlan, PrivacyPlan, SampledGaussian
from medx.privacy.statement import statement
from medx.results import ClientEvents, PrivacyResult


@lru_cache(maxsize=256)
def _curve(step: SampledGaussian, steps_per_round: int, num_rounds: int, delta: float) -> tuple[float, ...]:
    return tuple(epsilon_curve(step, steps_per_round, num_rounds, delta))


def epsilon_after(plan: PrivacyPlan, steps: dict[int, int]) -> float | None:
    """The largest epsilon of any client after these executed steps; None without a guarantee."""
    if not plan.private:
        return None
    return max((client_epsilon(plan, client, steps.get(client.client, 0)) for client in plan.clients), default=0.0)


def client_epsilon(plan: PrivacyPlan, client: ClientPlan, steps: int) -> float:
    """One client's epsilon after ``steps`` steps, a whole number of rounds or not."""
    assert client.step is not None
    assert plan.delta is not None
    if not steps:
        return 0.0
    rounds, rest = divmod(steps, client.steps_per_round)
    if rest or rounds > client.num_rounds:
        return epsilon_spent([(client.step, steps)], plan.delta).value
    return _curve(client.step, client.steps_per_round, client.num_rounds, plan.delta)[rounds - 1]


def privacy_result(plan: PrivacyPlan, steps: dict[int, int], synthetic: bool) -> PrivacyResult:
    """The guarantee of a run, composed over exactly the steps that its clients executed."""
    clients = [_events(plan, client, steps.get(client.client, 0)) for client in plan.clients]
    if not plan.private:
        return PrivacyResult(
            mechanism=plan.mechanism, epsilon=None, clients=clients, statement=statement(plan, synthetic)
        )
    assert plan.delta is not None
    executed = [[(c.step, steps.get(c.client, 0))] if c.step and c.num_records else [] for c in plan.clients]
    events = {
        (client.step, steps[client.client]) for client in plan.clients if client.step and steps.get(client.client)
    }
    observers = epsilon_by_observer(plan, events)
    by_accountant = {
        "prv": max((epsilon_spent([event], plan.delta).value for event in events), default=0.0),
        "pld": max((epsilon_pld([event], plan.delta) for event in events), default=0.0),
        "rdp": max((epsilon_rdp([event], plan.delta) for event in events), default=0.0),
    }
    return PrivacyResult(
        mechanism=plan.mechanism,
        epsilon=by_accountant["prv"],
        epsilon_by_accountant=by_accountant,
        delta=plan.delta,
        target_epsilon=plan.target_epsilon,
        unit=plan.unit,
        adjacency=plan.adjacency,
        noise_source=plan.noise_source,
        epsilon_by_observer=observers,
        clients=clients,
        statement=statement(plan, synthetic, executed, observers),
    )


def _events(plan: PrivacyPlan, client: ClientPlan, steps: int) -> ClientEvents:
    step = client.step
    return ClientEvents(
        client=client.client,
        num_records=client.num_records,
        sampling_probability=client.sampling_probability,
        noise_multiplier=step.noise_multiplier if step else None,
        clip_norm=step.clip_norm if step else None,
        steps=steps,
        epsilon=client_epsilon(plan, client, steps) if step else None,
    )


def epsilon_by_observer(plan: PrivacyPlan, events: set[tuple[SampledGaussian, int]]) -> dict[str, float]:
    """Epsilon towards the outside, the server with its colluders, and all other hospitals together.

    Empty unless the noise is shared: then an observer subtracts the shares that it knows. The outside knows none, so
    all ``minimum_survivors`` shares count; the others together leave one hospital with its own share alone.
    """
    shared = plan.shared_noise
    if shared is None or plan.delta is None:
        return {}
    known = {
        "outside": shared.minimum_survivors,
        "server and assumed colluders": shared.contributors,
        "all other hospitals together": 1,
    }
    result = {}
    for observer, shares in known.items():
        factor = (shares / shared.contributors) ** 0.5
        seen = [(replace(step, noise_multiplier=step.noise_multiplier * factor), count) for step, count in events]
        result[observer] = max((epsilon_spent([event], plan.delta).value for event in seen), default=0.0)
    return result
