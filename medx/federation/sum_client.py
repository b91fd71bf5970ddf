"""A hospital's part in a sum: its words in the clear, or the five stages of secure aggregation."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict

from medx.aggregation.client import SecureClient
from medx.aggregation.client_state import ClientState
from medx.aggregation.integer_noise import NoiseStream, add_discrete_gaussian
from medx.federation.job import Job, prepare, secret_key
from medx.federation.ledgers import ledger_run
from medx.federation.local_client import index_of, local_client, train_locally, workspace
from medx.federation.payload import from_record, hash_of
from medx.federation.sums import SATURATED, SMALL, WEIGHT, SumPlan, flatten, shared_state
from medx.randomness import Key, keyed_generator
from medx.schema import MedxError, PrivacyError

STAGES = ("keys", "shares", "masked", "confirm", "unmask")
Settings = Mapping[str, Any]


class AbstainedError(MedxError):
    """A client leaves a round because its gradient or update is not finite."""


class Position(NamedTuple):
    """Which attempt at which round; ``round`` counts from 1."""

    round: int
    attempt: int


def words_of(job: Job, client: int, arrays: ArrayRecord, position: Position, settings: Settings) -> np.ndarray:
    """The client's words ``uint32 [layout.size]`` for one attempt; its ledger is charged before data is read.

    ``settings`` are the server's for this round: ``proximal-mu``, and ``clip-norm`` where updates are clipped.
    """
    plan = sum_plan(job)
    if plan.kind == "gradient":
        return _gradient_words(job, client, arrays, position)
    delta = _update(job, client, arrays, position, float(settings.get("proximal-mu", 0.0)))
    if plan.kind == "clipped_update":
        clip_norm = float(settings["clip-norm"])
        return _clipped_words(job, client, delta, position, clip_norm=clip_norm, model=hash_of(arrays))
    weight = job.plan.clients[client].num_records / sum(other.num_records for other in job.plan.clients)
    _, saturated = plan.layout.encode(delta * weight, {WEIGHT: weight, SATURATED: 0.0})
    return plan.layout.encode(delta * weight, {WEIGHT: weight, SATURATED: float(saturated)})[0]


def _gradient_words(job: Job, client: int, arrays: ArrayRecord, position: Position) -> np.ndarray:
    # Every attempt is a release of its own: new sampling, new noise, and an entry of its own in the ledger. It is
    # entered before the words leave, because others can unmask the sum whether or not this client is still there.
    plan, local, prepared = sum_plan(job), local_client(job, client), prepare(job.setup)
    assert local.ledger is not None
    model = hash_of(arrays)
    local.ledger.begin_round(ledger_run(job), ledger_entry(job, position), 1, model=model)
    sums = job.setup.trainer.clipped_gradient(
        module=workspace(job, prepared),
        objective=prepared.objective,
        inputs=local.inputs,
        labels=local.labels,
        plan=local.plan,
        state=from_record(arrays),
        sample_generator=_generator(job, "sampling", client, position, model),
        device=torch.device(job.setup.device),
        view_generator=_generator(job, "views", client, position, model),
    )
    words, saturated = plan.layout.encode(flatten(sums), {})
    if saturated:
        raise AbstainedError(f"client {client}: {saturated} coordinates beyond the bound, which clipping excludes")
    add_discrete_gaussian(words, noise_stream(job, client, position, model), plan.noise_stddev)
    return words


def _update(job: Job, client: int, arrays: ArrayRecord, position: Position, proximal_mu: float) -> np.ndarray:
    """New minus old parameters, ``float64 [dimension]``, after the client's local steps."""
    update = train_locally(job, client, arrays, position.round, proximal_mu)
    if not update.finite:
        raise AbstainedError(f"client {client}: the update of round {position.round} is not finite")
    state = from_record(arrays)
    names = list(shared_state(job, workspace(job, prepare(job.setup))))
    return flatten([update.state[name].double() - state[name].double() for name in names])


def _clipped_words(
    job: Job, client: int, delta: np.ndarray, position: Position, *, clip_norm: float, model: bytes
) -> np.ndarray:
    """The update in units of the clip norm, at most 1 long, under the client's share of the noise where it has one."""
    plan = sum_plan(job)
    unit, small = clipped_to_unit(delta, clip_norm)
    words, _ = plan.layout.encode(unit, {SMALL: small - 0.5} if plan.layout.fields else {})
    if plan.noise_stddev:
        add_discrete_gaussian(words, noise_stream(job, client, position, model, clip_norm.hex()), plan.noise_stddev)
    return words


