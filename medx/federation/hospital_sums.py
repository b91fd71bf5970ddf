"""A hospital's part in a sum: its words in the clear, or the five stages of secure aggregation."""

import math
from functools import lru_cache
from typing import cast

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Context, RecordDict

from medx.aggregation.integer_noise import add_discrete_gaussian
from medx.aggregation.journal import ParticipantState
from medx.aggregation.messages import Stage
from medx.aggregation.participant import Participant
from medx.aggregation.wire import ProtocolError, Reason
from medx.federation.flower import PayloadError, from_record, to_record
from medx.federation.hospital import SERVER, Hospital, config_of, data_of, model_of
from medx.federation.ledgers import keeps_ledger
from medx.federation.replies import AbstainedError
from medx.federation.setup import Job, secret_key
from medx.federation.sums import CLIP, SMALL, WEIGHT, Position, ledger_entry, noise_stream, sum_plan
from medx.randomness import keyed_generator
from medx.schema import PrivacyError
from medx.trainer.state import ModelState

EXPONENT = 700.0  # beyond it exp overflows


def words_of(hospital: Hospital, state: ModelState, position: Position, clip_norm: float | None) -> np.ndarray:
    """The client's words ``uint32 [layout.size]`` for one attempt; its ledger is charged before data is read.

    ``clip_norm`` is the round's, which moves within what the client's own configuration allows; None elsewhere.
    """
    job = hospital.job
    kind = sum_plan(job).kind
    if kind == "gradient":
        return _gradient_words(hospital, state, position)
    if kind == "clipped_update":
        return _clipped_words(hospital, state, position, allowed_clip_norm(job, position.round, clip_norm))
    delta = _update(hospital, state, position)
    weight = hospital.plan.num_records / sum(other.num_records for other in job.plan.clients)
    return _on_grid(hospital, delta * weight, {WEIGHT: weight})


def _gradient_words(hospital: Hospital, state: ModelState, position: Position) -> np.ndarray:
    job, client = hospital.job, hospital.client
    model = state.hash()
    _charge(hospital, position, model)
    # Who knows the sampling loses what it amplifies: as secret as the noise, and as much its own.
    sampling, views = (
        keyed_generator(secret_key(job, purpose, client, *position, model)) for purpose in ("sampling", "views")
    )
    sums = job.setup.trainer.clipped_gradient(
        module=hospital.site.module(),
        objective=hospital.site.prepared.objective,
        inputs=hospital.inputs,
        labels=hospital.labels,
        plan=hospital.plan,
        state=state,
        sample_generator=sampling,
        device=torch.device(job.setup.device),
        view_generator=views,
        patients=hospital.patients,
    )
    vector = torch.cat([total.detach().reshape(-1).double().cpu() for total in sums]).numpy()
    return _noised(hospital, _on_grid(hospital, vector, {}), position, model)


def _noised(hospital: Hospital, words: np.ndarray, position: Position, model: bytes) -> np.ndarray:
    """The words with the client's share of the noise on them."""
    heard = hospital.site.noise.of(position.round, hospital.client)
    stream = noise_stream(hospital.job, hospital.client, position, model, heard=heard)
    add_discrete_gaussian(words, stream, sum_plan(hospital.job).noise_stddev)
    return words


def _charge(hospital: Hospital, position: Position, model: bytes) -> None:
    # Every attempt is a release of its own: new noise, and an entry of its own in the ledger. It is entered before
    # the words leave, because others can unmask the sum whether or not this client is still there.
    assert hospital.ledger is not None
    job, entry = hospital.job, ledger_entry(hospital.job, position)
    release = secret_key(job, "release", hospital.client, entry, model)
    hospital.ledger.begin_round(job.run_id, entry, 1, release=release)


def _update(hospital: Hospital, state: ModelState, position: Position) -> np.ndarray:
    """New minus old parameters and momentum, ``float64 [dimension]``, after the client's local steps."""
    update = hospital.train(state, position.round)
    if not update.finite:
        raise AbstainedError(f"client {hospital.client}: the update of round {position.round} is not finite")
    return update.state.flat() - state.flat()


def _clipped_words(hospital: Hospital, state: ModelState, position: Position, clip_norm: float) -> np.ndarray:
    """The update in units of the clip norm, at most 1 long, under the client's share of the noise where it has one."""
    plan = sum_plan(hospital.job)
    model = state.hash(clip_norm)
    if keeps_ledger(hospital.job):
        _charge(hospital, position, model)
    unit, small = clipped_to_unit(_update(hospital, state, position), clip_norm)
    words = _on_grid(hospital, unit, {SMALL: small - 0.5} if plan.layout.fields else {})
    return _noised(hospital, words, position, model) if plan.noise_stddev else words


