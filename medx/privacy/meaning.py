"""What an epsilon leaves possible, in figures that need no knowledge of epsilon: who is found out, what is guessed.

All are upper bounds for every attack, from the events that were executed; the worse of adding and removing a record.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from medx.privacy.accountants import Event, gaussian_mu
from medx.privacy.accounting import epsilon_pld, epsilon_spent
from medx.privacy.base import SampledGaussian
from medx.privacy.spending import TRUSTED, Spending
from medx.privacy.tradeoff import (
    EVERYTHING,
    NOTHING,
    Profile,
    advantage,
    detected,
    gaussian,
    group_profile,
    of_epsilon,
    profile_of,
    replaced,
    worst,
)
from medx.privacy.units import CLIENT, PATIENT
from medx.results import NONE_FROM, ClientEvents, Meaning, PrivacyResult
from medx.schema import PrivacyError

FALSE_POSITIVE_RATES = (0.001, 0.01, 0.1)
PRIORS = (0.01, 0.1)
DRAWN = tuple(10 ** (power / 8) for power in range(-32, 1))  # false-positive rates of a curve
AGREE = 0.03  # of epsilon: PRV's error and PLD's together
UNKNOWN = "not bounded: the data set does not tell patients"


def meanings(spent: Spending) -> dict[str, Meaning]:
    """What a private run means for one ``image``, and for one ``patient`` where the plan knows any."""
    one = worst(profile_of(history) for history in spent.together)
    epsilon, by_unit = spent.epsilon().value, spent.by_unit()
    if spent.plan.unit is PATIENT:
        return _of_patients(one, by_unit, spent.delta)
    profiles = {"image": one}
    if "patient" in by_unit:
        profiles["patient"] = worst([one, *(group_profile(parts) for parts in spent.patients())])
    return _told(profiles, {"image": epsilon} | by_unit, spent.delta)


def meanings_by_observer(spent: Spending) -> dict[str, Meaning]:
    """What a private run means for one of its units towards each observer of shared noise.

    A server that clips updates and adds the noise itself has seen them as they are.
    """
    epsilons = spent.by_observer()
    found = {
        observer: _meaning(worst(profile_of(history) for history in histories), epsilons[observer], spent.delta)
        for observer, histories in spent.observed().items()
    }
    return found | _of_a_server(spent.plan.unit is CLIENT and spent.plan.shared_noise is None)


def _of_a_server(sees_all: bool) -> dict[str, Meaning]:
    return {TRUSTED: _meaning(EVERYTHING, None, None)} if sees_all else {}


def observers_of(privacy: PrivacyResult) -> dict[str, Meaning]:
    """The same of a result: what it says, or of an earlier version by each observer's epsilon."""
    if privacy.meaning or privacy.epsilon is None:
        return privacy.meaning_by_observer
    assert privacy.delta is not None
    full = all(event.sampling_probability == 1 for history in _histories(privacy) for event, _ in history)
    found = {
        observer: _meaning(_of_one_figure(epsilon, privacy.delta, full=full), epsilon, privacy.delta)
        for observer, epsilon in privacy.epsilon_by_observer.items()
    }
    secure = privacy.aggregation is not None and privacy.aggregation.secure
    return found | _of_a_server(privacy.unit == CLIENT.name and not secure)


def nothing_kept() -> dict[str, Meaning]:
    """The same of a run without a guarantee: every figure is 1."""
    return {unit: _meaning(EVERYTHING, None, None) for unit in ("image", "patient")}


def meanings_of(privacy: PrivacyResult) -> dict[str, Meaning]:
    """The same of a result: what it says, or of an earlier version from its events.

    A patient who is not the unit is bounded there by the patient's epsilon: exactly at full batches, else loosely,
    as the result does not say how many images a patient has where. Raises PrivacyError where the events do not give the
    epsilon.
    """
    if privacy.meaning:
        return privacy.meaning
    if privacy.epsilon is None:
        return nothing_kept()
    assert privacy.delta is not None
    delta, histories = privacy.delta, _histories(privacy)
    _check(privacy, histories)
    one = worst(profile_of(history) for history in histories)
    by_unit = {"image": privacy.epsilon} | privacy.epsilon_by_unit
    if privacy.unit == PATIENT.name:
        by_unit["image"] = privacy.epsilon_by_unit.get("image", privacy.epsilon_replace or math.inf)
        by_unit["patient"] = privacy.epsilon
        return _of_patients(one, by_unit, delta)
    profiles = {"image": one}
    if "patient" in by_unit:
        full = all(event.sampling_probability == 1 for history in histories for event, _ in history)
        profiles["patient"] = _of_one_figure(by_unit["patient"], delta, full=full)
    return _told(profiles, by_unit, delta)


