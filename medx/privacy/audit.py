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

    ``prv`` is left out where that accountant fails on what was executed. Raises PrivacyError where a client took
    steps without noise, for which there is no epsilon.
    """
    check_delta(delta)
    histories = {_history(client) for client in clients}
    found: dict[str, float] = {}
    for name, accountant in ACCOUNTANTS.items():
        try:
            found[name] = max((accountant(history, delta) for history in histories), default=0.0)
        except PrivacyError:
            if name != "prv":
                raise
    return found


def _history(client: ClientEvents) -> tuple[Release, ...]:
    if client.steps == 0:
        return ()
    if client.sampling_probability is None or client.noise_multiplier is None or client.clip_norm is None:
        raise PrivacyError(f"client {client.client} took {client.steps} steps without noise: no epsilon covers them")
    step = SampledGaussian(client.sampling_probability, client.noise_multiplier, client.clip_norm)
    return merge_events([(step, client.steps)])
