"""The privacy statement: what a run promises, to whom, and what it does not, in plain language."""

from collections.abc import Mapping, Sequence
from typing import Any

from medx.privacy.accounting import Event, epsilon_pld, epsilon_rdp, epsilon_spent
from medx.privacy.base import ClientPlan, PrivacyPlan, SampledGaussian

MECHANISMS = {
    "local_dp": "DP-SGD at every hospital (Abadi et al. 2016): each step clips every record's gradient and adds "
    "Gaussian noise before anything leaves",
    "distributed_dp": "distributed Gaussian mechanism (Kairouz, Liu and Steinke 2021): hospitals add shares of the "
    "noise and only their secure sum is seen",
    "central_dp": "DP-SGD with central noise (Abadi et al. 2016; McMahan et al. 2018): a trusted server adds the "
    "Gaussian noise to the sum",
}
SEES = {
    "local_dp": "the server and whoever receives the model see each hospital's noised model of every round; "
    "the guarantee holds towards all of them, other hospitals included",
    "distributed_dp": "the server sees the noised sum of a round and nobody's part of it",
    "central_dp": "the server sees every hospital's clipped update without noise and is trusted with it; "
    "the guarantee holds towards whoever receives the model",
}
NOISE = {
    "seed": "drawn from the run's seed: reproducible, and whoever knows the seed can subtract it; "
    "for studies only, not for release",
    "system": "drawn from the operating system: nobody can make it again; fit for release",
}


def statement(
    plan: PrivacyPlan,
    synthetic: bool = False,
    executed: Sequence[Sequence[Event]] | None = None,
    observers: Mapping[str, float] | None = None,
) -> str:
    """About a dozen lines of text. ``executed`` has one list of events a client and replaces the plan's steps.

    ``observers`` maps who sees something to the epsilon that holds towards them, where those differ.
    """
    lines = ["Privacy statement"]
    lines += _guarantee(plan, executed, observers) if plan.private else _nothing()
    if synthetic:
        lines.append("Data: synthetic images that show nobody, so no guarantee is needed; this is a trial.")
    return "\n".join(lines)


def summarise(plan: PrivacyPlan) -> list[dict[str, Any]]:
    """Rows for a small table; clients that do the same are one row."""
    rows: dict[tuple[Any, ...], list[ClientPlan]] = {}
    for client in plan.clients:
        key = (client.sampling_probability, client.step, client.steps_per_round, client.num_rounds, client.num_records)
        rows.setdefault(key, []).append(client)
    return [_row(plan, clients) for clients in rows.values()]


def planned_events(plan: PrivacyPlan) -> list[list[Event]]:
    """What each client is going to execute; empty clients have no record to protect and no events."""
    return [[(c.step, c.total_steps)] if c.step and c.num_records else [] for c in plan.clients]


def _guarantee(
    plan: PrivacyPlan, executed: Sequence[Sequence[Event]] | None, observers: Mapping[str, float] | None
) -> list[str]:
    assert plan.delta is not None
    events = planned_events(plan) if executed is None else executed
    return [
        f"Unit: one {plan.unit} (one image); neighbouring data sets {plan.adjacency}."
        " A patient with several images is protected less.",
        f"Mechanism: {MECHANISMS[plan.mechanism]}.",
        f"Guarantee{' as planned' if executed is None else ' as executed'}: {_epsilons(events, plan.delta)}, "
        f"delta {plan.delta:g}; target epsilon {plan.target_epsilon:g}.",
        "Composition: every step of every round is counted; hospitals hold different records, so the largest of "
        "their epsilons is the federation's.",
        *(f"Towards {who}: epsilon {value:.3f}." for who, value in (observers or {}).items()),
        f"Noise: {NOISE[plan.noise_source]}.",
        f"Who sees what: {SEES[plan.mechanism]}.",
        f"Steps: {_steps(plan, executed)}.",
        "Public: hospitals' record counts, the partition, this configuration, which hospitals took part, and timing.",
        "Not covered: validation and test metrics and metrics by hospital, which the study computes on data it holds; "
        "a choice among several runs; other runs on the same data, whose epsilons add up.",
    ]


def _epsilons(events: Sequence[Sequence[Event]], delta: float) -> str:
    """The federation's epsilon by every accountant: the maximum over clients, each distinct history once."""
    histories = {tuple(history) for history in events}
    spent = max((epsilon_spent(history, delta) for history in histories), key=lambda bound: bound.value)
    pld = max(epsilon_pld(history, delta) for history in histories)
    rdp = max(epsilon_rdp(history, delta) for history in histories)
    text = f"epsilon {spent.value:.3f} ({spent.accountant.upper()}, upper bound; PLD {pld:.3f}, RDP {rdp:.3f})"
    return text if spent.reason is None else f"{text} [{spent.reason}]"


def _steps(plan: PrivacyPlan, executed: Sequence[Sequence[Event]] | None) -> str:
    filled = [client for client in plan.clients if client.num_records]
    first = plan.clients[0]
    noisy = [client.step for client in filled if client.step]
    parts = [
        f"{first.num_rounds} rounds of {first.steps_per_round}",
        f"sampling probability {_range([c.sampling_probability for c in filled])} (Poisson)",
        f"expected batch {_range([c.expected_batch_size for c in filled])}",
        f"clip norm {_range([s.clip_norm for s in noisy])}",
        f"noise multiplier {_range([s.noise_multiplier for s in noisy])}",
    ]
    if executed is not None:
        done = [sum(steps for _, steps in history) for history in executed]
        parts.append(f"executed by hospital {_range(done)} of {first.total_steps}")
    return ", ".join(parts)


def _nothing() -> list[str]:
    return [
        "Mechanism: none. There is no epsilon: models of this run may reveal single images of the training data.",
        "Who sees what: the server sees every hospital's exact model of every round.",
        "Use: a baseline on data that may be published; do not release a model trained this way on other data.",
    ]


def _row(plan: PrivacyPlan, clients: Sequence[ClientPlan]) -> dict[str, Any]:
    client = clients[0]
    step: SampledGaussian | None = client.step
    row: dict[str, Any] = {
        "clients": ", ".join(str(c.client) for c in clients) if len(clients) < 8 else f"{len(clients)} clients",
        "records": client.num_records,
        "steps": client.total_steps,
        "sampling_probability": client.sampling_probability,
        "expected_batch_size": client.expected_batch_size,
    }
    if step is not None and plan.delta is not None:
        epsilon = epsilon_spent([(step, client.total_steps)], plan.delta).value if client.num_records else 0.0
        row |= {"clip_norm": step.clip_norm, "noise_multiplier": step.noise_multiplier, "epsilon": epsilon}
    return row


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.5g}", f"{max(values):.5g}"
    return low if low == high else f"{low} to {high}"