def in_words(found: Mapping[str, Meaning]) -> Iterator[str]:
    """Two sentences for an image, and for a patient two or why not, for somebody who does not know epsilon."""
    for unit in ("image", "patient"):
        if unit not in found:
            yield f"In other words, for one {unit}: {UNKNOWN}."
            continue
        meaning = found[unit]
        flagged, guessed = (_of_100(share) for share in (meaning.detected["0.01"], meaning.reconstructed["0.1"]))
        shown = "an image shows" if unit == "image" else "a patient's images show"
        yield (
            f"In other words, for one {unit}: an attacker who wrongly flags 1 in 100 unused {unit}s as used in "
            f"training rightly flags at most {flagged} of 100 used ones; pure luck gives 1. An attacker who would "
            f"guess what {shown} 1 time in 10 without this run does so at most {guessed} times in 100 "
            "with all that the guarantee covers."
        )


def in_short(meaning: Meaning) -> str:
    """The same two figures for whoever has read the sentences."""
    found, guessed = _of_100(meaning.detected["0.01"]), _of_100(meaning.reconstructed["0.1"])
    return f"at most {found} of 100 found and {guessed} times in 100 guessed"


def _of_100(share: float) -> str:
    """Upwards, as it is a bound; 100 is none."""
    count = round(100 * upwards(share, 2))
    return "100 (no limit)" if count == 100 else str(count)


def _histories(privacy: PrivacyResult) -> list[list[Event]]:
    """What was done to the records of each client that has any, or is itself the unit; its baselines included."""
    histories: dict[int, list[Event]] = {}
    for each in (*privacy.clients, *privacy.baselines):
        protects = each.num_records or privacy.unit == CLIENT.name
        if protects and (event := _event(each)) is not None:
            histories.setdefault(each.client, []).append((event, each.steps))
    return [list(history) for history in dict.fromkeys(map(tuple, histories.values()))]


def _event(told: ClientEvents) -> SampledGaussian | None:
    if not told.steps or not told.sampling_probability or told.noise_multiplier is None or told.clip_norm is None:
        return None
    return SampledGaussian(told.sampling_probability, told.noise_multiplier, told.clip_norm)


def _check(privacy: PrivacyResult, histories: Sequence[Sequence[Event]]) -> None:
    """Raise PrivacyError where these events do not give the epsilon: figures of either would be of another run."""
    assert privacy.epsilon is not None
    assert privacy.delta is not None
    found = 0.0
    for compose in (epsilon_pld, lambda history, delta: epsilon_spent(history, delta).value):
        found = max((compose(history, privacy.delta) for history in histories), default=0.0)
        if abs(found - privacy.epsilon) <= AGREE * privacy.epsilon + 1e-3:
            return
    raise PrivacyError(
        f"the events of its clients give epsilon {found:.4g}, and the result says {privacy.epsilon:.4g}; accepted: the "
        "result as the run wrote it"
    )


def _of_one_figure(epsilon: float, delta: float, *, full: bool) -> Profile:
    if epsilon >= NONE_FROM:
        return EVERYTHING
    if not full:
        return of_epsilon(epsilon, delta)
    return gaussian(gaussian_mu(epsilon, delta)) if epsilon else NOTHING


def _of_patients(one: Profile, epsilons: Mapping[str, float], delta: float) -> dict[str, Meaning]:
    """Where a patient is the unit: one image is the patient replaced.

    Who guesses it is compared with a run without all of the patient, which no guess at the image depends on: so it is
    guessed no more often than the patient.
    """
    image = _meaning(replaced(one), epsilons["image"], delta, without=one)
    return {"image": image, "patient": _meaning(one, epsilons["patient"], delta)}


def _told(profiles: Mapping[str, Profile], epsilons: Mapping[str, float], delta: float) -> dict[str, Meaning]:
    return {unit: _meaning(profile, epsilons[unit], delta) for unit, profile in profiles.items()}


def _meaning(
    profile: Profile, epsilon: float | None, delta: float | None, *, without: Profile | None = None
) -> Meaning:
    """Of a reconstruction, ``1 - f`` at the prior (Hayes, Mahloujifar and Balle 2023).

    There ``f`` is towards a run that does not depend on what is guessed: by ``without``, else by the profile itself.
    """
    guessed = profile if without is None else without
    mu = None
    if epsilon is not None and delta is not None and epsilon < NONE_FROM:
        mu = gaussian_mu(epsilon, delta) if epsilon else 0.0
    return Meaning(
        epsilon=epsilon,
        mu=mu,
        detected={f"{rate:g}": upwards(detected(profile, rate)) for rate in FALSE_POSITIVE_RATES},
        advantage=upwards(advantage(profile)),
        reconstructed={f"{prior:g}": upwards(detected(guessed, prior)) for prior in PRIORS},
        curve=[(float(f"{rate:.6g}"), upwards(detected(profile, float(f"{rate:.6g}")))) for rate in DRAWN],
    )


def upwards(share: float, digits: int = 6) -> float:
    """So many digits after the point, and not below the bound."""
    return min(1.0, math.ceil(round(share * 10**digits, 6)) / 10**digits)
