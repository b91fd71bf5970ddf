"""What a run spends: epsilon after every round, and towards whom, over the events that are planned or were executed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from medx.privacy.accountants import Event, Release, merge_events
from medx.privacy.accounting import (
    EpsilonBound,
    epsilon_curve,
    epsilon_group,
    epsilon_pld,
    epsilon_prv,
    epsilon_rdp,
    epsilon_replaced,
    epsilon_spent,
)
from medx.privacy.base import ClientPlan, PatientImages, PrivacyPlan, SampledGaussian
from medx.privacy.units import CLIENT, PATIENT
from medx.schema import PrivacyError

SERVER = "the server and its assumed colluders"
TRUSTED = "the server (trusted)"
OTHERS = "all other hospitals together"
SIZES = (2, 3, 5, 10)  # of groups, beside a single record
History = Sequence[Event]
Parts = list[tuple[tuple[Release, ...], int]]  # releases, and how many of a group's records meet them


@dataclass(frozen=True)
class Spending:
    """Events on the records of each of the plan's clients: the run's ``own``, and ``beside`` them its baselines'.

    ``executed`` tells whether they took place or are planned. Epsilon is the maximum over clients.
    """

    plan: PrivacyPlan
    delta: float
    own: Sequence[History]
    beside: Sequence[History] = field(default=())
    executed: bool = False

    @classmethod
    def planned(cls, plan: PrivacyPlan) -> Self:
        """A run that executes all of its plan."""
        assert plan.delta is not None
        return cls(plan, plan.delta, [plan.history(client, plan.planned_events(client)) for client in plan.clients])

    @classmethod
    def of(cls, plan: PrivacyPlan, steps: Mapping[int, int], baselines: Mapping[int, History] | None = None) -> Self:
        """What was executed, by client; ``baselines`` are events of other models that were trained on its records."""
        assert plan.delta is not None
        own = [plan.history(client, steps.get(client.client, 0)) for client in plan.clients]
        beside = [(baselines or {}).get(client.client, ()) for client in plan.clients]
        return cls(plan, plan.delta, own, beside, executed=True)

    @property
    def together(self) -> set[tuple[Event, ...]]:
        """What was done to any client's records, each distinct history once."""
        return self._beside_baselines(self.own)

    def epsilon(self) -> EpsilonBound:
        """The federation's epsilon."""
        bounds = [epsilon_spent(history, self.delta) for history in self.together]
        return max(bounds, key=lambda bound: bound.value, default=EpsilonBound(0.0, "prv"))

    def epsilon_alone(self) -> float:
        """The same without the baselines."""
        return max(epsilon_spent(history, self.delta).value for history in self.own)

    def by_accountant(self) -> dict[str, float]:
        """Epsilon by ``prv``, ``pld`` and ``rdp``, each its own; ``prv`` is left out where it fails."""
        histories = self.together
        found = {
            "pld": max((epsilon_pld(history, self.delta) for history in histories), default=0.0),
            "rdp": max((epsilon_rdp(history, self.delta) for history in histories), default=0.0),
        }
        try:
            return {"prv": max((epsilon_prv(history, self.delta) for history in histories), default=0.0), **found}
        except PrivacyError:
            return found

    def by_group(self) -> dict[str, float]:
        """Upper bounds for ``k`` records of one hospital (a patient's images) together, by ``k`` as text."""
        single, hospitals = self.epsilon().value, [merged for each in self.together if (merged := merge_events(each))]
        bounds = {size: max((epsilon_group([(each, size)], self.delta) for each in hospitals), default=0.0)
                  for size in SIZES}  # fmt: skip
        return {"1": single} | {str(size): max(single, bound) for size, bound in bounds.items()}

    def by_unit(self) -> dict[str, float]:
        """Upper bounds for one ``image``, one ``patient`` (where patients are known), one ``hospital``, each with all.

        One image of a patient who is the unit: the guarantee for a patient whose content is replaced.
        """
        single, unit = self.epsilon().value, self.plan.unit
        patients = [epsilon_group(parts, self.delta) for parts in self.patients()]
        known = {"patient": max([single, *patients])} if self.plan.patient_images else {}
        if unit is CLIENT:
            return {"image": single, **known, "hospital": single}
        everything = [self._parts(((plan.client, plan.num_units),)) for plan in self.plan.clients]
        whole = max((epsilon_group(parts, self.delta) for parts in everything if parts), default=0.0)
        if unit is PATIENT:
            return {"image": self.replaced(), "patient": single, "hospital": max(single, whole)}
        return {"image": single, **known, "hospital": max(single, whole)}

    def patients(self) -> list[Parts]:
        """What touches a patient beyond the unit, for each set of hospitals; none where patients are the unit.

        Where a client is the unit, each hospital that a patient is at is one that changes.
        """
        where = self.plan.patient_images
        if self.plan.unit is PATIENT:
            return []
        if self.plan.unit is CLIENT:
            longest = merge_events(max(self.own, key=_steps))
            return [[(longest, max(map(len, where)))]] if where and longest else []
        return [parts for each in where if (parts := self._parts(each))]

    def _parts(self, where: PatientImages) -> Parts:
        """What touches units that belong together, so many at each of these hospitals.

        In one sum they add up in as many releases as the longest of the hospitals was in; in noised updates of their
        own they compose. Baselines count for all of them, as if one model had seen them all.
        """
        place = {plan.client: index for index, plan in enumerate(self.plan.clients)}
        touched = [(place[client], size) for client, size in where if size]
        if not touched:
            return []
        total = sum(size for _, size in touched)
        own: list[tuple[History, int]] = [(self.own[index], size) for index, size in touched]
        if self.plan.shared_noise is not None:
            own = [(max((history for history, _ in own), key=_steps), total)]
        beside = [(self._others(index), total) for index, _ in touched]
        return [(releases, size) for history, size in [*own, *beside] if (releases := merge_events(history))]

    def _others(self, index: int) -> History:
        return self.beside[index] if self.beside else ()

    def replaced(self) -> float:
        """An upper bound for one record whose content is replaced by any other."""
        hospitals = [merged for each in self.together if (merged := merge_events(each))]
        return max([self.epsilon().value, *(epsilon_replaced(each, self.delta) for each in hospitals)])

    def by_observer(self) -> dict[str, float]:
        """Epsilon towards the outside, the server with its colluders, one other hospital, and all others together.

        Empty unless the noise is shared: then an observer subtracts the shares that it knows. The outside knows none,
        so all ``minimum_survivors`` shares count; one other hospital knows its own; the others together leave one
        hospital with its own share alone, and so does a trusted aggregator, which sees each hospital's part by itself.
        The noise of baselines is nobody's share.
        """
        return {
            observer: max((epsilon_spent(history, self.delta).value for history in histories), default=0.0)
            for observer, histories in self.observed().items()
        }

    def observed(self) -> dict[str, set[tuple[Event, ...]]]:
        """By observer of shared noise what was done to any client's records, under the noise that is left to it."""
        shared = self.plan.shared_noise
        if shared is None:
            return {}
        server = (TRUSTED, 1) if shared.trusted_aggregator else (SERVER, shared.contributors)
        fewest = shared.minimum_survivors
        known = {"the outside": fewest, server[0]: server[1], "one other hospital": max(1, fewest - 1), OTHERS: 1}
        result = {}
        for observer, shares in known.items():
            factor = (shares / shared.contributors) ** 0.5
            seen = [[(_scaled(event, factor), count) for event, count in history] for history in self.own]
            result[observer] = self._beside_baselines(seen)
        return result

    def _beside_baselines(self, own: Sequence[History]) -> set[tuple[Event, ...]]:
        beside = self.beside or [()] * len(own)
        return {(*mine, *others) for mine, others in zip(own, beside, strict=True)}


def _steps(history: History) -> int:
    return sum(count for _, count in history)


def _scaled(event: SampledGaussian, factor: float) -> SampledGaussian:
    return replace(event, noise_multiplier=event.noise_multiplier * factor)


def epsilon_after(plan: PrivacyPlan, steps: Mapping[int, int]) -> float | None:
    """The largest epsilon of any client after these executed steps; None without a guarantee."""
    if not plan.private:
        return None
    return max((client_epsilon(plan, client, steps.get(client.client, 0)) for client in plan.clients), default=0.0)


def client_epsilon(plan: PrivacyPlan, client: ClientPlan, steps: int) -> float:
    """One client's epsilon after ``steps`` releases, a whole number of rounds or not."""
    event = plan.event_of(client)
    assert event is not None
    assert plan.delta is not None
    if not steps:
        return 0.0
    per_round = plan.events_per_round(client)
    rounds, rest = divmod(steps, per_round)
    if rest or rounds > client.num_rounds:
        return epsilon_spent([(event, steps)], plan.delta).value
    return epsilon_curve(event, per_round, client.num_rounds, plan.delta)[rounds - 1]
