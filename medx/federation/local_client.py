"""What one hospital keeps in a process, and its local training."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

import torch
from flwr.app import ArrayRecord, Context
from torch import nn

from medx.aggregation.integer_noise import NoiseStream
from medx.aggregation.journal import Journal
from medx.federation.job import Job, Prepared, build_module, prepare, secret_key
from medx.federation.ledgers import journal_path, keeps_ledger, ledger_run, open_ledger
from medx.federation.payload import from_record, hash_of, signature_of, to_record
from medx.federation.request import Signature
from medx.federation.sums import sent_state
from medx.privacy.base import ClientPlan
from medx.privacy.ledger import PrivacyLedger
from medx.randomness import keyed_generator
from medx.trainer.base import ClientUpdate


@dataclass
class LocalClient:
    """What one client keeps in this process between rounds. All of it can be made again from the job.

    ``model`` is the layout that a model from the server must have.
    """

    plan: ClientPlan
    inputs: torch.Tensor = field(repr=False)
    labels: torch.Tensor = field(repr=False)
    ledger: PrivacyLedger | None
    model: Signature


_CLIENTS: OrderedDict[tuple[str, int], LocalClient] = OrderedDict()
_JOURNALS: dict[str, Journal] = {}
_OPENING = threading.Lock()
_MODULES: dict[tuple[str, int], nn.Module] = {}
_KEEP = 1024  # clients of finished jobs make room for those of the next


def local_client(job: Job, client: int) -> LocalClient:
    """The client's data, plan and ledger; built at its first message in this process."""
    key = (job.run_id, client)
    if key not in _CLIENTS:
        prepared = prepare(job.setup)
        inputs, labels = prepared.client(client)
        ledger = open_ledger(job, prepared, client) if keeps_ledger(job) else None
        model = signature_of(to_record(sent_state(job, workspace(job, prepared))))
        _CLIENTS[key] = LocalClient(job.plan.clients[client], inputs, labels, ledger, model)
        while len(_CLIENTS) > _KEEP:
            _CLIENTS.popitem(last=False)
    return _CLIENTS[key]


def open_ledgers(job: Job) -> dict[int, PrivacyLedger]:
    """The ledgers of the job's clients that are open in this process."""
    found = {client: local.ledger for (run, client), local in list(_CLIENTS.items()) if run == job.run_id}
    return {client: ledger for client, ledger in found.items() if ledger is not None}


def journal_of(job: Job) -> Journal:
    """What the clients of this process have answered in secure sums; the file lies beside their ledgers."""
    with _OPENING:
        if job.run_id not in _JOURNALS:
            pinned = getattr(job.setup.aggregation, "roster", None) is not None
            _JOURNALS[job.run_id] = Journal(journal_path(job), create=not job.resumed, sync=pinned)
        return _JOURNALS[job.run_id]


def workspace(job: Job, prepared: Prepared) -> nn.Module:
    """A module for this thread: clients load their state into it, so it holds nothing between rounds."""
    key = (job.run_id, threading.get_ident())
    if key not in _MODULES:
        _MODULES[key] = build_module(job.setup, prepared).to(job.setup.device)
    return _MODULES[key]


def forget(job: Job) -> None:
    """Close the job's ledgers and its journal, and drop its clients from this process."""
    if journal := _JOURNALS.pop(job.run_id, None):
        journal.close()
    for key in [key for key in _CLIENTS if key[0] == job.run_id]:
        local = _CLIENTS.pop(key)
        if local.ledger is not None:
            local.ledger.close()
    for workspace_key in [key for key in _MODULES if key[0] == job.run_id]:
        del _MODULES[workspace_key]


def index_of(context: Context) -> int:
    """Which client this node is."""
    return int(context.node_config["partition-id"])


def train_locally(job: Job, client: int, arrays: ArrayRecord, server_round: int, proximal_mu: float) -> ClientUpdate:
    """The client's steps of one round from the given state; its ledger is charged before any data is read."""
    local = local_client(job, client)
    ledger = local.ledger if local.plan.step is not None else None  # without, the sum is what is charged
    model = hash_of(arrays)
    if ledger is not None:
        ledger.begin_round(ledger_run(job), server_round, local.plan.steps_per_round, model=model)
    sample, noise, views = generators(job, client, server_round, model)
    prepared = prepare(job.setup)
    update = job.setup.trainer.train(
        module=workspace(job, prepared),
        objective=prepared.objective,
        inputs=local.inputs,
        labels=local.labels,
        plan=local.plan,
        state=from_record(arrays),
        sample_generator=sample,
        noise_stream=noise,
        device=torch.device(job.setup.device),
        proximal_mu=proximal_mu,
        view_generator=views,
        first_step=(server_round - 1) * local.plan.steps_per_round,
    )
    if ledger is not None:
        ledger.commit_round(ledger_run(job), server_round)
    return update


def generators(
    job: Job, client: int, server_round: int, model: bytes
) -> tuple[torch.Generator, NoiseStream, torch.Generator]:
    """What the client samples by, its noise, and what it draws views by in one round, at this hash of a model.

    Streams that share nothing. Who knows the sampling loses what it amplifies, so it is as secret as the noise.
    """
    sampling, noise, views = (
        secret_key(job, purpose, client, server_round, model) for purpose in ("sampling", "noise", "views")
    )
    return keyed_generator(sampling), NoiseStream(noise), keyed_generator(views)
