"""Choosing among a sweep's runs, and what all of them together have spent (McSherry and Talwar 2007: composition).

The runs share one budget (``privacy.num_runs``), so for training records choosing the best is post-processing of what
is covered, towards the outside and a server that is not trusted; the validation records that decide have no guarantee.
Drawing the number of runs at random (Papernot and Steinke 2022) would spend less towards who sees the winner alone, and
more towards the server, which sees them all.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from medx.privacy.accounting import Event, epsilon_spent
from medx.privacy.base import SampledGaussian
from medx.results import ExperimentResult
from medx.schema import ConfigError

LOWER_IS_BETTER = ("loss", "brier", "ece")


@dataclass(frozen=True)
class Selection:
    """The best run by a validation metric among runs of one seed. ``epsilon`` composes all of them.

    ``epsilon_others`` is that towards all other hospitals together, who take their own shares of a common noise off.
    """

    metric: str
    winner: int
    results: tuple[ExperimentResult, ...]
    epsilon: float | None
    epsilon_others: float | None

    @property
    def result(self) -> ExperimentResult:
        """The winner's result."""
        return self.results[self.winner]

    def summary(self) -> dict[str, object]:
        """What was chosen among how many, by what, and what that cost."""
        best = self.result
        validation, test = (
            {name: metrics[name].value for name in sorted(metrics)} for metrics in (best.validation, best.test)
        )
        return {
            "seed": best.seed,
            "runs": len(self.results),
            "metric": self.metric,
            "epsilon": self.epsilon,
            "epsilon_towards_all_other_hospitals": self.epsilon_others,
            "delta": best.privacy.delta,
            "validation": validation,
            "test": test,
        }

    def line(self, job: str) -> str:
        """The same for the screen."""
        best, count = self.result, len(self.results)
        spent = "no guarantee" if self.epsilon is None else f"ε {self.epsilon:.3f} for all {count} together"
        metrics = {
            "AUC": "auc",
            "accuracy": "accuracy",
            "balanced accuracy at threshold": "balanced_accuracy_at_threshold",
        }
        shown = [f"{title} {best.test[name].value:.3f}" for title, name in metrics.items()
                 if name in best.test and best.test[name].value is not None]  # fmt: skip
        return (
            f"Selected by validation {self.metric} among {count} runs of seed {best.seed}: job {job}; "
            f"{spent}; test {', '.join(shown)}"
        )


def select(results: Sequence[ExperimentResult], metric: str) -> Selection:
    """The best finished run by ``metric`` on validation, the first of equals; all of them are paid for.

    Raises ConfigError for a metric that no finished run has, for more runs than the budget was made for, and for runs
    whose records do not lie at the same hospitals.
    """
    refuse_unlike(results)
    allowed = min((int(result.config["privacy"].get("num_runs", 1)) for result in results), default=1)
    private = [result for result in results if result.privacy.epsilon is not None]
    if private and len(results) > allowed:
        raise ConfigError(
            f"privacy.num_runs={allowed}: {len(results)} runs of one seed overdraw a budget made for so many"
        )
    scores = [_score(result, metric) for result in results]
    if not results or min(scores) == math.inf:
        known = sorted(results[0].validation) if results else []
        raise ConfigError(f"select={metric}: no finished run has it; accepted: {', '.join(known) or 'none'}")
    spent = total_epsilon(results), total_epsilon(results, others=True)
    return Selection(metric, scores.index(min(scores)), tuple(results), *spent)


def by_seed(results: Sequence[ExperimentResult], metric: str) -> Iterator[Selection]:
    """One selection a seed: another seed is another study, not another candidate."""
    for seed in sorted({result.seed for result in results if result.seed is not None}):
        yield select([result for result in results if result.seed == seed], metric)


def refuse_unlike(results: Sequence[ExperimentResult]) -> None:
    """Raise ConfigError unless all runs dealt the same records to the same hospitals, and released the same of them.

    Each run's noise is calibrated for ``num_runs`` like it: unlike ones together would exceed the target.
    """
    kinds: dict[str, set[object]] = {
        "dataset": {result.dataset.content_hash for result in results},
        "partition": {json.dumps(result.config["partition"], sort_keys=True, default=str) for result in results},
        "federation.num_clients": {result.config["federation"]["num_clients"] for result in results},
        "privacy.delta": {result.privacy.delta for result in results},
        "privacy.unit": {result.privacy.unit for result in results},
        "what is released (sampling probability, noise multiplier, steps)": {
            _releases(result) for result in results if result.privacy.epsilon is not None
        },
    }
    for name, values in kinds.items():
        if len(values) > 1:
            raise ConfigError(
                f"select: {name} differs between the runs; accepted is one, or their budgets do not add up"
            )


def _releases(result: ExperimentResult) -> str:
    """What the run was to release on each hospital's records, whether or not it was stopped early."""
    config = result.config
    planned = (config["federation"]["num_rounds"], config["trainer"]["local_steps"])
    each = [(one.client, one.sampling_probability, one.noise_multiplier) for one in result.privacy.clients]
    return json.dumps([planned, each])


def total_epsilon(results: Sequence[ExperimentResult], others: bool = False) -> float | None:
    """The largest client's epsilon over every executed step of every run; None where a run gives no guarantee.

    With ``others``, towards all other hospitals together, who know all shares of a common noise but one.
    """
    if any(result.privacy.epsilon is None or result.privacy.delta is None for result in results):
        return None
    (delta,) = {result.privacy.delta for result in results}
    assert delta is not None
    clients = {client.client for result in results for client in result.privacy.clients}
    return max(epsilon_spent(_events(results, client, others), delta).value for client in clients)


def _events(results: Sequence[ExperimentResult], client: int, others: bool) -> list[Event]:
    executed = (
        (events, share)
        for result in results
        for given, share in (
            (result.privacy.clients, _own_share(result) if others else 1.0),
            (result.privacy.baselines, 1.0),
        )
        for events in given
        if events.client == client
    )
    return [
        (SampledGaussian(events.sampling_probability, events.noise_multiplier * share, events.clip_norm), events.steps)
        for events, share in executed
        if events.sampling_probability is not None
        and events.noise_multiplier is not None
        and events.clip_norm is not None
        and events.steps
    ]


def _own_share(result: ExperimentResult) -> float:
    """The part of the noise, in standard deviations, that one hospital adds; 1 where it adds all of its own."""
    aggregation = result.privacy.aggregation
    if "assumed_colluders" not in result.config["privacy"] or aggregation is None or not aggregation.minimum_survivors:
        return 1.0
    contributors = aggregation.minimum_survivors - int(result.config["privacy"]["assumed_colluders"])
    return float(1 / contributors**0.5)


def _score(result: ExperimentResult, metric: str) -> float:
    if result.status != "finished":
        return math.inf
    value = result.validation[metric].value if metric in result.validation else None
    if value is None or math.isnan(value):
        return math.inf
    return value if metric in LOWER_IS_BETTER else -value
