"""The privacy statement in plain language: what a run promises, to whom, and what it does not."""

import math
from collections.abc import Sequence

from medx.privacy.base import ClientRelease, PrivacyPlan
from medx.privacy.meaning import in_short, in_words, meanings, meanings_by_observer
from medx.privacy.spending import Spending
from medx.privacy.units import PATIENT, RECORD
from medx.released import Release, marked
from medx.results import (
    STUDY_ONLY,
    AggregationResult,
    ExperimentResult,
    NoiseMeasured,
    PublicWeights,
    told_epsilon,
)

NOISE = {
    "seed": "drawn from the run's seed: reproducible, and whoever knows the seed can subtract it; "
    f"{STUDY_ONLY}, not for release",
    "system": "drawn from the operating system: nobody can make it again; fit for release",
}
ADDED = "each hospital adds Gaussian noise before anything leaves"


def statement(
    plan: PrivacyPlan,
    synthetic: bool = False,
    *,
    aggregation: AggregationResult | None = None,
    spent: Spending | None = None,
    noise: NoiseMeasured | None = None,
    weights: PublicWeights | None = None,
    personal: tuple[str, str] | None = None,
    bounds: str | None = None,
) -> str:
    """About twenty lines of text; of the plan, or where something was ``spent`` of that, with ``noise`` as added.

    ``personal`` are the option of personal models and what it says of them; ``bounds`` is what the trainer says.
    """
    shared = plan.shared_noise
    secure = aggregation.secure if aggregation else shared is not None and not shared.trusted_aggregator
    sees = f"Who sees what: {plan.mechanism.sees[secure]}."
    lines = ["Privacy statement"]
    what = plan.mechanism.what if bounds is None else f"{bounds}; {plan.mechanism.what if shared else ADDED}"
    lines += _guarantee(plan, spent or Spending.planned(plan), what, sees, noise) if plan.private else _nothing(sees)
    if aggregation is not None and aggregation.secure:
        lines += _aggregation(aggregation, noised=plan.private)
    if weights is not None:
        lines.append(weights.line())
    if personal is not None:
        lines.append(f"Personal models ({personal[0]}): {personal[1]}")
    if synthetic:
        lines.append("Data: synthetic images that show nobody, so no guarantee is needed; this is a trial.")
    lines += _fields(plan.private)
    return "\n".join(lines)


def _added(noise: NoiseMeasured | None, executed: bool) -> list[str]:
    """Whether the noise was as planned. Without figures: who knows the noise takes it off, and this is released."""
    if not executed:
        return []
    if noise is None:
        return ["The noise as it was added was not looked at: not in this process, or before the run was gone on with."]
    if noise.doubts:
        return [f"THE NOISE AS IT WAS ADDED IS NOT AS PLANNED: {'; '.join(noise.doubts)}."]
    return ["As it was added, its size and tail, and what coordinates, rounds and hospitals share, are as planned."]


def _guarantee(plan: PrivacyPlan, spent: Spending, what: str, sees: str, noise: NoiseMeasured | None) -> list[str]:
    assert plan.unit is not None
    return [
        f"Unit: {plan.unit.what}; neighbouring data sets {plan.unit.adjacency}. How many records a hospital has is "
        f"public, so what is proved concerns content, not presence. {plan.unit.patient}",
        f"Mechanism: {what}.",
        *_mean(plan),
        f"Guarantee as {'executed' if spent.executed else 'planned'}: {_epsilons(spent)}, delta {plan.delta:g}; "
        f"{_target(plan, spent.executed)}.",
        *_baselines(plan, spent),
        *(in_words(meanings(spent)) if spent.executed else ()),
        f"Composition: {plan.unit.composition}",
        *_spare(plan),
        *_several(plan.unit.several, spent),
        *_by_unit(plan, spent),
        *_towards(spent),
        " ".join([f"Noise: {NOISE[plan.noise_source]}.", *_added(noise, spent.executed)]),
        sees,
        f"Steps: {_steps(plan, spent)}.",
        f"Public: hospitals' record counts{_counted(plan)}, the partition, this configuration, and {_who(plan)}"
        f"{'; none of this is protected, though it depends on a hospital' if plan.client_release else ''}.",
        "Not covered: validation and test records and what is computed on them (metrics, and the threshold in the "
        "model file), metrics by hospital, timing; "
        f"{'' if plan.num_runs > 1 else 'a choice among several runs; '}other runs on the same data, whose epsilons "
        "add up.",
    ]


def _mean(plan: PrivacyPlan) -> list[str]:
    """What is clipped where a patient is the unit."""
    if plan.unit is not PATIENT:
        return []
    most = plan.max_records_per_patient
    some = (
        "all images of that patient"
        if most is None
        else f"at most {most} images of that patient, drawn anew in each step"
    )
    return [f"What the mechanism calls a record is a patient: the mean gradient over {some}, clipped as one."]


