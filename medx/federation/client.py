"""One hospital: a Flower ClientApp that reserves its budget, trains locally, and answers with a noised update."""

import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import cast

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from medx.federation.job import Job, Prepared, build_module, prepare
from medx.federation.ledgers import ledger_run, open_ledger
from medx.federation.payload import from_record, to_record
from medx.privacy.base import ClientPlan
from medx.privacy.ledger import PrivacyLedger
from medx.randomness import derive_seed, system_seed, torch_generator

log = logging.getLogger(__name__)


@dataclass
class LocalClient:
    """What one client keeps in this process between rounds. All of it can be made again from the job."""

    plan: ClientPlan
    inputs: torch.Tensor
    labels: torch.Tensor
    module: nn.Module
    ledger: PrivacyLedger | None


_CLIENTS: OrderedDict[tuple[str, int], LocalClient] = OrderedDict()
_MODULES: dict[str, nn.Module] = {}
_KEEP = 1024  # clients of finished jobs make room for those of the next


def local_client(job: Job, client: int) -> LocalClient:
    """The client's data, module and ledger; built at its first message in this process."""
    key = (job.run_id, client)
    if key not in _CLIENTS:
        prepared = prepare(job.setup)
        inputs, labels = prepared.client(client)
        module = _shared_module(job, prepared)
        ledger = open_ledger(job, prepared, client) if job.plan.private else None
        _CLIENTS[key] = LocalClient(job.plan.clients[client], inputs, labels, module, ledger)
        while len(_CLIENTS) > _KEEP:
            _CLIENTS.popitem(last=False)
    return _CLIENTS[key]


def _shared_module(job: Job, prepared: Prepared) -> nn.Module:
    """One module a job and process: clients load their state into it, so it holds nothing between rounds."""
    if job.run_id not in _MODULES:
        _MODULES.clear()
        _MODULES[job.run_id] = build_module(job.setup, prepared).to(job.setup.device)
    return _MODULES[job.run_id]


def forget(job: Job) -> None:
    """Close the job's ledgers and drop its clients from this process."""
    for key in [key for key in _CLIENTS if key[0] == job.run_id]:
        local = _CLIENTS.pop(key)
        if local.ledger is not None:
            local.ledger.close()
    _MODULES.pop(job.run_id, None)


def client_app(job: Job) -> ClientApp:
    """The ClientApp of this job; the same wherever it runs."""
    app = ClientApp()

    @app.query()
    def identify(message: Message, context: Context) -> Message:
        client = _index(context)
        local_client(job, client)  # reserves the run's budget; refuses here, before any data is touched
        return Message(RecordDict({"client": ConfigRecord({"client": client})}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(_train(job, _index(context), message.content), reply_to=message)

    return app


def _index(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _train(job: Job, client: int, content: RecordDict) -> RecordDict:
    config = content.config_records["config"]
    server_round = int(cast(int, config["server-round"]))
    local = local_client(job, client)
    started = time.perf_counter()
    if local.ledger is not None:
        local.ledger.begin_round(ledger_run(job), server_round, local.plan.steps_per_round)
    sample, noise = generators(job, client, server_round)
    update = job.setup.trainer.train(
        module=local.module,
        objective=prepare(job.setup).objective,
        inputs=local.inputs,
        labels=local.labels,
        plan=local.plan,
        state=from_record(content.array_records["arrays"]),
        sample_generator=sample,
        noise_generator=noise,
        device=torch.device(job.setup.device),
        proximal_mu=float(cast(float, config.get("proximal-mu", 0.0))),
    )
    if local.ledger is not None:
        local.ledger.commit_round(ledger_run(job), server_round)
    metrics = MetricRecord(
        {
            "num-examples": local.plan.num_records,
            "client": client,
            "round": server_round,
            "steps": update.steps,
            "finite": int(update.finite),
            "seconds": time.perf_counter() - started,
        }
    )
    return RecordDict({"arrays": to_record(update.state), "metrics": metrics})


def generators(job: Job, client: int, server_round: int) -> tuple[torch.Generator, torch.Generator]:
    """The client's generators of sampling and of noise for one round; two streams that share nothing."""
    seed, device = job.setup.seed, job.setup.device
    sampling = torch_generator(derive_seed(seed, "sampling", client, server_round))
    if job.plan.noise_source == "system":
        return sampling, torch_generator(system_seed(), device)
    return sampling, torch_generator(derive_seed(seed, "noise", client, server_round), device)
