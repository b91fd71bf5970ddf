"""What an exposure of records must be like, and the clients' plans that follow from it and the noise of each."""

from collections.abc import Sequence

from medx.privacy.base import ClientPlan, Exposure, SampledGaussian
from medx.privacy.units import CLIENT, PATIENT, Unit
from medx.schema import ConfigError, PrivacyError


def check_exposure(exposure: Exposure) -> None:
    """Refuse sampling probabilities out of range, by client; an empty client's is not used."""
    for client, (records, q) in enumerate(zip(exposure.num_records, exposure.sampling_probability, strict=True)):
        if records and not 0 < q <= 1:
            raise PrivacyError(
                f"client {client}: sampling_probability={q:g}: must be in (0, 1]; "
                f"the expected batch may not exceed its {records} records"
            )


def check_patients(exposure: Exposure, unit: Unit) -> None:
    """Refuse a patient as the unit where no patients are known, or where one is at several hospitals."""
    if unit is not PATIENT:
        return
    if exposure.num_patients is None:
        raise ConfigError(
            "privacy.unit=patient: the data set does not tell patients; accepted: record, or a data set that does "
            "(dataset.columns.patient of a folder, dataset.patients=true of pneumoniamnist)"
        )
    if any(len(where) > 1 for where in exposure.patient_images):
        raise ConfigError(
            "privacy.unit=patient: a patient is at several hospitals, which would spend an epsilon each; accepted: "
            "privacy.unit=record, whose statement adds them up, or each patient at one hospital"
        )


def check_delta(delta: float, exposure: Exposure, unit: Unit) -> None:
    """Refuse ``delta >= 1 / N`` for the N of all units together: records or patients of the federation, or clients.

    A mechanism that publishes one of them whole, drawn among all, would satisfy it.
    """
    clients, records = len(exposure.num_records), sum(exposure.num_units)
    if unit is CLIENT and delta >= 1 / clients:
        raise PrivacyError(
            f"privacy.delta={delta:g}: must be below 1/num_clients = {1 / clients:.3g}, the unit is a client"
        )
    if unit is not CLIENT and records and delta >= 1 / records:
        of = f"N={records} {unit.name}s"
        raise PrivacyError(f"privacy.delta={delta:g}: must be below 1/N = {1 / records:.3g} of the federation's {of}")


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
    batches = [q * n for q, n in zip(exposure.sampling_probability, exposure.num_units, strict=True)]
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
                num_patients=None if exposure.num_patients is None else exposure.num_patients[client],
            )
        )
    return tuple(plans)
