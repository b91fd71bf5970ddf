"""The epsilon that is logged, and the one noise calibration of a run; answers are cached in process and on disk.

The logged epsilon is the upper bound of Opacus's PRV accountant over every executed step. dp-accounting's
PLD is computed beside it each time: where PRV fails, or the two disagree by more than PRV's own error and 2 %,
the logged value is PLD's or the larger one, and the bound says why.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medx.files import write_json
from medx.output import say
from medx.privacy import accountants
from medx.privacy.accountants import Event, Release, full_batches_mu, gaussian_epsilon, gaussian_mu, merge_events
from medx.privacy.base import SampledGaussian
from medx.schema import PrivacyError

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

logger = logging.getLogger(__name__)
LIBRARIES = ("opacus", "dp-accounting", "numpy", "scipy")
SOURCES = ("accountants.py", "accounting.py", "tradeoff.py")

WINDOW = 0.985
"""A calibrated run spends more than this part of its target, by the larger of PRV and PLD, and at most all of it."""

MAX_STEPS = 10_000_000
MOST_MIXED = 100  # records whose number in a batch is taken as it is drawn
LEAST_NOISE = 0.05  # clip norms: the least noise that a calibration tries


@dataclass(frozen=True)
class EpsilonBound:
    """An upper bound on epsilon, the accountant it comes from, and why that is not PRV (None where it is)."""

    value: float
    accountant: Literal["prv", "pld"]
    reason: str | None = None


def epsilon_prv(events: Sequence[Event], delta: float) -> float:
    """PRV's upper bound on the composition; raises PrivacyError where PRV's numerics fail."""
    answer = _epsilon("prv", merge_events(events), check_delta(delta))
    if isinstance(answer, str):
        raise PrivacyError(answer)
    return answer


def epsilon_pld(events: Sequence[Event], delta: float) -> float:
    """PLD's pessimistic bound on the composition: independent of PRV, equal to it within PRV's error."""
    return float(_epsilon("pld", merge_events(events), check_delta(delta)))


def epsilon_rdp(events: Sequence[Event], delta: float) -> float:
    """The bound by Renyi composition: what older reports used; never below the truth, often 10 % above."""
    return float(_epsilon("rdp", merge_events(events), check_delta(delta)))


def epsilon_spent(events: Sequence[Event], delta: float) -> EpsilonBound:
    """The epsilon to log for these executed events, 0 for none."""
    pld = epsilon_pld(events, delta)
    try:
        prv = epsilon_prv(events, delta)
    except PrivacyError as error:
        return EpsilonBound(pld, "pld", str(error))
    if abs(prv - pld) <= 0.02 * pld + 1.1 * accountants.prv_error(pld):
        return EpsilonBound(prv, "prv")
    reason = f"PRV ({prv:.6g}) and PLD ({pld:.6g}) disagree: the larger one is reported"
    return EpsilonBound(prv, "prv", reason) if prv > pld else EpsilonBound(pld, "pld", reason)


def calibrate_noise_multiplier(target_epsilon: float, delta: float, sampling_probability: float, steps: int) -> float:
    """The noise multiplier (stddev over clip norm) at which ``steps`` releases spend ``target_epsilon``.

    One search for the whole run: the larger of PRV and PLD ends within (.985, 1] of the target. Raises
    PrivacyError on arguments out of range, or where no noise multiplier spends that much.
    """
    if not 0 < target_epsilon < math.inf:
        raise PrivacyError(f"epsilon={target_epsilon}: must be positive and finite")
    if not 0 < sampling_probability <= 1:
        raise PrivacyError(f"sampling_probability={sampling_probability}: must be in (0, 1]")
    if steps < 1:
        raise PrivacyError(f"steps={steps}: must be 1 or more")
    if steps > MAX_STEPS:
        raise PrivacyError(
            f"federation.num_rounds, trainer.local_steps: {steps} noised steps in all, with spare rounds and runs; "
            f"accepted: at most {MAX_STEPS}"
        )
    check_delta(delta)
    if sampling_probability < 1 and -math.expm1(steps * math.log1p(-sampling_probability)) <= delta:
        raise PrivacyError(
            f"privacy.delta={delta:g}: a record is used at all with a smaller probability ({steps} steps at "
            f"sampling_probability={sampling_probability:g}), so it would allow no noise; ask for a smaller delta"
        )
    return _calibrate(float(target_epsilon), float(delta), float(sampling_probability), int(steps))


@lru_cache(maxsize=256)
def epsilon_curve(step: SampledGaussian, steps_per_round: int, num_rounds: int, delta: float) -> tuple[float, ...]:
    """Epsilon after every round, each composed exactly and each an upper bound; the last is epsilon_spent's.

    A round's bound is PLD's (the Gaussian closed form at q = 1) plus what the final bound has above it, which is
    PRV's error term: so the curve is true at every round and ends, without a jump, at the figure of the result.
    """
    merged = merge_events([(step, steps_per_round * num_rounds)])
    if not merged:
        return (0.0,) * num_rounds
    final = epsilon_spent([(step, merged[0].steps)], delta).value
    question = {"release": merged[0], "steps_per_round": steps_per_round, "delta": delta}
    raw = cached("curve", question, lambda: _raw_curve(merged[0], steps_per_round, num_rounds, delta))
    lift = max(0.0, final - raw[-1])
    return tuple(min(value + lift, final) for value in raw)


def epsilon_group(parts: Sequence[tuple[tuple[Release, ...], int]], delta: float) -> float:
    """The bound for several records together: ``parts`` has releases and how many of the records they touch.

    It is at most that of full batches under the same noise, which beyond ``MOST_MIXED`` records is the answer.
    """
    sizes = [size for _, size in parts]
    whole = all(release.sampling_probability == 1 for releases, _ in parts for release in releases)
    full = gaussian_epsilon(math.hypot(*(size * full_batches_mu(releases) for releases, size in parts)), delta)
    if whole or max(sizes, default=0) > MOST_MIXED:
        return full
    question = {"parts": [[list(releases), size] for releases, size in parts], "delta": delta}
    return min(full, float(cached("group", question, lambda: _epsilon_of(accountants.mixture(parts), delta))))


def epsilon_replaced(releases: tuple[Release, ...], delta: float) -> float:
    """The bound for one record whose content is replaced by any other."""
    full = gaussian_epsilon(2 * full_batches_mu(releases), delta)
    if all(release.sampling_probability == 1 for release in releases):
        return full
    question = {"releases": releases, "delta": delta}
    found = cached("replace", question, lambda: _finite(accountants.replacing(releases, delta)))
    return full if found is None else min(full, float(found))  # where the search finds none, that of full batches


def check_delta(delta: float) -> float:
    """``delta`` as a float; raises PrivacyError outside (0, 1)."""
    if not 0 < delta < 1:
        raise PrivacyError(f"delta={delta}: must be in (0, 1)")
    return float(delta)


@lru_cache(maxsize=4096)
def _epsilon(accountant: Literal["prv", "pld", "rdp"], releases: tuple[Release, ...], delta: float) -> float | str:
    """A bound, or the reason why PRV has none: its failures are cached as well."""
    if not releases:
        return 0.0
    compute: Callable[[tuple[Release, ...], float], float] = getattr(accountants, accountant)

    def answer() -> float | str:
        try:
            return compute(releases, delta)
        except PrivacyError as error:
            return str(error)

    return cached(accountant, {"releases": releases, "delta": delta}, answer)  # type: ignore[no-any-return]


@lru_cache(maxsize=4096)
def _calibrate(target: float, delta: float, q: float, steps: int) -> float:
    question = {"target": target, "delta": delta, "q": q, "steps": steps}
    return float(cached("sigma", question, lambda: _search(target, delta, q, steps)))


def _search(target: float, delta: float, q: float, steps: int) -> float:
    """Solve with the cheap accountant, certify with both, and move the aim by what they found above it."""
    aim = 0.998 * target - accountants.prv_error(target)
    sigma: float | None = None
    for _ in range(6):
        sigma = _solve(aim, delta, q, steps, sigma)
        events = [(SampledGaussian(q, sigma, 1.0), steps)]
        certified = max(epsilon_spent(events, delta).value, epsilon_pld(events, delta))
        if WINDOW * target < certified <= target:
            return sigma
        aim += 0.994 * target - certified
        if aim <= 0:
            break
    raise PrivacyError(
        f"privacy.epsilon={target:g}: no noise multiplier is certified for it with privacy.delta={delta:g} and {steps} "
        f"steps at sampling_probability={q:g}; accepted: another epsilon, or a larger delta"
    )


def _solve(aim: float, delta: float, q: float, steps: int, start: float | None) -> float:
    """Noise multiplier at which the cheap accountant gives ``aim`` within .2 %: closed form at q = 1, else PLD.

    Bracketed secant steps on (log sigma, log epsilon), nearly a line; starts from the central limit
    (Bu et al. 2020, mu = q sqrt(steps (exp(1 / sigma^2) - 1))).
    """
    mu = gaussian_mu(aim, delta)
    if q == 1:
        return _round_up(math.sqrt(steps) / mu)
    x = math.log(start or max(math.log1p(mu**2 / (q**2 * steps)) ** -0.5, 0.06))
    low, high = (math.log(LEAST_NOISE), math.inf), (math.log(1e6), -math.inf)
    slope = -1.2
    for _ in range(40):
        epsilon = accountants.pld((Release(q, math.exp(x), steps),), delta)
        y = math.log(epsilon / aim) if epsilon > 0 else -math.inf
        if -0.002 <= y <= 0:
            return _round_up(math.exp(x))
        low, high, last = ((x, y), high, low) if y > 0 else (low, (x, y), high)
        if math.isfinite(last[1]) and math.isfinite(y) and abs(last[1] - y) > 1e-9 and abs(last[0] - x) < 1:
            slope = min((last[1] - y) / (last[0] - x), -0.05)
        x = x - (y + 0.001) / slope if math.isfinite(y) else (low[0] + high[0]) / 2
        if not low[0] < x < high[0]:
            x = (low[0] + high[0]) / 2
        if high[0] - low[0] < 1e-7:
            break
    most = accountants.pld((Release(q, LEAST_NOISE, steps),), delta)
    raise PrivacyError(
        f"privacy.epsilon={aim:.4g}: {steps} steps at sampling_probability={q:g} and privacy.delta={delta:g} spend "
        f"{most:.4g} with as little noise as {LEAST_NOISE} clip norms; accepted: an epsilon below that"
    )


def _epsilon_of(loss: "PrivacyLossDistribution", delta: float) -> float:
    return float(loss.get_epsilon_for_delta(delta))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _round_up(sigma: float) -> float:
    """Six significant digits, upwards, so that the printed noise multiplier is the one that is used."""
    scale = 10.0 ** (5 - math.floor(math.log10(sigma)))
    return math.ceil(sigma * scale) / scale


def _raw_curve(release: Release, steps_per_round: int, num_rounds: int, delta: float) -> list[float]:
    totals = [steps_per_round * (k + 1) for k in range(num_rounds)]
    if release.sampling_probability == 1:
        return [gaussian_epsilon(math.sqrt(steps) / release.noise_multiplier, delta) for steps in totals]
    interval = accountants.loss_interval([release])
    loss = accountants.single_loss(release, interval)
    return [float(loss.self_compose(steps).get_epsilon_for_delta(delta)) for steps in totals]


def cache_folder() -> Path:
    """``$MEDX_CACHE/accounting``, or the same under ``~/.cache/medx``."""
    return Path(os.environ.get("MEDX_CACHE") or Path.home() / ".cache" / "medx") / "accounting"


@cache
def _code() -> dict[str, str]:
    sources = b"".join((Path(__file__).parent / name).read_bytes() for name in SOURCES)
    return {name: version(name) for name in LIBRARIES} | {"medx": hashlib.sha256(sources).hexdigest()}


def cached(name: str, arguments: dict[str, Any], compute: Callable[[], Any]) -> Any:
    """``compute()``, or what it gave before for these arguments, library versions and this very source code.

    Values and arguments are plain JSON. A file that does not hold exactly this question is computed anew.
    """
    question = json.dumps({"name": name, "arguments": arguments, "code": _code()}, sort_keys=True)
    path = cache_folder() / f"{name}-{hashlib.sha256(question.encode()).hexdigest()[:32]}.json"
    try:
        entry = json.loads(path.read_text())
        if entry["question"] == question and entry["digest"] == _digest(question, entry["answer"]):
            return entry["answer"]
        logger.warning("cache file %s is damaged: computing it again", path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("cache file %s cannot be read (%s): computing it again", path, error)
    say("accounting: noise and epsilon")
    answer = compute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"question": question, "answer": answer, "digest": _digest(question, answer)})
    except OSError as error:
        logger.warning("cannot cache %s (%s): the next run computes it again", path, error)
    return answer


def _digest(question: str, answer: Any) -> str:
    return hashlib.sha256((question + json.dumps(answer)).encode()).hexdigest()
