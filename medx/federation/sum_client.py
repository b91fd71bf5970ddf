"""A hospital's part in a sum: its words in the clear, or the five stages of secure aggregation."""

from functools import lru_cache
from typing import cast

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict

from medx.aggregation.client import SecureClient
from medx.aggregation.client_state import ClientState
from medx.aggregation.integer_noise import NoiseStream, add_discrete_gaussian
from medx.aggregation.messages import model_hash
from medx.federation.job import Job, prepare
from medx.federation.ledgers import ledger_run
from medx.federation.local_client import LocalClient, index_of, local_client, train_locally, workspace
from medx.federation.payload import from_record
from medx.federation.sums import SumPlan, flatten, shared_state
from medx.randomness import derive_seed, torch_generator
from medx.schema import MedxError

STAGES = ("keys", "shares", "masked", "confirm", "unmask")


class AbstainedError(MedxError):
    """A client leaves a round because its gradient or update is not finite."""


def words_of(job: Job, client: int, arrays: ArrayRecord, number: int, attempt: int) -> np.ndarray:
    """The client's words ``uint32 [layout.size]`` for one attempt; its ledger is charged before data is read."""
    plan = sum_plan(job)
    local = local_client(job, client)
    if plan.gradient:
        return _gradient_words(job, local, plan, arrays, number, attempt)
    update = train_locally(job, client, arrays, number, 0.0)
    if not update.finite:
        raise AbstainedError(f"client {client}: the update of round {number} is not finite")
    state = from_record(arrays)
    names = list(shared_state(job, workspace(job, prepare(job.setup))))
    weight = local.plan.num_records / sum(other.num_records for other in job.plan.clients)
    delta = flatten([update.state[name].double() - state[name].double() for name in names]) * weight
    _, saturated = plan.layout.encode(delta, {"weight": weight, "saturated": 0.0})
    return plan.layout.encode(delta, {"weight": weight, "saturated": float(saturated)})[0]


def _gradient_words(
    job: Job, local: LocalClient, plan: SumPlan, arrays: ArrayRecord, number: int, attempt: int
) -> np.ndarray:
    # Every attempt is a release of its own: new sampling, new noise, and an entry of its own in the ledger. It is
    # entered before the words leave, because others can unmask the sum whether or not this client is still there.
    entry = (number - 1) * attempts_of(job) + attempt
    client, seed = local.plan.client, job.setup.seed
    assert local.ledger is not None
    local.ledger.begin_round(ledger_run(job), entry, 1)
    prepared = prepare(job.setup)
    sums = job.setup.trainer.clipped_gradient(
        module=workspace(job, prepared),
        objective=prepared.objective,
        inputs=local.inputs,
        labels=local.labels,
        plan=local.plan,
        state=from_record(arrays),
        sample_generator=torch_generator(derive_seed(seed, "sampling", client, number, attempt)),
        device=torch.device(job.setup.device),
    )
    words, saturated = plan.layout.encode(flatten(sums), {})
    if saturated:
        raise AbstainedError(f"client {client}: {saturated} coordinates beyond the bound, which clipping excludes")
    seeded = job.plan.noise_source == "seed"
    noise_seed = derive_seed(seed, "noise", client, number, attempt)
    stream = NoiseStream.from_seed(noise_seed) if seeded else NoiseStream.from_system()
    add_discrete_gaussian(words, stream, plan.noise_stddev)
    return words


def attempts_of(job: Job) -> int:
    """How often a round may be tried."""
    return int(getattr(job.setup.aggregation, "max_attempts", 1))


def sum_plan(job: Job) -> SumPlan:
    """The job's sums; a job without them never gets a message that asks for one."""
    assert job.sums is not None
    return cast(SumPlan, job.sums)


def answer_stage(job: Job, stage: str, content: RecordDict, context: Context) -> RecordDict:
    """One stage of secure aggregation; what the client must remember lies in its context, never in the ledger."""
    client = index_of(context)
    config = content.config_records["config"]
    data, number, attempt = (config[name] for name in ("data", "server-round", "attempt"))
    secure = _restored(job, client, context)
    if stage == "keys":
        arrays = content.array_records["arrays"]
        reply = secure.begin(cast(bytes, data), hash_of(arrays))
        context.state["model"] = arrays
    elif stage == "masked":
        arrays = context.state.array_records["model"]
        words = words_of(job, client, arrays, int(cast(int, number)), int(cast(int, attempt)))
        reply = secure.mask(cast(bytes, data), words)
        del context.state["model"]
    else:
        step = {"shares": secure.share, "confirm": secure.confirm, "unmask": secure.unmask}[stage]
        reply = step(cast(bytes, data))
    context.state["secure"] = ConfigRecord({"state": secure.state.to_bytes()})
    return RecordDict({"reply": ConfigRecord({"data": reply, "client": client})})


def hash_of(arrays: ArrayRecord) -> bytes:
    """The hash of a model as it was received."""
    return model_hash((name, array.numpy()) for name, array in arrays.items())


def _restored(job: Job, client: int, context: Context) -> SecureClient:
    plan = sum_plan(job)
    assert plan.roster is not None
    assert plan.identities is not None
    state = None
    if "secure" in context.state.config_records:
        data = cast(bytes, context.state.config_records["secure"]["state"])
        state = ClientState.from_bytes(data, client)
    local = local_client(job, client)

    def charge(round: int, attempt: int) -> None:
        # Entered as begun before the words left; the first share that leaves makes it a release.
        if local.ledger is not None:
            entry = round * attempts_of(job) + attempt if plan.gradient else round + 1
            local.ledger.commit_round(ledger_run(job), entry)

    return SecureClient(plan.roster, client, _identity(plan.identities[client]), on_first_unmask=charge, state=state)


@lru_cache(maxsize=1024)
def _identity(raw: bytes) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(raw)