def _on_grid(hospital: Hospital, vector: np.ndarray, scalars: dict[str, float]) -> np.ndarray:
    """The words of a vector within the bound; one beyond it would show by how much, so its client abstains."""
    layout = sum_plan(hospital.job).layout
    words, saturated = layout.encode(vector, scalars)
    if saturated:
        raise AbstainedError(
            f"client {hospital.client}: {saturated} coordinates beyond the bound {layout.bound:g} of the sum"
        )
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


def answer_sum(hospital: Hospital, content: RecordDict, position: Position) -> RecordDict:
    """Words in the clear, for an aggregator that is trusted with them."""
    state, clip_norm = model_of(hospital.job, content), _clip_norm_of(hospital.job, content)
    return _answer(words_of(hospital, state, position, clip_norm).tobytes(), position)


def answer_stage(hospital: Hospital, stage: str, content: RecordDict, context: Context) -> RecordDict:
    """One stage of secure aggregation. What the client must remember lies in its context, what it answered in a file.

    A context that was lost, or is an older one, ends the attempt: the journal knows the last one by its hash.
    """
    data = data_of(content)
    secure = _restored(hospital, context)

    def make_words(round: int, attempt: int) -> np.ndarray:
        # Round, attempt, model and clip norm are those that everybody's keys are signed over, whatever this message
        # says of itself.
        state, clip_norm = _started_from(hospital.job, secure, context)
        return words_of(hospital, state, Position(round + 1, attempt), clip_norm)

    try:
        if stage == "keys":
            reply = _begin(hospital.job, secure, content, context)
        elif stage == "masked":
            reply = secure.mask(data, make_words)
        else:
            step = {"shares": secure.share, "confirm": secure.confirm, "unmask": secure.unmask}[stage]
            reply = step(data)
    finally:  # also after a refusal, which ends the attempt: its secrets must not come back with the next message
        context.state["secure"] = ConfigRecord({"state": secure.state.to_bytes()})
        if secure.state.stage not in (Stage.KEYS, Stage.SHARES):
            _forget_model(context)
    return _answer(reply, Position(secure.state.round + 1, secure.state.attempt))


def _begin(job: Job, secure: Participant, content: RecordDict, context: Context) -> bytes:
    """Stage 1, over all that the server may choose in this round: the model, and the clip norm where there is one."""
    state = model_of(job, content)
    clip_norm = _clip_norm_of(job, content)
    reply = secure.begin(data_of(content), state.hash(clip_norm))
    context.state["model"] = to_record(state)
    if clip_norm is not None:
        context.state["settings"] = ConfigRecord({CLIP: clip_norm})
    return reply


def _started_from(job: Job, secure: Participant, context: Context) -> tuple[ModelState, float | None]:
    """Model and clip norm as they came with stage 1; raises ProtocolError where the node has others now, or none."""
    settings = cast(ConfigRecord, context.state.get("settings", {}))
    clip_norm = cast("float | None", settings.get(CLIP))
    try:
        state = from_record(context.state.get("model"), job.layout, momentum=job.sends_momentum)
    except PayloadError:
        state = None
    if state is None or state.hash(clip_norm) != secure.state.model_hash:
        raise ProtocolError(Reason.MODEL, SERVER, "the model that this attempt began with is not there any more")
    return state, clip_norm


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
        raise ProtocolError(Reason.MALFORMED, SERVER, "a message without a clip norm")
    return clip_norm


def _answer(data: bytes, position: Position) -> RecordDict:
    """A reply that says which round and attempt it belongs to, so that a late one is known as such."""
    return RecordDict({"reply": ConfigRecord({"data": data, "position": list(position)})})


def _restored(hospital: Hospital, context: Context) -> Participant:
    """The client as it was after its last message."""
    job, client, plan = hospital.job, hospital.client, sum_plan(hospital.job)
    assert plan.roster is not None
    assert plan.identities is not None

    def commit(round: int, attempt: int) -> None:
        # Entered as begun before the words left; the first share that leaves makes it a release.
        if hospital.ledger is not None:
            entry = round + 1 if plan.kind == "update" else ledger_entry(job, Position(round + 1, attempt))
            hospital.ledger.commit_round(job.run_id, entry)

    record = context.state.get("secure")
    known = cast(bytes, record["state"]) if isinstance(record, ConfigRecord) else None
    state = None if known is None else ParticipantState.from_bytes(known, client)
    identity, journal = _identity(plan.identities[client]), hospital.site.journal()
    return Participant(plan.roster, client, identity, on_first_unmask=commit, journal=journal, state=state)


@lru_cache(maxsize=1024)
def _identity(raw: bytes) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(raw)
