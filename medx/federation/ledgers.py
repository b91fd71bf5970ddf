"""The hospitals' ledgers of one run: where they lie, how a run reserves, and what was executed in the end."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path

import numpy as np

from medx.federation.prepared import Prepared
from medx.federation.setup import Job
from medx.privacy.base import SampledGaussian
from medx.privacy.ledger import PrivacyLedger, Reservation
from medx.privacy.ledger_folder import RecordSet, check_header, make_folder, record_set
from medx.schema import LedgerError


def ledger_path(job: Job, client: int) -> Path:
    """``privacy.ledger`` where it is set, so that runs add up; else the run's own folder."""
    return (job.plan.ledger or job.folder / "ledger") / f"client_{client:04d}.sqlite"


def records_of(job: Job, prepared: Prepared, clients: Iterable[int]) -> RecordSet | None:
    """The training records of these clients, for a ledger that runs share; None where the ledger is the run's own.

    There, or where a run counts for all records, nothing need be told apart, and a folder of results is no place for
    what recognises an image.
    """
    if job.plan.ledger is None or job.touches_all:
        return None
    rows = np.concatenate([prepared.parts[client] for client in clients])
    return record_set(prepared.splits.train.images[rows.astype(np.int64)], job.plan.ledger)


def journal_path(job: Job) -> Path:
    """Where the clients' answers in secure sums are on record: beside the ledgers."""
    return ledger_path(job, 0).with_name("secure_sums.journal")


def server_keeps(job: Job) -> bool:
    """Whether the server has the ledger: the unit is a client, and the server is trusted with its update."""
    return job.plan.client_release is not None and not job.setup.aggregation.secure


def keeps_ledger(job: Job) -> bool:
    """Whether every client has a ledger of its own: wherever there is a guarantee, unless the server keeps it."""
    return job.plan.private and not server_keeps(job)


def check_ledgers(job: Job) -> None:
    """Refuse a folder of ledgers that cannot be written, and ledgers in it that cannot be read, before a run begins."""
    folder = job.plan.ledger
    if folder is not None:
        make_folder(folder)
        for path in sorted(folder.glob("*.sqlite")):
            check_header(path)


def open_ledger(job: Job, prepared: Prepared, client: int) -> PrivacyLedger:
    """The client's ledger with the whole run reserved; raises LedgerError, before any data is touched."""
    plan = job.plan.clients[client]
    event = job.plan.event_of(plan)
    assert event is not None
    ledger = PrivacyLedger(ledger_path(job, client), create=client not in job.charged)
    if client in job.charged:
        check_entries(ledger, job.run_id, job.charged[client])
    if job.touches_all:
        _refuse_other_units(job, ledger)
    return _reserved(job, ledger, event, job.plan.reserved_events(plan), records_of(job, prepared, [client]))


def _refuse_other_units(job: Job, ledger: PrivacyLedger) -> None:
    """Epsilon of one unit does not add up with that of another: a ledger in which it counts for all has one unit."""
    assert job.plan.unit is not None
    units = set()
    for path in ledger.path.parent.glob("*.sqlite"):
        with closing(PrivacyLedger(path, create=False)) as each:
            units |= {entry.unit for entry in each.entries() if entry.event[1]}
    others = units - {job.plan.unit.name}
    if others:
        ledger.close()
        raise LedgerError(
            f"ledger {ledger.path} has runs whose unit is the {min(others)}; accepted: that unit, or a new ledger for "
            "images that none of them has touched"
        )


def server_ledger(job: Job) -> PrivacyLedger:
    """The ledger of a server that is trusted, where the unit is a client: a round is one release for all of them."""
    return PrivacyLedger(ledger_path(job, 0).with_name("server.sqlite"), create=not job.resumed)


