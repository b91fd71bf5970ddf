"""One hospital of a consortium: it admits a study by its own policy, proves who it is, and answers for its own data."""

import json
import logging
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from medx import files
from medx.aggregation.roster import read_identity
from medx.aggregation.wire import ProtocolError, Reason
from medx.federation.flower import PayloadError, from_record
from medx.federation.hospital import SERVER, Hospitals, config_of
from medx.federation.hospital_app import client_app
from medx.federation.ledgers import check_entries, finish_ledgers, keeps_ledger, recorded_steps
from medx.federation.prepared import prepare_own
from medx.federation.replies import AbstainedError, Code, error_of
from medx.federation.server import round_metrics
from medx.federation.setup import Job
from medx.measurement import check_model
from medx.privacy.accounting import epsilon_spent
from medx.privacy.spending import client_epsilon
from medx.schema import ConfigError, MedxError, one_line
from medx.site.approvals import Approvals, admit
from medx.site.audit import AuditLog
from medx.site.consortium import Consortium, canonical
from medx.site.declaring import check_declared, own_dataset
from medx.site.policy import Asked, Policy, PolicyError, as_table
from medx.site.site_config import SiteConfig
from medx.site.study import Place, Study, StudyError, check_fits, job_of, read_study

log = logging.getLogger(__name__)
KEPT = 2  # studies whose data stay in memory
CHALLENGE = 32  # bytes
# What is said of them is about the study or the message, and may be told to the coordinator.
TOLD = [kind.__name__ for kind in (StudyError, PolicyError, ProtocolError, AbstainedError)]


@dataclass(frozen=True)
class Admitted:
    """A study that this hospital takes part in, under its number there."""

    study: Study
    job: Job
    hospitals: Hospitals
    client: int
    app: ClientApp


