"""The privacy statement: what a run promises, to whom, and what it does not, in plain language."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from medx.privacy.accounting import Event, epsilon_pld, epsilon_rdp, epsilon_spent
from medx.privacy.base import ClientPlan, ClientRelease, PrivacyPlan
from medx.released import Release, marked
from medx.results import STUDY_ONLY, AggregationResult, ExperimentResult

Groups = tuple[Mapping[str, float], float]

MECHANISMS = {
    "local_dp": "DP-SGD at every hospital (Abadi et al. 2016): each step clips every record's gradient and adds "
    "Gaussian noise before anything leaves",
    "distributed_dp": "distributed Gaussian mechanism (Kairouz, Liu and Steinke 2021): hospitals add shares of the "
    "noise, and only their sum is released",
    "central_dp": "DP-FedAvg (McMahan et al. 2018): every hospital's update is clipped and Gaussian noise is added to "
    "their sum",
}
# What the server sees, in the clear and under secure aggregation.
SEES = {
    "none": (
        "the server sees every hospital's exact model of every round",
        "the server sees the exact sum of the hospitals' updates of every round",
    ),
    "local_dp": (
        "the server and whoever receives the model see each hospital's noised model of every round; "
        "the guarantee holds towards all of them, other hospitals included",
        "the server sees the sum of the hospitals' noised updates; the guarantee needs no secure aggregation and "
        "holds towards everybody, other hospitals included",
    ),
    "distributed_dp": (
        "the server sees every hospital's sum under its own share of the noise and is trusted with it",
        "the server sees the noised sum of a round and nobody's part of it",
    ),
    "central_dp": (
        "the server draws the hospitals, sees every clipped update without noise and is trusted with it; "
        "the guarantee holds towards whoever receives the models, not towards the server",
        "the server sees the noised sum of a round and nobody's part of it",
    ),
}
# What is protected, what several of them are called, and what that means for a patient.
UNITS = {
    "record": (
        "one record (one image)",
        "records of one hospital (a patient's images, copies of an image)",
        "The records of one patient at several hospitals: those hospitals' epsilons, and their deltas, add up.",
    ),
    "client": (
        "one hospital with all its records",
        "hospitals",
        "So every record and every patient of one hospital is covered.",
    ),
}
COMPOSITION = (
    "Composition: every step of every round is counted; hospitals hold different records, so the largest of their "
    "epsilons is the federation's.",
    "Composition: every round counts for every hospital, drawn or not.",
)
NOISE = {
    "seed": "drawn from the run's seed: reproducible, and whoever knows the seed can subtract it; "
    f"{STUDY_ONLY}, not for release",
    "system": "drawn from the operating system: nobody can make it again; fit for release",
}


def statement(
    plan: PrivacyPlan,
    synthetic: bool = False,
    *,
    executed: Sequence[Sequence[Event]] | None = None,
    observers: Mapping[str, float] | None = None,
    aggregation: AggregationResult | None = None,
    beside: Sequence[Sequence[Event]] | None = None,
    groups: Groups | None = None,
) -> str:
    """About twenty lines of text. ``executed`` has one list of events a client and replaces the plan's steps.

    ``observers`` maps who sees something to the epsilon that holds towards them, where those differ. ``beside`` has a
    client's events of the run's baselines.
    """
    shared = plan.shared_noise
    secure = aggregation.secure if aggregation else shared is not None and not shared.trusted_aggregator
    sees = f"Who sees what: {SEES[plan.mechanism][secure]}."
    lines = ["Privacy statement"]
    lines += (
        _guarantee(plan, executed=executed, beside=beside, observers=observers, groups=groups, sees=sees)
        if plan.private
        else _nothing(sees)
    )
    if aggregation is not None and aggregation.secure:
        lines += _aggregation(aggregation, noised=plan.private)
    if synthetic:
        lines.append("Data: synthetic images that show nobody, so no guarantee is needed; this is a trial.")
    lines += _fields(plan.private)
    return "\n".join(lines)


def summarise(plan: PrivacyPlan) -> list[dict[str, Any]]:
    """Rows for a small table; clients that do the same are one row."""
    rows: dict[tuple[Any, ...], list[ClientPlan]] = {}
    for client in plan.clients:
        event = plan.event_of(client)
        key = (client.sampling_probability, event, client.steps_per_round, client.num_rounds, client.num_records)
        rows.setdefault(key, []).append(client)
    return [_row(plan, clients) for clients in rows.values()]


def planned_events(plan: PrivacyPlan) -> list[list[Event]]:
    """What each client is going to execute; empty clients have no record to protect and no events."""
    return [
        [(event, plan.events_per_round(c) * c.num_rounds)]
        if (event := plan.event_of(c)) and (c.num_records or plan.client_release)
        else []
        for c in plan.clients
    ]


def _shared_target(plan: PrivacyPlan, planned: bool) -> str:
    if plan.baselines:
        return " for the run and its baselines together" + (" (the figures here are the run's own)" if planned else "")
    if plan.num_runs == 1:
        return ""
    return f" for {plan.num_runs} runs together, of which this is one (all figures here are its own)"


def _baselines(plan: PrivacyPlan, own: Sequence[Sequence[Event]], planned: bool) -> list[str]:
    if not plan.baselines or planned:
        return []
    assert plan.delta is not None
    alone = max(epsilon_spent(history, plan.delta).value for history in own)
    return [
        f"Baselines: {', '.join(plan.baselines)} trained on the same records, and what they spent is in that epsilon; "
        f"the run alone spent {alone:.3f}."
    ]


def _guarantee(
    plan: PrivacyPlan,
    *,
    executed: Sequence[Sequence[Event]] | None,
    beside: Sequence[Sequence[Event]] | None,
    observers: Mapping[str, float] | None,
    groups: Groups | None,
    sees: str,
) -> list[str]:
    assert plan.delta is not None
    unit, several, patient = UNITS[str(plan.unit)]
    own = planned_events(plan) if executed is None else executed
    events = [[*one, *others] for one, others in zip(own, beside or [[]] * len(own), strict=True)]
    return [
        f"Unit: {unit}; neighbouring data sets {plan.adjacency}. How many records a hospital has is public, so what is "
        f"proved concerns content, not presence. {patient}",
        f"Mechanism: {MECHANISMS[plan.mechanism]}.",
        f"Guarantee{' as planned' if executed is None else ' as executed'}: {_epsilons(events, plan.delta)}, "
        f"delta {plan.delta:g}; target epsilon {plan.target_epsilon:g}{_shared_target(plan, executed is None)}.",
        *_baselines(plan, own, executed is None),
        COMPOSITION[plan.client_release is not None],
        *_spare(plan),
        *_several(several, groups),
        *(f"Towards {who}: epsilon {value:.3f}." for who, value in (observers or {}).items()),
        f"Noise: {NOISE[plan.noise_source]}.",
        sees,
        f"Steps: {_steps(plan, executed)}.",
        f"Public: hospitals' record counts, the partition, this configuration, and {_who(plan)}"
        f"{'; none of this is protected, though it depends on a hospital' if plan.client_release else ''}.",
        "Not covered: validation and test records and what is computed on them (metrics, and the threshold in the "
        "model file), metrics by hospital, timing; "
        f"{'' if plan.num_runs > 1 else 'a choice among several runs; '}other runs on the same data, whose epsilons "
        "add up.",
    ]


def _several(several: str, groups: Groups | None) -> list[str]:
    """The guarantee for k that belong together, and for one that is replaced; at the same delta."""
    if groups is None:
        return [f"Several {several}, and one that is replaced by another: a larger epsilon, in the final statement."]
    by_size, replaced = groups
    table = ", ".join(f"k = {size}: {value:.4g}" for size, value in by_size.items())
    return [f"k {several} together, at the same delta: epsilon {table}. One replaced by another: {replaced:.4g}."]


def _fields(private: bool) -> list[str]:
    """Every field of the run's record under the reason why it may leave the house, or may not."""
    by_release: dict[Release, dict[str, list[str]]] = {kind: {} for kind in Release}
    for path, kind in marked(ExperimentResult):
        head, _, rest = path.partition(".")
        by_release[kind].setdefault(head, []).extend([rest] if rest else [])
    lines = []
    for kind, found in by_release.items():
        names = "; ".join(head + (f" ({', '.join(rest)})" if rest else "") for head, rest in found.items())
        why = kind.value if private or kind is not Release.COVERED else "released without any guarantee"
        lines.append(f"Fields {why}: {names}.")
    return lines


