"""What one hospital keeps in a process, and its local training."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, Context
from torch import nn

from medx.aggregation.journal import Journal
from medx.federation.job import Job, Prepared, build_module, prepare
from medx.federation.ledgers import journal_path, keeps_ledger, ledger_run, open_ledger
from medx.federation.payload import from_record, signature_of, to_record
from medx.federation.request import Signature
from medx.federation.sums import sent_state
from medx.machine import keep_freed_memory
from medx.privacy.base import ClientPlan
from medx.privacy.ledger import PrivacyLedger
from medx.randomness import derive_seed, system_generator, torch_generator
from medx.trainer.base import ClientUpdate


@dataclass
class LocalClient:
    """What one client keeps in this process between rounds. All of it can be made again from the job.

    ``model`` is the layout that a model from the server must have.
    """

    plan: ClientPlan
    inputs: torch.Tensor
    labels: torch.Tensor
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
        keep_freed_memory()  # here too: on Ray this is a process of its own
        prepared = prepare(job.setup)
        inputs, labels = prepared.client(client)
        ledger = open_ledger(job, prepared, client) if keeps_ledger(job) else None
        model = signature_of(to_record(sent_state(job, workspace(job, prepared))))
        _CLIENTS[key] = LocalClient(job.plan.clients[client], inputs, labels, ledger, model)
        while len(_CLIENTS) > _KEEP:
            _CLIENTS.popitem(last=False)
    return _CLIENTS[key]


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
    if ledger is not None:
        ledger.begin_round(ledger_run(job), server_round, local.plan.steps_per_round)
    sample, noise, views = generators(job, client, server_round)
    prepared = prepare(job.setup)
    update = job.setup.trainer.train(
        module=workspace(job, prepared),
        objective=prepared.objective,
        inputs=local.inputs,
        labels=local.labels,
        plan=local.plan,
        state=from_record(arrays),
        sample_generator=sample,
        noise_generator=noise,
        device=torch.device(job.setup.device),
        proximal_mu=proximal_mu,
        view_generator=views,
        first_step=(server_round - 1) * local.plan.steps_per_round,
    )
    if ledger is not None:
        ledger.commit_round(ledger_run(job), server_round)
    return update


def generators(job: Job, client: int, server_round: int) -> tuple[torch.Generator, torch.Generator, torch.Generator]:
    """The client's generators of sampling, of noise and of views for one round; streams that share nothing."""
    seed, device, stream = job.setup.seed, job.setup.device, job.setup.stream
    if job.plan.noise_source == "system":  # who knows the sampling loses what it amplifies, so it is secret too
        return system_generator(), system_generator(device), system_generator()
    sampling, noise, views = (
        derive_seed(seed, purpose, *stream, client, server_round) for purpose in ("sampling", "noise", "views")
    )
    return torch_generator(sampling), torch_generator(noise, device), torch_generator(views)