def _target(plan: PrivacyPlan, executed: bool) -> str:
    if not plan.mechanism.calibrated:
        return f"the noise was given, and covers no more than epsilon {plan.target_epsilon:.4g}"
    target = f"target epsilon {plan.target_epsilon:g}"
    if plan.baselines:
        own = "" if executed else " (the figures here are the run's own)"
        return f"{target} for the run and its baselines together{own}"
    if plan.num_runs == 1:
        return target
    return f"{target} for {plan.num_runs} runs together, of which this is one (all figures here are its own)"


def _baselines(plan: PrivacyPlan, spent: Spending) -> list[str]:
    if not plan.baselines or not spent.executed:
        return []
    return [
        f"Baselines: {', '.join(plan.baselines)} trained on the same records, and what they spent is in that epsilon; "
        f"the run alone spent {spent.epsilon_alone():.3f}."
    ]


def _several(several: str, spent: Spending) -> list[str]:
    """The guarantee for k that belong together, and for one that is replaced; at the same delta."""
    if not spent.executed:  # it takes seconds
        return [f"Several {several}, and one that is replaced by another: a larger epsilon, in the final statement."]
    table = ", ".join(f"k = {size}: {value:.4g}" for size, value in spent.by_group().items())
    return [
        f"k {several} together, at the same delta: epsilon {table}. One replaced by another: {spent.replaced():.4g}."
    ]


def _by_unit(plan: PrivacyPlan, spent: Spending) -> list[str]:
    """What the run comes to for an image, a patient and a hospital, each with all that it has."""
    if not spent.executed:
        return []
    images = most_images(plan)
    what = {"image": "one image", "patient": "one patient", "hospital": "one hospital with all its records"}
    if images is not None and plan.unit is RECORD:
        what["patient"] = f"one patient (all images, at most {images} at a hospital)"
    told = [f"{what[unit]} {told_epsilon(value)}" for unit, value in spent.by_unit().items()]
    unknown = [] if "patient" in spent.by_unit() else ["The data set does not tell patients: see k images, above."]
    return [f"Epsilon of this run by whom it is for: {', '.join(told)}.", *unknown]


def _towards(spent: Spending) -> list[str]:
    """Epsilon towards every observer of shared noise, and once it is spent what that means."""
    epsilons = {who: f"epsilon {value:.3f}" for who, value in spent.by_observer().items()}
    if not spent.executed:
        return [f"Towards {who}: {epsilon}." for who, epsilon in epsilons.items()]
    return [
        f"Towards {who}: {epsilons.get(who, 'no epsilon')}, that is {in_short(meaning)}."
        for who, meaning in meanings_by_observer(spent).items()
    ]


def _counted(plan: PrivacyPlan) -> str:
    """What else is counted in public where patients are known."""
    if most_images(plan) is None:
        return ""
    return f" {'and patient counts' * (plan.unit is PATIENT)} and the most images of a patient".replace("  ", " ")


def most_images(plan: PrivacyPlan) -> int | None:
    """The most images that a patient has at one hospital; None where patients are not known."""
    return max((size for where in plan.patient_images for _, size in where), default=None)


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


def _epsilons(spent: Spending) -> str:
    """The federation's epsilon by every accountant."""
    bound, others = spent.epsilon(), spent.by_accountant()
    text = (
        f"epsilon {bound.value:.3f} ({bound.accountant.upper()}, upper bound; PLD {others['pld']:.3f}, "
        f"RDP {others['rdp']:.3f})"
    )
    return text if bound.reason is None else f"{text} [{bound.reason}]"


def _spare(plan: PrivacyPlan) -> list[str]:
    """What is kept for rounds that are begun again, and how much more noise it costs."""
    first = plan.clients[0]
    if not first.spare_rounds:
        return []
    covered = first.num_rounds + first.spare_rounds
    more = math.sqrt(covered / first.num_rounds) - 1  # noise grows with the root of the releases
    cost = f" (about {100 * more:.1f} % more noise)" if plan.mechanism.calibrated else ""
    return [
        f"Reserve: the noise covers {covered} rounds, {first.spare_rounds} more than planned, for rounds that are "
        f"begun again{cost}; what is not begun is not spent."
    ]


def _steps(plan: PrivacyPlan, spent: Spending) -> str:
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
    if spent.executed:
        done = [sum(steps for _, steps in history) for history in spent.own]
        parts.append(f"executed by hospital {_range(done)} of {plan.planned_events(first)}")
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


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.5g}", f"{max(values):.5g}"
    return low if low == high else f"{low} to {high}"
