"""What every mechanism's plan needs: checks of what is asked, and client plans from it."""

from collections.abc import Sequence

from medx.privacy.base import ClientPlan, Exposure, SampledGaussian
from medx.schema import ConfigError, PrivacyError


def check_exposure(exposure: Exposure) -> None:
    """Refuse counts and sampling probabilities out of range, by client; an empty client's probability is not used."""
    if len(exposure.num_records) != len(exposure.sampling_probability):
        raise ConfigError(
            f"{len(exposure.num_records)} clients but {len(exposure.sampling_probability)} sampling probabilities"
        )
    if exposure.steps_per_round < 1 or exposure.num_rounds < 1:
        raise ConfigError(
            f"steps_per_round={exposure.steps_per_round}, num_rounds={exposure.num_rounds}: both must be 1 or more"
        )
    for client, (records, q) in enumerate(zip(exposure.num_records, exposure.sampling_probability, strict=True)):
        if records < 0:
            raise ConfigError(f"client {client}: num_records={records}: must be 0 or more")
        if records and not 0 < q <= 1:
            raise PrivacyError(
                f"client {client}: sampling_probability={q:g}: must be in (0, 1]; "
                f"the expected batch may not exceed its {records} records"
            )


def check_delta(delta: float, num_records: Sequence[int]) -> None:
    """Refuse ``delta >= 1 / N`` for the N of all clients together.

    A mechanism that publishes one record whole, drawn among all of the federation's, would satisfy it.
    """
    total = sum(num_records)
    if total and delta >= 1 / total:
        raise PrivacyError(
            f"privacy.delta={delta:g}: must be below 1/N = {1 / total:.3g} of the federation's N={total} records"
        )


def client_plans(
    exposure: Exposure, steps: Sequence[SampledGaussian | None], spare_rounds: int = 0
) -> tuple[ClientPlan, ...]:
    """One plan a client; ``steps`` has one release a client, anything for an empty one.

    An empty client has nothing to protect; it behaves as the average of the others, so that it adds noise of
    their size: their sampling probability and expected batch, and their largest noise multiplier.
    """
    filled = [i for i, records in enumerate(exposure.num_records) if records]
    if not filled:
        raise ConfigError("num_records: every client is empty; at least one must hold records")
    batches = [q * n for q, n in zip(exposure.sampling_probability, exposure.num_records, strict=True)]
    noisiest = max(filled, key=lambda i: step.noise_multiplier if (step := steps[i]) else 0.0)
    plans = []
    for client, records in enumerate(exposure.num_records):
        like = client if records else noisiest
        plans.append(
            ClientPlan(
                client=client,
                num_records=records,
                sampling_probability=exposure.sampling_probability[like],
                expected_batch_size=batches[client] if records else sum(batches) / len(filled),
                steps_per_round=exposure.steps_per_round,
                num_rounds=exposure.num_rounds,
                step=steps[like],
                federation_batch_size=sum(batches),
                spare_rounds=spare_rounds,
            )
        )
    return tuple(plans)
