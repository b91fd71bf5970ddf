"""The plan as a small table, for the screen before the first round."""

from collections.abc import Sequence
from typing import Any

from medx.privacy.accounting import epsilon_spent
from medx.privacy.base import ClientPlan, PrivacyPlan


def summarise(plan: PrivacyPlan) -> list[dict[str, Any]]:
    """Rows for a small table; clients that do the same are one row."""
    rows: dict[tuple[Any, ...], list[ClientPlan]] = {}
    for client in plan.clients:
        event = plan.event_of(client)
        key = (client.sampling_probability, event, client.steps_per_round, client.num_rounds, client.num_records)
        rows.setdefault(key, []).append(client)
    return [_row(plan, clients) for clients in rows.values()]


def _row(plan: PrivacyPlan, clients: Sequence[ClientPlan]) -> dict[str, Any]:
    client = clients[0]
    event = plan.event_of(client)
    row: dict[str, Any] = {
        "clients": ", ".join(str(c.client) for c in clients) if len(clients) < 8 else f"{len(clients)} clients",
        "records": client.num_records,
        **({} if client.num_patients is None else {"patients": client.num_patients}),
        "steps": plan.planned_events(client) if event else client.total_steps,
        "sampling_probability": client.sampling_probability,
        "expected_batch_size": client.expected_batch_size,
    }
    if event is not None and plan.delta is not None:
        epsilon = epsilon_spent(plan.history(client, row["steps"]), plan.delta).value
        row |= {"clip_norm": event.clip_norm, "noise_multiplier": event.noise_multiplier, "epsilon": epsilon}
        row["sampling_probability"] = event.sampling_probability
    return row
