"""How a hospital answers: it proves who it is, signs what it says, gives receipts, and refuses in few words."""

import hashlib
import json
import logging
import math
from typing import Any

from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from medx.aggregation.journal import Party
from medx.aggregation.wire import ProtocolError, Reason
from medx.federation.flower import PayloadError, from_record
from medx.federation.hospital import SERVER, config_of
from medx.federation.ledgers import check_entries, keeps_ledger, recorded_steps
from medx.federation.replies import AbstainedError, Code, error_of
from medx.federation.server import round_metrics
from medx.federation.setup import build_network, solved
from medx.privacy.spending import client_epsilon
from medx.schema import LedgerError, MedxError, one_line
from medx.site.audit import AuditError
from medx.site.consortium import canonical
from medx.site.hospital import Admitted, Site, finish_ledgers_of
from medx.site.policy import PolicyError
from medx.site.study import StudyError, read_study

log = logging.getLogger(__name__)
CHALLENGE = 32  # bytes
SIGNED = "signed"
# What is said of them is about the study or the message, and may be told to the coordinator.
TOLD = [kind.__name__ for kind in (StudyError, PolicyError, ProtocolError, AbstainedError)]
SPENT = "LedgerError: a hospital's ledger does not allow this study"
SHOWN = 300  # characters of a refusal in the audit log
NOTED = 1000  # refusals of one kind that are told apart
FEWEST = 20  # images of a split of which metrics are told
DIGITS = 3  # of a metric that is told


