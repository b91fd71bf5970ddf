"""The hospitals' ledgers of one run: where they lie, how a run reserves, and what was executed in the end."""

from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from medx.federation.job import Job, Prepared
from medx.privacy.ledger import PrivacyLedger, Reservation
from medx.schema import LedgerError


def ledger_path(job: Job, client: int) -> Path:
    """``privacy.ledger`` where it is set, so that runs add up; else the run's own folder."""
    folder = getattr(job.setup.privacy, "ledger", None)
    return (Path(folder) if folder else job.folder / "ledger") / f"client_{client:04d}.sqlite"


def ledger_run(job: Job) -> str:
    """The run as ledgers know it: by its id, which a resume finds in the folder, wherever that is by now."""
    return job.run_id


def open_ledger(job: Job, prepared: Prepared, client: int) -> PrivacyLedger:
    """The client's ledger with the whole run reserved; raises LedgerError, before any data is touched."""
    plan = job.plan.clients[client]
    assert plan.step is not None
    assert job.plan.delta is not None
    path = ledger_path(job, client)
    path.parent.mkdir(parents=True, exist_ok=True)
    ledger = PrivacyLedger(path, create=client not in job.charged)
    if client in job.charged:
        check_entries(ledger, ledger_run(job), job.charged[client])
    reservation = Reservation(
        run_id=ledger_run(job),
        data=f"{prepared.splits.content_hash}/{client}",
        step=plan.step,
        steps=plan.total_steps,
        noise_source=job.plan.noise_source,
    )
    ledger.reserve(reservation, delta=job.plan.delta, budget=getattr(job.setup.privacy, "budget", None))
    return ledger


def server_ledger(job: Job) -> PrivacyLedger:
    """The server's ledger, kept where the unit is a client: a round is one release for all of them."""
    return PrivacyLedger(ledger_path(job, 0).with_name("server.sqlite"), create=not job.resumed)


def open_server_ledger(job: Job, prepared: Prepared) -> PrivacyLedger:
    """The same with the whole run reserved; raises LedgerError, before any client is asked."""
    assert job.plan.client_release is not None
    assert job.plan.delta is not None
    ledger_path(job, 0).parent.mkdir(parents=True, exist_ok=True)
    ledger = server_ledger(job)
    if job.charged:
        check_entries(ledger, ledger_run(job), max(job.charged.values()))
    reservation = Reservation(
        run_id=ledger_run(job),
        data=f"{prepared.splits.content_hash}/{job.setup.num_clients} clients",
        step=job.plan.client_release.event,
        steps=job.setup.federation.num_rounds,
        noise_source=job.plan.noise_source,
    )
    ledger.reserve(reservation, delta=job.plan.delta, budget=getattr(job.setup.privacy, "budget", None))
    return ledger


def check_entries(ledger: PrivacyLedger, run: str, steps: int) -> None:
    """Refuse to go on with a run, and close the ledger, where it does not show what the run had spent."""
    shown = sum(count for _, count in ledger.executed(run)) if ledger.knows(run) else None
    if shown is None or shown < steps:
        ledger.close()
        found = "no entry" if shown is None else f"{shown} steps"
        raise LedgerError(
            f"ledger {ledger.path} has {found} of run {run}, which had begun at least {steps} steps by its checkpoint; "
            "accepted: the ledger that the run was charged to"
        )


def recorded_steps(job: Job, answered: dict[int, int]) -> dict[int, int]:
    """Steps that every client's ledger shows as begun: never fewer than were executed.

    A client that never started has no entry and took no step; one that ``answered`` must have one.
    """
    if job.plan.client_release is not None:
        with closing(server_ledger(job)) as ledger:
            begun = sum(count for _, count in ledger.executed(ledger_run(job)))
        return {plan.client: begun for plan in job.plan.clients}
    run = ledger_run(job)
    known = {client: sum(count for _, count in ledger.executed(run)) for client, ledger in _ledgers(job)}
    for client in answered:
        if client not in known:
            raise LedgerError(f"ledger {ledger_path(job, client)} lost the entries of run {run}")
    return {plan.client: known.get(plan.client, 0) for plan in job.plan.clients}


def finish_ledgers(job: Job) -> None:
    """Give back what was reserved and never begun."""
    if job.plan.client_release is not None:
        with closing(server_ledger(job)) as ledger:
            if ledger.knows(ledger_run(job)):
                ledger.finish(ledger_run(job))
        return
    for _, ledger in _ledgers(job):
        ledger.finish(ledger_run(job))


def withdraw(job: Job) -> None:
    """Give back what hospitals reserved for a run that one of them refused before it began."""
    for plan in job.plan.clients:
        with suppress(LedgerError):  # the refusal is being told already, and may be this very ledger's
            for _, ledger in _ledgers(job, plan.client):
                ledger.finish(ledger_run(job))


def _ledgers(job: Job, only: int | None = None) -> Iterator[tuple[int, PrivacyLedger]]:
    """The clients whose ledgers know this run; a client that never started has none."""
    for plan in job.plan.clients:
        path = ledger_path(job, plan.client)
        if not path.exists() or only not in (None, plan.client):
            continue
        ledger = PrivacyLedger(path, create=False)
        try:
            if ledger.knows(ledger_run(job)):
                yield plan.client, ledger
        finally:
            ledger.close()
