"""A hospital's part in a sum: its words in the clear, or the five stages of secure aggregation."""

import math
from functools import lru_cache
from typing import NamedTuple, cast

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict

from medx.aggregation.integer_noise import NoiseStream, add_discrete_gaussian
from medx.aggregation.journal import ParticipantState
from medx.aggregation.messages import Stage
from medx.aggregation.participant import Participant
from medx.aggregation.wire import ProtocolError, Reason
from medx.federation.job import Job, prepare, secret_key
from medx.federation.ledgers import keeps_ledger, ledger_run
from medx.federation.local_client import index_of, journal_of, local_client, train_locally, workspace
from medx.federation.payload import from_record, hash_of
from medx.federation.request import config_of, data_of, model_of, position_of
from medx.federation.sums import SMALL, WEIGHT, SumPlan, flatten, shared_state
from medx.randomness import Key, keyed_generator
from medx.schema import MedxError, PrivacyError

CLIP = "clip-norm"
EXPONENT = 700.0  # beyond it exp overflows
STAGES = ("keys", "shares", "masked", "confirm", "unmask")


class AbstainedError(MedxError):
    """A client leaves a round because its gradient or update is not finite, or lies beyond the grid."""


class Position(NamedTuple):
    """Which attempt at which round; ``round`` counts from 1."""

    round: int
    attempt: int


def words_of(job: Job, client: int, arrays: ArrayRecord, position: Position, clip_norm: float | None) -> np.ndarray:
    """The client's words ``uint32 [layout.size]`` for one attempt; its ledger is charged before data is read.

    ``clip_norm`` is the round's, which moves within what the client's own configuration allows; None elsewhere.
    """
    plan = sum_plan(job)
    if plan.kind == "gradient":
        return _gradient_words(job, client, arrays, position)
    if plan.kind == "clipped_update":
        return _clipped_words(job, client, arrays, position, allowed_clip_norm(job, position.round, clip_norm))
    delta = _update(job, client, arrays, position, job.setup.federation.pull)
    weight = job.plan.clients[client].num_records / sum(other.num_records for other in job.plan.clients)
    return _on_grid(job, client, delta * weight, {WEIGHT: weight})


def _gradient_words(job: Job, client: int, arrays: ArrayRecord, position: Position) -> np.ndarray:
    plan, local, prepared = sum_plan(job), local_client(job, client), prepare(job.setup)
    model = hash_of(arrays)
    _charge(job, client, position, model)
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
    words = _on_grid(job, client, flatten(sums), {})
    add_discrete_gaussian(words, noise_stream(job, client, position, model), plan.noise_stddev)
    return words


def _charge(job: Job, client: int, position: Position, model: bytes) -> None:
    # Every attempt is a release of its own: new noise, and an entry of its own in the ledger. It is entered before
    # the words leave, because others can unmask the sum whether or not this client is still there.
    ledger = local_client(job, client).ledger
    assert ledger is not None
    ledger.begin_round(ledger_run(job), ledger_entry(job, position), 1, model=model)


def _update(job: Job, client: int, arrays: ArrayRecord, position: Position, pull: float) -> np.ndarray:
    """New minus old parameters, ``float64 [dimension]``, after the client's local steps."""
    update = train_locally(job, client, arrays, position.round, pull)
    if not update.finite:
        raise AbstainedError(f"client {client}: the update of round {position.round} is not finite")
    state = from_record(arrays)
    names = list(shared_state(job, workspace(job, prepare(job.setup))))
    return flatten([update.state[name].double() - state[name].double() for name in names])


def _clipped_words(job: Job, client: int, arrays: ArrayRecord, position: Position, clip_norm: float) -> np.ndarray:
    """The update in units of the clip norm, at most 1 long, under the client's share of the noise where it has one."""
    plan = sum_plan(job)
    model = hash_of(arrays, clip_norm)
    if keeps_ledger(job):
        _charge(job, client, position, model)
    unit, small = clipped_to_unit(_update(job, client, arrays, position, job.setup.federation.pull), clip_norm)
    words = _on_grid(job, client, unit, {SMALL: small - 0.5} if plan.layout.fields else {})
    if plan.noise_stddev:
        add_discrete_gaussian(words, noise_stream(job, client, position, model), plan.noise_stddev)
    return words


def _on_grid(job: Job, client: int, vector: np.ndarray, scalars: dict[str, float]) -> np.ndarray:
    """The words of a vector within the bound; one beyond it would show by how much, so its client abstains."""
    layout = sum_plan(job).layout
    words, saturated = layout.encode(vector, scalars)
    if saturated:
        raise AbstainedError(f"client {client}: {saturated} coordinates beyond the bound {layout.bound:g} of the sum")
    return words


