"""The second opinion: epsilon by every accountant, from what a result says was executed and from nothing else."""

from collections.abc import Callable, Iterable

from medx.privacy import accountants
from medx.privacy.accountants import Release, merge_events
from medx.privacy.accounting import check_delta
from medx.privacy.base import SampledGaussian
from medx.results import ClientEvents
from medx.schema import PrivacyError

ACCOUNTANTS: dict[str, Callable[[tuple[Release, ...], float], float]] = {
    "prv": accountants.prv,
    "pld": accountants.pld,
    "rdp": accountants.rdp,
}


def recompute(clients: Iterable[ClientEvents], delta: float) -> dict[str, float]:
    """The largest epsilon of any client by ``prv``, ``pld`` and ``rdp``, composed anew without any cache.

    All that is given of a client is composed: for a run with baselines, its ``clients`` and its ``baselines``.
    ``prv`` is left out where that accountant fails on what was executed. Raises PrivacyError where a client took
    steps without noise, for which there is no epsilon.
    """
    check_delta(delta)
    by_client: dict[int, list[ClientEvents]] = {}
    for client in clients:
        by_client.setdefault(client.client, []).append(client)
    histories = {_history(events) for events in by_client.values()}
    found: dict[str, float] = {}
    for name, accountant in ACCOUNTANTS.items():
        try:
            found[name] = max((accountant(history, delta) for history in histories), default=0.0)
        except PrivacyError:
            if name != "prv":
                raise
    return found


def _history(events: Iterable[ClientEvents]) -> tuple[Release, ...]:
    return merge_events([_event(each) for each in events if each.steps])


def _event(each: ClientEvents) -> tuple[SampledGaussian, int]:
    if each.sampling_probability is None or each.noise_multiplier is None or each.clip_norm is None:
        raise PrivacyError(f"client {each.client} took {each.steps} steps without noise: no epsilon covers them")
    return SampledGaussian(each.sampling_probability, each.noise_multiplier, each.clip_norm), each.steps