class Answers:
    """A hospital's answers to all messages of its node."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._noted: set[str] = set()

    def answer(self, message: Message, context: Context) -> Message:
        """The answer to a message of any kind: an error of a bounded, discreet text where it cannot be given."""
        try:
            reply = self._answer(message, context)
            if reply.has_content():
                return self._signed(reply, message, context)
            self._note(context, str(reply.error.reason))
            return _relayed(reply)
        except MedxError as error:
            log.warning("%s", error)
            self._note(context, f"{type(error).__name__}: {one_line(error)}")
            secret = isinstance(error, PolicyError) and error.rules == ("policy",)  # it tells of the hospital's file
            told = Error(Code.REFUSED, "PolicyError") if secret else error_of(error, Code.REFUSED)
            return _relayed(Message(told, reply_to=message))
        except Exception as error:
            log.exception("a message was not answered")
            self._note(context, type(error).__name__)
            return Message(Error(Code.FAILED, type(error).__name__), reply_to=message)

    def _answer(self, message: Message, context: Context) -> Message:
        admitted = self.site.admit(context.run_config.get("study"))
        kind = message.metadata.message_type
        if kind == "query":
            return self._identify(admitted, message, context)
        if kind == "query.receipt":
            return self._receipt(admitted, message)
        if kind == "evaluate":
            return self._report(admitted, message)
        return self._counted(admitted, message, context)

    def _note(self, context: Context, why: str) -> None:
        """Put a refusal into the audit log, once where it is the same; of texts that nobody signed only that.

        Where the log cannot be written it is a refusal all the same: an answer that never came would be waited for.
        """
        try:
            study = read_study(context.run_config.get("study"), self.site.consortium.coordinator).digest
        except StudyError:
            study, why = "", "StudyError: no study of the coordinator"
        key = f"{study} {why[:SHOWN]}"
        if key in self._noted:
            return
        try:
            self.site.audit.write("refused", study=study, why=why[:SHOWN], node=context.node_id)
        except AuditError as error:
            log.error("%s", error)
            return
        if len(self._noted) >= NOTED:
            self._noted.clear()
        self._noted.add(key)

    def _signed(self, reply: Message, message: Message, context: Context) -> Message:
        """The reply under the hospital's signature: whoever has the node's key alone answers for nobody."""
        study = read_study(context.run_config.get("study"), self.site.consortium.coordinator)
        said = signed_part(study.digest, context.node_id, message.metadata.message_id, reply.content)
        reply.content[SIGNED] = ConfigRecord({"signature": self.site.identity.sign(said)})
        return reply

    def _identify(self, admitted: Admitted, message: Message, context: Context) -> Message:
        """Reserve the budget, and sign who this node is, over the server's fresh challenge."""
        config, study, site = config_of(message.content), admitted.study, self.site
        challenge, charged = config.get("challenge"), config.get("charged")
        if not isinstance(challenge, bytes) or len(challenge) != CHALLENGE:
            raise ProtocolError(Reason.MALFORMED, SERVER, f"no challenge of {CHALLENGE} bytes")
        if not isinstance(charged, list) or len(charged) != len(study.hospitals):
            raise ProtocolError(Reason.MALFORMED, SERVER, "not one count of releases a hospital")
        reply = admitted.app(message, context)
        if reply.has_error():
            return reply
        if not site.marker(study).exists():
            site.audit.write("reserved", study=study.digest)
            site.mark(study, content=admitted.job.plan.private)
        self._check_ledger(admitted, charged[admitted.client])
        begun, reached = self._begun(admitted), _reached(admitted)
        said = canonical("node", [study.digest, challenge.hex(), context.node_id, admitted.client, begun, reached])
        reply.content["proof"] = ConfigRecord(
            {"signature": site.identity.sign(said), "begun": begun, "reached": reached}
        )
        return reply

    def _check_ledger(self, admitted: Admitted, charged: object) -> None:
        """Refuse to go on where the ledger shows less than this hospital has answered for."""
        ledger = admitted.hospitals.ledgers().get(admitted.client)
        if ledger is not None and type(charged) is int:
            try:
                check_entries(ledger, admitted.job.run_id, charged)
            except LedgerError:
                self.site.forget(admitted.study)  # its ledger is closed
                raise

    def _begun(self, admitted: Admitted) -> int:
        if not keeps_ledger(admitted.job):
            return 0
        return recorded_steps(admitted.job, {}, admitted.hospitals.ledgers())[admitted.client]

    def _counted(self, admitted: Admitted, message: Message, context: Context) -> Message:
        """An answer in a round; abstentions, each of which tells something of the data, end at the study's limit."""
        site, study, limit = self.site, admitted.study, admitted.job.plan.max_abstentions
        if not site.marker(study).exists():  # by which a lost ledger would be missed
            raise ProtocolError(Reason.STAGE, SERVER, "a round before the hospital was asked who it is")
        before = (
            int(json.loads(path.read_text())["content"]) if (path := site.marker(study, "abstained")).exists() else 0
        )
        if limit is not None and before > limit:
            raise PolicyError(
                f"policy: maximum_abstentions: {before} here, accepted: {limit}", ("maximum_abstentions",)
            )
        reply = admitted.app(message, context)
        if _abstains(reply):
            site.mark(study, "abstained", before + 1)
        return reply

    def _receipt(self, admitted: Admitted, message: Message) -> Message:
        """End the run here: what was reserved and not begun is given back, and what was begun is signed."""
        job, client, site = admitted.job, admitted.client, self.site
        finish_ledgers_of(job, client)  # on disk: an executor that was started again has none open
        steps = self._begun(admitted)
        known = job.plan.private and job.plan.event_of(job.plan.clients[client]) is not None
        epsilon = client_epsilon(job.plan, job.plan.clients[client], steps) if known else None
        receipt = {"study": admitted.study.digest, "hospital": site.config.name, "steps": steps, "epsilon": epsilon}
        signature = site.identity.sign(canonical("receipt", receipt)).hex()
        noise = admitted.hospitals.noise.found()  # for the hospital alone: who knows the noise takes it off
        site.audit.write("receipt", **receipt, noise=noise and (noise.doubts or "as planned"))
        if site.marker(admitted.study).exists():
            site.mark(admitted.study, "receipt")
        text = json.dumps(receipt, sort_keys=True)
        content = RecordDict({"receipt": ConfigRecord({"receipt": text, "signature": signature})})
        return Message(content, reply_to=message)

    def _report(self, admitted: Admitted, message: Message) -> Message:
        """The model's metrics on the hospital's own validation and test images, where the hospital reports them.

        Once a study, when it has ended here, rounded, and of no few images: else they are asked for images one by one.
        """
        site, study, job = self.site, admitted.study, admitted.job
        if site.config.report == "none":
            raise PolicyError("report: none: this hospital returns nothing of its own images", ("report",))
        if not site.marker(study, "receipt").exists() or site.marker(study, "reported").exists():
            raise PolicyError("report: accepted: once a study, after its receipt", ("report",))
        try:
            state = from_record(message.content.get("arrays"), job.layout, momentum=False)
        except PayloadError as error:
            raise ProtocolError(Reason.MODEL, SERVER, str(error)) from None
        prepared = admitted.hospitals.prepared
        counts = {name: len(prepared.labels[name]) for name in ("validation", "test")}
        site.audit.write("reported", study=study.digest, counts=counts)
        site.mark(study, "reported")
        network = build_network(job.setup, study.spec).to(job.setup.device)
        average = solved(job, network, state.parameter_tensors())
        metrics = round_metrics(network, average, prepared, job.setup.device)
        told = {
            name: None if value is None or not math.isfinite(value) else round(value, DIGITS)
            for name, value in metrics.items()
            if counts[name.partition("/")[0]] >= FEWEST
        }
        text = json.dumps({"metrics": told, "counts": counts}, sort_keys=True)
        return Message(RecordDict({"report": ConfigRecord({"report": text})}), reply_to=message)


def _reached(admitted: Admitted) -> list[int]:
    """The last round, from 1, and attempt that the hospital has begun in secure sums; 0, 0 before the first."""
    sums = admitted.job.sums
    if sums is None or sums.roster is None:
        return [0, 0]
    number, attempt = admitted.hospitals.journal().reached(Party(sums.roster.digest, admitted.client))
    return [number + 1, attempt]


def signed_part(study: str, node: int, message: str, content: RecordDict) -> bytes:
    """What a hospital signs of an answer: to which message of which study, at which node, and all that it holds."""
    held = {name: record.object_id for name, record in content.items() if name != SIGNED}
    digest = hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()
    return canonical("answer", [study, node, message, digest])


def _abstains(reply: Message) -> bool:
    if reply.has_error():
        return bool(reply.error.code == Code.ABSTAINED)
    metrics: Any = reply.content.get("metrics")
    return isinstance(metrics, MetricRecord) and metrics.get("finite") == 0


def _relayed(reply: Message) -> Message:
    """The reply; of an error only its kind where its text could tell of the hospital's files, budget or data."""
    if reply.has_error():
        kind, _, _ = str(reply.error.reason).partition(":")
        if reply.error.code == Code.LEDGER:
            reply.error = Error(Code.LEDGER, SPENT)
        elif kind not in TOLD:
            reply.error = Error(reply.error.code, kind)
    return reply