def clipped_to_unit(delta: np.ndarray, clip_norm: float) -> tuple[np.ndarray, bool]:
    """``delta / clip_norm``, scaled down to length 1 where it is longer; and whether it was not (McMahan et al. 2018).

    Raises PrivacyError for a clip norm that bounds nothing, and AbstainedError where the norm is not finite.
    """
    if not 0 < clip_norm < np.inf:
        raise PrivacyError(f"clip-norm={clip_norm} of the server: accepted are positive, finite norms")
    norm = float(np.linalg.norm(delta))
    if not np.isfinite(norm):
        raise AbstainedError("the update's norm is not finite")
    return delta / max(norm, clip_norm), norm <= clip_norm


def noise_stream(job: Job, who: Key, position: Position, *added_to: Key) -> NoiseStream:
    """The noise of one client, or of the server, for one attempt and for what it is added to: a stream used once."""
    return NoiseStream(secret_key(job, "noise", who, *position, *added_to))


def _generator(job: Job, purpose: str, who: Key, position: Position, model: bytes) -> torch.Generator:
    """Who knows the sampling loses what it amplifies: as secret as the noise, and as much its own."""
    return keyed_generator(secret_key(job, purpose, who, *position, model))


def attempts_of(job: Job) -> int:
    """How often a round may be tried."""
    return int(getattr(job.setup.aggregation, "max_attempts", 1))


def ledger_entry(job: Job, position: Position) -> int:
    """Under which number an attempt at a round is entered where every attempt is a release of its own.

    No two attempts of the plan have one number; raises PrivacyError for what is not in the plan.
    """
    rounds, attempts = job.setup.federation.num_rounds, attempts_of(job)
    if not (1 <= position.round <= rounds and 0 <= position.attempt < attempts):
        raise PrivacyError(
            f"round {position.round}, attempt {position.attempt}: accepted are rounds 1 to {rounds} and "
            f"attempts 0 to {attempts - 1}"
        )
    return (position.round - 1) * attempts + position.attempt


def sum_plan(job: Job) -> SumPlan:
    """The job's sums; a job without them never gets a message that asks for one."""
    assert job.sums is not None
    return cast(SumPlan, job.sums)


def answer_stage(job: Job, stage: str, content: RecordDict, context: Context) -> RecordDict:
    """One stage of secure aggregation; what the client must remember lies in its context, never in the ledger."""
    client = index_of(context)
    settings = cast(ConfigRecord, content["config"])  # by key: Flower builds its typed views anew at each access
    data = cast(bytes, settings["data"])
    secure = _restored(job, client, context)

    def make_words(round: int, attempt: int) -> np.ndarray:
        # Round and attempt are those that everybody's keys are signed over, not what this message says of itself.
        arrays = cast(ArrayRecord, context.state["model"])
        return words_of(job, client, arrays, Position(round + 1, attempt), settings)

    try:
        if stage == "keys":
            arrays = cast(ArrayRecord, content["arrays"])
            reply = secure.begin(data, hash_of(arrays))
            context.state["model"] = arrays
        elif stage == "masked":
            reply = secure.mask(data, make_words)
            del context.state["model"]
        else:
            step = {"shares": secure.share, "confirm": secure.confirm, "unmask": secure.unmask}[stage]
            reply = step(data)
    finally:  # also after a refusal, which ends the attempt: its secrets must not come back with the next message
        context.state["secure"] = ConfigRecord({"state": secure.state.to_bytes()})
    return answer(reply, settings)


def answer_sum(job: Job, content: RecordDict, context: Context) -> RecordDict:
    """Words in the clear, for an aggregator that is trusted with them."""
    settings = cast(ConfigRecord, content["config"])
    position = Position(*cast(list[int], settings["position"]))
    words = words_of(job, index_of(context), cast(ArrayRecord, content["arrays"]), position, settings)
    return answer(words.tobytes(), settings)


def answer(data: bytes, settings: ConfigRecord) -> RecordDict:
    """A reply that says which round and attempt it belongs to, so that a late one is known as such."""
    return RecordDict({"reply": ConfigRecord({"data": data, "position": settings["position"]})})


def _restored(job: Job, client: int, context: Context) -> SecureClient:
    """The client as it was after its last message."""
    plan = sum_plan(job)
    assert plan.roster is not None
    assert plan.identities is not None

    def commit(round: int, attempt: int) -> None:
        # Entered as begun before the words left; the first share that leaves makes it a release.
        ledger = local_client(job, client).ledger
        if ledger is not None:
            entry = ledger_entry(job, Position(round + 1, attempt)) if plan.kind == "gradient" else round + 1
            ledger.commit_round(ledger_run(job), entry)

    state = None
    if "secure" in context.state:
        record = cast(ConfigRecord, context.state["secure"])
        state = ClientState.from_bytes(cast(bytes, record["state"]), client)
    return SecureClient(plan.roster, client, _identity(plan.identities[client]), on_first_unmask=commit, state=state)


@lru_cache(maxsize=1024)
def _identity(raw: bytes) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(raw)
