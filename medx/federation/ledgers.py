"""The hospitals' ledgers of one run: where they lie, how a run reserves, and what was executed in the end."""

import hashlib
from importlib.metadata import version
from pathlib import Path

from medx.federation.job import Job, Prepared
from medx.privacy.ledger import PrivacyLedger, Reservation


def ledger_path(job: Job, client: int) -> Path:
    """``privacy.ledger`` where it is set, so that runs add up; else the run's own folder."""
    folder = getattr(job.setup.privacy, "ledger", None)
    return (Path(folder) if folder else job.folder / "ledger") / f"client_{client:04d}.sqlite"


def ledger_run(job: Job) -> str:
    """The run as ledgers know it: the same name only where the same seed repeats every step bit by bit.

    With noise of the system nothing is repeated, so there the output folder, which a resume shares, is in the name.
    """
    name = f"{job.run_id}-{job.setup.seed}-torch{version('torch')}"
    if job.plan.noise_source == "seed":
        return name
    return f"{name}-{hashlib.sha256(str(job.folder.absolute()).encode()).hexdigest()[:16]}"


def open_ledger(job: Job, prepared: Prepared, client: int) -> PrivacyLedger:
    """The client's ledger with the whole run reserved; raises LedgerError, before any data is touched."""
    plan = job.plan.clients[client]
    assert plan.step is not None
    assert job.plan.delta is not None
    path = ledger_path(job, client)
    path.parent.mkdir(parents=True, exist_ok=True)
    ledger = PrivacyLedger(path, create=not job.resumed)
    reservation = Reservation(
        run_id=ledger_run(job),
        data=f"{prepared.splits.content_hash}/{client}",
        step=plan.step,
        steps=plan.total_steps,
        noise_source=job.plan.noise_source,
    )
    ledger.reserve(reservation, delta=job.plan.delta, budget=getattr(job.setup.privacy, "budget", None))
    return ledger


def recorded_steps(job: Job) -> dict[int, int]:
    """Steps that every client's ledger shows as begun: never fewer than were executed."""
    steps = {}
    for plan in job.plan.clients:
        ledger = PrivacyLedger(ledger_path(job, plan.client), create=False)
        steps[plan.client] = sum(count for _, count in ledger.executed(ledger_run(job)))
        ledger.close()
    return steps


def finish_ledgers(job: Job) -> None:
    """Give back what was reserved and never begun."""
    for plan in job.plan.clients:
        ledger = PrivacyLedger(ledger_path(job, plan.client), create=False)
        ledger.finish(ledger_run(job))
        ledger.close()