class Site:
    """A hospital, from its kit: nothing that a message says decides what it does, but for the study's signed text.

    Raises MedxError where the kit is no whole one.
    """

    def __init__(self, kit: Path) -> None:
        self.kit = kit
        self.config = SiteConfig.load(kit)
        self.consortium = Consortium.load(kit)
        self.number = self.consortium.number(self.config.name)
        self.identity: Ed25519PrivateKey = read_identity(kit / "identity.pem")
        pinned = self.consortium.hospitals[self.number].identity
        if self.identity.public_key().public_bytes_raw().hex() != pinned:
            raise ConfigError(f"{kit}/identity.pem: not the identity of {self.config.name} in consortium.json")
        self.audit = AuditLog(self.config.audit)
        self.approvals = Approvals(self.config.approvals)
        self._admitted: OrderedDict[str, Admitted] = OrderedDict()

    def read(self, text: object) -> Study:
        """The study in a text that the coordinator signed; raises StudyError."""
        study = read_study(text, self.consortium.coordinator)
        check_fits(study, self.consortium)
        study.number(self.config.name)
        return study

    def job(self, study: Study, budget: float | None) -> Job:
        """The plan as this hospital works it out; its ledger stands under ``budget``. No data are read."""
        client = study.number(self.config.name)
        folder = self.config.state / study.digest
        place = Place(
            device=self.config.device, cache=self.config.cache, folder=folder, ledger=self.config.ledger, budget=budget
        )
        dataset = own_dataset(self.config, study)
        identity = (client, self.identity.private_bytes_raw())
        job = job_of(study, self.consortium, place, dataset=dataset, identity=identity)
        if self._marker(study).exists():  # so that a ledger or a journal that was lost meanwhile is missed
            return replace(job, resumed=True, charged={client: 0})
        return job

    def asked(self, study: Study, job: Job) -> Asked:
        """What the policy looks at."""
        plan, client = job.plan, study.number(self.config.name)
        own = plan.clients[client]
        history = plan.history(own, plan.reserved_events(own))
        known = plan.private and plan.event_of(own) is not None and plan.delta is not None
        aggregation = job.setup.aggregation
        return Asked(
            study=study.digest,
            title=study.title,
            datasets=study.dataset,
            mechanism=plan.mechanism.name,
            epsilon=epsilon_spent(history, plan.delta).value if known and plan.delta else None,
            delta=plan.delta,
            unit=plan.unit.name if plan.unit is not None else None,
            noise_source=plan.noise_source,
            secure=aggregation.secure,
            num_hospitals=len(study.hospitals),
            minimum_survivors=aggregation.survivors_for(len(study.hospitals)),
            num_rounds=job.setup.federation.num_rounds,
            max_abstentions=plan.max_abstentions,
            model=str(study.config["model"]["option"]),
            version=study.version,
            num_records=own.num_records,
            coordinator=self.consortium.coordinator,
        )

    def look(self, text: object) -> str:
        """What the policy says of a study, as a page of text; raises MedxError where it is none for this hospital."""
        study, policy = self.read(text), self.policy()
        return as_table(policy, self.asked(study, self.job(study, None)))

    def find(self, named: str) -> tuple[str, str]:
        """Digest and signed text of a study, by its file, its digest or the beginning of that; raises ConfigError."""
        if (path := Path(named)).is_file():
            text = path.read_text()
            study = self.read(text)
            files.make_folder(self.config.approvals)
            files.write_text(self.config.approvals / f"{study.digest}.study", text)
            return study.digest, text
        found = sorted(self.config.approvals.glob("*.study"))
        fits = [path for path in found if named and path.stem.startswith(named)]
        if len(fits) != 1:
            known = ", ".join(path.stem[:16] for path in found) or "none is known yet"
            raise ConfigError(f"study {named}: accepted: its file, or the beginning of one digest: {known}")
        return fits[0].stem, fits[0].read_text()

    def end(self, text: str) -> None:
        """Give back what an abandoned study has reserved in the ledger and not begun; raises MedxError."""
        study = self.read(text)
        finish_ledgers(self.job(study, None))
        self.audit.write("closed", study=study.digest)

    def policy(self) -> Policy:
        """The policy as it is now; raises PolicyError."""
        return Policy.load(self.kit / "policy.yaml")

    def admit(self, text: object) -> Admitted:
        """Take part in a study, once for all its messages: by policy first, and only then is an image read.

        Raises MedxError; every admission and refusal is in the audit log before it is told.
        """
        study = self.read(text)
        if study.digest in self._admitted:
            return self._admitted[study.digest]
        try:
            policy = self.policy()
            asked = self.asked(study, self.job(study, None))
            self.approvals.ask(study.digest, as_table(policy, asked))
            files.write_text(self.config.approvals / f"{study.digest}.study", str(text))
            admit(policy, self.approvals, asked)
            admitted = self._ready(study, self.job(study, policy.total_epsilon))
        except MedxError as error:
            self.audit.write("refused", study=study.digest, title=study.title, why=one_line(error))
            raise
        self.audit.write("admitted", study=study.digest, title=study.title, epsilon=asked.epsilon, delta=asked.delta)
        self._admitted[study.digest] = admitted
        while len(self._admitted) > KEPT:
            self._admitted.popitem(last=False)[1].hospitals.close()
        return admitted

    def _ready(self, study: Study, job: Job) -> Admitted:
        """The study with the hospital's data in memory, if they are what it declared and the model may be trained."""
        client = study.number(self.config.name)
        prepared = prepare_own(job.setup, client)
        check_declared(study, client, prepared.splits)
        check_model(job, prepared)
        hospitals = Hospitals(job, prepared)
        return Admitted(study, job, hospitals, client, client_app(hospitals, client))

    def answer(self, message: Message, context: Context) -> Message:
        """The answer to a message of any kind: an error of a bounded, discreet text where it cannot be given."""
        try:
            return self._answer(message, context)
        except MedxError as error:
            log.warning("%s", error)
            return _relayed(Message(error_of(error, Code.REFUSED), reply_to=message))
        except Exception as error:
            log.exception("a message was not answered")
            return Message(Error(Code.FAILED, type(error).__name__), reply_to=message)

    def _answer(self, message: Message, context: Context) -> Message:
        admitted = self.admit(context.run_config.get("study"))
        kind = message.metadata.message_type
        if kind == "query":
            return self._identify(admitted, message, context)
        if kind == "query.receipt":
            return self._receipt(admitted, message)
        if kind == "evaluate":
            return self._report(admitted, message)
        return _relayed(admitted.app(message, context))

    def _identify(self, admitted: Admitted, message: Message, context: Context) -> Message:
        """Reserve the budget, and sign who this node is, over the server's fresh challenge."""
        config, study = config_of(message.content), admitted.study
        challenge, charged = config.get("challenge"), config.get("charged")
        if not isinstance(challenge, bytes) or len(challenge) != CHALLENGE:
            raise ProtocolError(Reason.MALFORMED, SERVER, f"no challenge of {CHALLENGE} bytes")
        if not isinstance(charged, list) or len(charged) != len(study.hospitals):
            raise ProtocolError(Reason.MALFORMED, SERVER, "not one count of releases a hospital")
        reply = _relayed(admitted.app(message, context))
        if reply.has_error():
            return reply
        if not self._marker(study).exists():
            files.make_folder(self.config.state)
            files.write_json(self._marker(study), {"study": study.digest, "title": study.title})
            self.audit.write("reserved", study=study.digest)
        self._check_ledger(admitted, charged[admitted.client])
        begun = self._begun(admitted)
        said = canonical("node", [study.digest, challenge.hex(), context.node_id, admitted.client, begun])
        proof = ConfigRecord({"signature": self.identity.sign(said), "begun": begun})
        reply.content["proof"] = proof
        return reply

    def _check_ledger(self, admitted: Admitted, charged: object) -> None:
        """Refuse to go on where the ledger shows less than this hospital has answered for."""
        ledger = admitted.hospitals.ledgers().get(admitted.client)
        if ledger is not None and type(charged) is int:
            check_entries(ledger, admitted.job.run_id, charged)

    def _begun(self, admitted: Admitted) -> int:
        if not keeps_ledger(admitted.job):
            return 0
        return recorded_steps(admitted.job, {}, admitted.hospitals.ledgers())[admitted.client]

    def _receipt(self, admitted: Admitted, message: Message) -> Message:
        """End the run here: what was reserved and not begun is given back, and what was begun is signed."""
        job, client = admitted.job, admitted.client
        for ledger in admitted.hospitals.ledgers().values():
            ledger.finish(job.run_id)
        steps = self._begun(admitted)
        known = job.plan.private and job.plan.event_of(job.plan.clients[client]) is not None
        epsilon = client_epsilon(job.plan, job.plan.clients[client], steps) if known else None
        receipt = {"study": admitted.study.digest, "hospital": self.config.name, "steps": steps, "epsilon": epsilon}
        text = json.dumps(receipt, sort_keys=True)
        signature = self.identity.sign(canonical("receipt", receipt)).hex()
        self.audit.write("receipt", **receipt)
        content = RecordDict({"receipt": ConfigRecord({"receipt": text, "signature": signature})})
        return Message(content, reply_to=message)

    def _report(self, admitted: Admitted, message: Message) -> Message:
        """The model's metrics on the hospital's own validation and test images, where the hospital reports them."""
        if self.config.report == "none":
            raise PolicyError("report: none: this hospital returns nothing of its own images", ("report",))
        prepared, job = admitted.hospitals.prepared, admitted.job
        try:
            state = from_record(message.content.get("arrays"), job.layout, momentum=False)
        except PayloadError as error:
            raise ProtocolError(Reason.MODEL, SERVER, str(error)) from None
        metrics = round_metrics(admitted.hospitals.module(), state.parameter_tensors(), prepared, job.setup.device)
        counts = {name: len(prepared.labels[name]) for name in ("validation", "test")}
        self.audit.write("reported", study=admitted.study.digest, counts=counts)
        text = json.dumps({"metrics": metrics, "counts": counts}, sort_keys=True)
        return Message(RecordDict({"report": ConfigRecord({"report": text})}), reply_to=message)

    def _marker(self, study: Study) -> Path:
        return self.config.state / f"{study.digest}.json"

    def close(self) -> None:
        """Close ledgers and journals."""
        for admitted in self._admitted.values():
            admitted.hospitals.close()
        self._admitted.clear()


def _relayed(reply: Message) -> Message:
    """The reply; of an error only its kind where its text could tell of the hospital's files, budget or data."""
    if reply.has_error():
        kind, _, _ = str(reply.error.reason).partition(":")
        if kind not in TOLD:
            reply.error = Error(reply.error.code, kind)
    return reply