def open_server_ledger(job: Job, prepared: Prepared | None) -> PrivacyLedger:
    """The same with the whole run reserved; raises LedgerError, before any client is asked.

    Without ``prepared`` it is not known which records are touched: then it counts for all of them.
    """
    assert job.plan.client_release is not None
    ledger = server_ledger(job)
    if job.charged:
        check_entries(ledger, job.run_id, max(job.charged.values()))
    steps = job.plan.reserved_events(job.plan.clients[0])
    records = None if prepared is None else records_of(job, prepared, range(job.setup.num_clients))
    return _reserved(job, ledger, job.plan.client_release.event, steps, records)


def _reserved(
    job: Job, ledger: PrivacyLedger, event: SampledGaussian, steps: int, records: RecordSet | None
) -> PrivacyLedger:
    assert job.plan.delta is not None
    unit = job.plan.unit
    assert unit is not None
    reservation = Reservation(
        run_id=job.run_id,
        step=event,
        steps=steps,
        noise_source=job.plan.noise_source,
        unit=unit.name,
        records=records,
    )
    ledger.reserve(reservation, delta=job.plan.delta, budget=job.plan.budget)
    return ledger


def check_entries(ledger: PrivacyLedger, run: str, steps: int) -> None:
    """Refuse to go on with a run, and close the ledger, where it does not show what the run had spent."""
    shown = _begun(ledger, run) if ledger.knows(run) else None
    if shown is None or shown < steps:
        ledger.close()
        found = "no entry" if shown is None else f"{shown} steps"
        raise LedgerError(
            f"ledger {ledger.path} has {found} of run {run}, which had begun at least {steps} steps by its checkpoint; "
            "accepted: the ledger that the run was charged to"
        )


def recorded_steps(
    job: Job,
    answered: dict[int, int],
    opened: Mapping[int, PrivacyLedger] | None = None,
    among: Collection[int] | None = None,
) -> dict[int, int]:
    """Steps that every client's ledger shows as begun: never fewer than were executed.

    A client that never started has no entry and took no step; one that ``answered`` must have one. ``opened`` are
    ledgers of clients that are open in this process, which need not be opened once more. ``among`` are the clients
    whose ledgers are read, None for all; of the others stands what is in ``answered``.
    """
    if server_keeps(job):
        with closing(server_ledger(job)) as ledger:
            begun = _begun(ledger, job.run_id)
        return {plan.client: begun for plan in job.plan.clients}
    run, opened = job.run_id, opened or {}
    clients = [plan.client for plan in job.plan.clients]
    asked = set(clients if among is None else among)
    known = {client: _begun(ledger, run) for client, ledger in opened.items() if client in asked}
    known |= {client: _begun(ledger, run) for client, ledger in _ledgers(job, sorted(asked - set(opened)))}
    for client, count in answered.items():
        if count and client in asked and client not in known:
            raise LedgerError(f"ledger {ledger_path(job, client)} has no entry of run {run}, which it was charged to")
    return {client: (known if client in asked else answered).get(client, 0) for client in clients}


def _begun(ledger: PrivacyLedger, run: str) -> int:
    return sum(count for _, count in ledger.executed(run))


def finish_ledgers(job: Job) -> None:
    """Give back what was reserved and never begun."""
    if server_keeps(job):
        with closing(server_ledger(job)) as ledger:
            if ledger.knows(job.run_id):
                ledger.finish(job.run_id)
        return
    for _, ledger in _ledgers(job, [plan.client for plan in job.plan.clients]):
        ledger.finish(job.run_id)


def withdraw(job: Job) -> None:
    """Give back what hospitals reserved for a run that one of them refused before it began."""
    for plan in job.plan.clients:
        with suppress(LedgerError):  # the refusal is being told already, and may be this very ledger's
            for _, ledger in _ledgers(job, [plan.client]):
                ledger.finish(job.run_id)


def _ledgers(job: Job, clients: Iterable[int]) -> Iterator[tuple[int, PrivacyLedger]]:
    """Those of the clients whose ledgers know this run; a client that never started has none."""
    for client in clients:
        path = ledger_path(job, client)
        if not path.exists():
            continue
        ledger = PrivacyLedger(path, create=False)
        try:
            if ledger.knows(job.run_id):
                yield client, ledger
        finally:
            ledger.close()