def allowed_clip_norm(job: Job, number: int, clip_norm: float | None) -> float:
    """The server's clip norm of round ``number`` if the rule that is configured can have led there, else PrivacyError.

    It starts at ``privacy.clip_norm`` and each round moves its logarithm by ``rate * (target - share)``, where the
    share of small updates is in [0, 1] (Andrew et al. 2021, section 2).
    """
    release = job.plan.client_release
    assert release is not None
    low = high = 0.0
    if release.quantile is not None:
        reach = (number - 1) * release.quantile.learning_rate
        low, high = -reach * (1 - release.quantile.target), reach * release.quantile.target
    first, slack = release.event.clip_norm, 1e-9 * number  # of rounding
    known = isinstance(clip_norm, float) and 0 < clip_norm < np.inf
    if not known or not low - slack <= np.log(cast(float, clip_norm) / first) <= high + slack:
        raise PrivacyError(
            f"clip-norm={clip_norm} of the server in round {number}: accepted with privacy.clip_norm={first:g} is "
            f"{first * math.exp(low):.6g}"
            + (f" to {first * math.exp(min(high, EXPONENT)):.6g}" if release.quantile else "")
        )
    return cast(float, clip_norm)


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
    """One stage of secure aggregation. What the client must remember lies in its context, what it answered in a file.

    A context that was lost, or is an older one, ends the attempt: the journal knows the last one by its hash.
    """
    client = index_of(context)
    data = data_of(content)
    secure = _restored(job, client, context)

    def make_words(round: int, attempt: int) -> np.ndarray:
        # Round, attempt, model and clip norm are those that everybody's keys are signed over, whatever this message
        # says of itself.
        arrays, clip_norm = _started_from(secure, context)
        return words_of(job, client, arrays, Position(round + 1, attempt), clip_norm)

    try:
        if stage == "keys":
            reply = _begin(job, client, secure, content, context)
        elif stage == "masked":
            reply = secure.mask(data, make_words)
        else:
            step = {"shares": secure.share, "confirm": secure.confirm, "unmask": secure.unmask}[stage]
            reply = step(data)
    finally:  # also after a refusal, which ends the attempt: its secrets must not come back with the next message
        context.state["secure"] = ConfigRecord({"state": secure.state.to_bytes()})
        if secure.state.stage not in (Stage.KEYS, Stage.SHARES):
            _forget_model(context)
    return answer(reply, Position(secure.state.round + 1, secure.state.attempt))


def _begin(job: Job, client: int, secure: Participant, content: RecordDict, context: Context) -> bytes:
    """Stage 1, over all that the server may choose in this round: the model, and the clip norm where there is one."""
    arrays = model_of(content, local_client(job, client).model)
    clip_norm = _clip_norm_of(job, content)
    reply = secure.begin(data_of(content), hash_of(arrays, clip_norm))
    context.state["model"] = arrays
    if clip_norm is not None:
        context.state["settings"] = ConfigRecord({CLIP: clip_norm})
    return reply


def _started_from(secure: Participant, context: Context) -> tuple[ArrayRecord, float | None]:
    """Model and clip norm as they came with stage 1; raises ProtocolError where the node has others now, or none."""
    arrays, settings = context.state.get("model"), cast(ConfigRecord, context.state.get("settings", {}))
    clip_norm = cast("float | None", settings.get(CLIP))
    if not isinstance(arrays, ArrayRecord) or hash_of(arrays, clip_norm) != secure.state.model_hash:
        raise ProtocolError(Reason.MODEL, "server", "the model that this attempt began with is not there any more")
    return arrays, clip_norm


def _forget_model(context: Context) -> None:
    for name in ("model", "settings"):
        if name in context.state:
            del context.state[name]


def _clip_norm_of(job: Job, content: RecordDict) -> float | None:
    """The round's clip norm, where updates are clipped; what it may be is checked before data is read."""
    if sum_plan(job).kind != "clipped_update":
        return None
    clip_norm = config_of(content).get(CLIP)
    if not isinstance(clip_norm, float):
        raise ProtocolError(Reason.MALFORMED, "server", "a message without a clip norm")
    return clip_norm


def answer_sum(job: Job, content: RecordDict, context: Context) -> RecordDict:
    """Words in the clear, for an aggregator that is trusted with them."""
    client = index_of(context)
    position = Position(*position_of(job, content, attempts_of(job)))
    arrays = model_of(content, local_client(job, client).model)
    return answer(words_of(job, client, arrays, position, _clip_norm_of(job, content)).tobytes(), position)


def answer(data: bytes, position: Position) -> RecordDict:
    """A reply that says which round and attempt it belongs to, so that a late one is known as such."""
    return RecordDict({"reply": ConfigRecord({"data": data, "position": list(position)})})


def _restored(job: Job, client: int, context: Context) -> Participant:
    """The client as it was after its last message."""
    plan = sum_plan(job)
    assert plan.roster is not None
    assert plan.identities is not None

    def commit(round: int, attempt: int) -> None:
        # Entered as begun before the words left; the first share that leaves makes it a release.
        ledger = local_client(job, client).ledger
        if ledger is not None:
            entry = round + 1 if plan.kind == "update" else ledger_entry(job, Position(round + 1, attempt))
            ledger.commit_round(ledger_run(job), entry)

    identity, journal = _identity(plan.identities[client]), journal_of(job)
    state = _remembered(client, context)
    return Participant(plan.roster, client, identity, on_first_unmask=commit, journal=journal, state=state)


def _remembered(client: int, context: Context) -> ParticipantState | None:
    record = context.state.get("secure")
    if not isinstance(record, ConfigRecord):
        return None
    return ParticipantState.from_bytes(cast(bytes, record["state"]), client)


@lru_cache(maxsize=1024)
def _identity(raw: bytes) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(raw)