def _epsilons(events: Sequence[Sequence[Event]], delta: float) -> str:
    """The federation's epsilon by every accountant: the maximum over clients, each distinct history once."""
    histories = {tuple(history) for history in events}
    spent = max((epsilon_spent(history, delta) for history in histories), key=lambda bound: bound.value)
    pld = max(epsilon_pld(history, delta) for history in histories)
    rdp = max(epsilon_rdp(history, delta) for history in histories)
    text = f"epsilon {spent.value:.3f} ({spent.accountant.upper()}, upper bound; PLD {pld:.3f}, RDP {rdp:.3f})"
    return text if spent.reason is None else f"{text} [{spent.reason}]"


def _spare(plan: PrivacyPlan) -> list[str]:
    """What is kept for rounds that are begun again, and how much more noise it costs."""
    first = plan.clients[0]
    if not first.spare_rounds:
        return []
    covered = first.num_rounds + first.spare_rounds
    more = math.sqrt(covered / first.num_rounds) - 1  # noise grows with the root of the releases
    return [
        f"Reserve: the noise covers {covered} rounds, {first.spare_rounds} more than planned, for rounds that are "
        f"begun again (about {100 * more:.1f} % more noise); what is not begun is not spent."
    ]


def _steps(plan: PrivacyPlan, executed: Sequence[Sequence[Event]] | None) -> str:
    filled = [client for client in plan.clients if client.num_records]
    first = plan.clients[0]
    events = [event for client in filled if (event := plan.event_of(client))]
    parts = [
        f"{first.num_rounds} rounds of {first.steps_per_round}",
        f"sampling probability {_range([e.sampling_probability for e in events])} (Poisson)",
        f"expected batch {_range([c.expected_batch_size for c in filled])}",
        f"clip norm {_range([e.clip_norm for e in events])}",
        f"noise multiplier {_range([e.noise_multiplier for e in events])}",
    ]
    if plan.client_release is not None:
        parts[1] = f"each hospital drawn with probability {events[0].sampling_probability:.5g} (Poisson)"
        parts[3] += _quantile(plan.client_release)
    if executed is not None:
        done = [sum(steps for _, steps in history) for history in executed]
        parts.append(f"executed by hospital {_range(done)} of {first.num_rounds * plan.events_per_round(first)}")
    return ", ".join(parts)


def _quantile(release: ClientRelease) -> str:
    if release.quantile is None:
        return " of an update"
    return (
        f" of an update at first, then at their {release.quantile.target:g} quantile (Andrew et al. 2021), estimated "
        f"with noise {release.quantile.noise_stddev:.4g}, which is part of epsilon"
    )


def _who(plan: PrivacyPlan) -> str:
    if plan.client_release is not None and plan.client_release.event.sampling_probability < 1:
        return "the expected number of hospitals in a round (who was drawn is the server's secret)"
    return "which hospitals took part"


def _aggregation(aggregation: AggregationResult, *, noised: bool) -> list[str]:
    colluders = aggregation.tolerated_colluders or {}
    part = "words, which the noise on them alone protects" if noised else "exact update"
    lines = [
        f"Secure aggregation: {aggregation.num_clients} hospitals, threshold {aggregation.threshold}, at least "
        f"{aggregation.minimum_survivors} survivors; single updates stay hidden from a server that follows the "
        f"protocol with up to {_hospitals(colluders.get('curious'))}, and from one that lies with up to "
        f"{_hospitals(colluders.get('lying'))}; beyond that, colluders can have another hospital's {part}. "
        f"Roster sha256 {aggregation.roster_hash}.",
        "Masks are agreed by X25519: who records the traffic and breaks it one day, by a quantum computer, has what "
        "the masks hid.",
    ]
    if not noised:
        lines.append(
            "Masks without noise do not protect images from a server that chooses the model: the sum of updates can "
            "then hold them as they are (Fowl et al. 2022; Boenisch et al. 2023). Different models for different "
            "hospitals (Pasquini et al. 2022) are refused."
        )
    if aggregation.trust_domain == "one":
        lines.append(
            "One trust domain: this was a simulation whose process held every hospital's keys and data, so nothing "
            "was hidden from whoever ran it; the lines above are about a deployment with these parameters."
        )
    return lines


def _hospitals(count: int | None) -> str:
    return "1 colluding hospital" if count == 1 else f"{count} colluding hospitals"


def _nothing(sees: str) -> list[str]:
    return [
        "Mechanism: none. There is no epsilon: models of this run may reveal single images of the training data.",
        sees,
        "Use: a baseline on data that may be published; do not release a model trained this way on other data.",
    ]


def _row(plan: PrivacyPlan, clients: Sequence[ClientPlan]) -> dict[str, Any]:
    client = clients[0]
    event = plan.event_of(client)
    row: dict[str, Any] = {
        "clients": ", ".join(str(c.client) for c in clients) if len(clients) < 8 else f"{len(clients)} clients",
        "records": client.num_records,
        "steps": plan.events_per_round(client) * client.num_rounds if event else client.total_steps,
        "sampling_probability": client.sampling_probability,
        "expected_batch_size": client.expected_batch_size,
    }
    if event is not None and plan.delta is not None:
        held = client.num_records or plan.client_release
        epsilon = epsilon_spent([(event, row["steps"])], plan.delta).value if held else 0.0
        row |= {"clip_norm": event.clip_norm, "noise_multiplier": event.noise_multiplier, "epsilon": epsilon}
        row["sampling_probability"] = event.sampling_probability
    return row


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.5g}", f"{max(values):.5g}"
    return low if low == high else f"{low} to {high}"
