"""One hospital of a consortium: which studies it takes part in, by its own policy and with its own data and ledger."""

import json
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.clientapp import ClientApp

from medx import files
from medx.aggregation.roster import read_identity
from medx.federation.hospital import Hospitals
from medx.federation.hospital_app import client_app
from medx.federation.ledgers import finish_ledgers, keeps_ledger
from medx.federation.prepared import prepare_own
from medx.federation.setup import Job
from medx.measurement import check_model
from medx.privacy.accounting import epsilon_spent
from medx.schema import ConfigError, LedgerError
from medx.site.approvals import Approvals, admit, check_approved
from medx.site.audit import AuditLog
from medx.site.consortium import Consortium
from medx.site.declaring import check_declared, own_dataset
from medx.site.planning import Place, job_of
from medx.site.policy import Asked, Policy, PolicyError, as_table, is_digest
from medx.site.site_config import SiteConfig
from medx.site.study import Study, check_fits, read_study

KEPT = 2  # studies whose data stay in memory
WAITING = 100  # studies that are kept for a person to look at


@dataclass(frozen=True)
class Admitted:
    """A study that this hospital takes part in, under its number there, and what it asks."""

    study: Study
    asked: Asked
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

    def policy(self) -> Policy:
        """The policy as it is now; raises PolicyError."""
        return Policy.load(self.kit / "policy.yaml")

    def job(self, study: Study, budget: float | None) -> Job:
        """The plan as this hospital works it out; its ledger stands under ``budget``. No image is read."""
        client = study.number(self.config.name)
        place = Place(
            device=self.config.device,
            cache=self.config.cache,
            folder=self.config.state / study.digest,
            ledger=self.config.ledger,
            budget=budget,
        )
        identity = (client, self.identity.private_bytes_raw())
        job = job_of(study, self.consortium, place, dataset=own_dataset(self.config, study), identity=identity)
        if self.marker(study).exists():  # so that a ledger or a journal that was lost meanwhile is missed
            return replace(job, resumed=True, charged={client: 0})
        return job

    def asked(self, study: Study, job: Job) -> Asked:
        """What the policy looks at."""
        plan, own = job.plan, job.plan.clients[study.number(self.config.name)]
        history = plan.history(own, plan.reserved_events(own))
        members = [self.consortium.hospitals[self.consortium.number(each.name)] for each in study.hospitals]
        aggregation, shared = job.setup.aggregation, plan.shared_noise
        return Asked(
            study=study.digest,
            title=study.title,
            datasets=study.dataset,
            mechanism=plan.mechanism.name,
            epsilon=epsilon_spent(history, plan.delta).value if history and plan.delta else None,
            delta=plan.delta,
            unit=plan.unit.name if plan.unit is not None else None,
            noise_source=plan.noise_source,
            secure=aggregation.secure,
            num_hospitals=len(study.hospitals),
            peers=tuple(str(member.identity) for member in members if member.name != self.config.name),
            # Noise that is the hospital's own stands against all others together.
            assumed_colluders=len(members) - 1 if shared is None else shared.assumed_colluders,
            minimum_survivors=aggregation.survivors_for(len(study.hospitals)),
            num_rounds=job.setup.federation.num_rounds,
            max_abstentions=plan.max_abstentions,
            model=str(study.config["model"]["option"]),
            version=study.version,
            num_records=own.num_records,
            coordinator=self.consortium.coordinator,
        )

    def look(self, text: object) -> str:
        """What a study is and what the policy says of it, as a page; raises MedxError where it is none for here."""
        study, policy = self.read(text), self.policy()
        table = as_table(policy, self.asked(study, self.job(study, None)))
        lines = [
            f"hospitals   {', '.join(each.name for each in study.hospitals)}",
            f"images      {study.image_size} pixels",
        ]
        for each in study.hospitals:
            member = self.consortium.hospitals[self.consortium.number(each.name)]
            lines.append(f"  {each.name}: {each.num_records} images, identity {str(member.identity)[:32]}")
        return "\n".join(lines) + "\n" + table

    def admit(self, text: object) -> Admitted:
        """Take part in a study: by policy, in every message anew, and only then is an image read. Raises MedxError.

        Nothing is worked out for a study that nobody here has approved: what it would do is told to who looks at it.
        """
        study, policy = self.read(text), self.policy()
        known = self._admitted.get(study.digest)
        if known is not None:
            admit(policy, self.approvals, known.asked)
            return known
        self.keep(study, str(text))
        check_approved(policy, self.approvals, study.digest)
        asked = self.asked(study, self.job(study, None))
        admit(policy, self.approvals, asked)
        admitted = self._ready(study, asked, self.job(study, policy.total_epsilon))
        self.audit.write("admitted", study=study.digest, title=study.title, epsilon=asked.epsilon, delta=asked.delta)
        self._admitted[study.digest] = admitted
        while len(self._admitted) > KEPT:
            self._admitted.popitem(last=False)[1].hospitals.close()
        return admitted

    def _ready(self, study: Study, asked: Asked, job: Job) -> Admitted:
        """The study with the hospital's data in memory, if they are what it declared and the model may be trained."""
        if job.plan.private and not keeps_ledger(job):
            raise PolicyError(
                "policy: mechanisms: the server would keep the ledger, accepted: aggregation=secure", ("mechanisms",)
            )
        if job.plan.private and self._spent_before() and not list(self.config.ledger.glob("*.sqlite")):
            raise LedgerError(f"{self.config.ledger}: no ledger, and studies had begun by {self.config.state}")
        client = study.number(self.config.name)
        prepared = prepare_own(job.setup, client)
        check_declared(study, client, prepared.splits)
        check_model(job, prepared)
        hospitals = Hospitals(job, prepared)
        return Admitted(study, asked, job, hospitals, client, client_app(hospitals, client))

    def _spent_before(self) -> bool:
        markers = [path for path in self.config.state.glob("*.json") if is_digest(path.stem)]
        return any(json.loads(path.read_text()).get("content") for path in markers)

    def forget(self, study: Study) -> None:
        """Let go of a study; its next message begins with what is on disk."""
        if (known := self._admitted.pop(study.digest, None)) is not None:
            known.hospitals.close()

    def keep(self, study: Study, text: str) -> None:
        """Keep a study's text for a person to look at; no more than so many wait."""
        folder = self.config.approvals
        path = folder / f"{study.digest}.study"
        if not path.exists() and len(list(folder.glob("*.study"))) < WAITING:
            files.make_folder(folder)
            files.write_text(path, text)
            self.approvals.ask(study.digest, study.title)

    def find(self, named: str) -> tuple[str, str]:
        """Digest and signed text of a study, by its file, its digest or the beginning of that; raises ConfigError."""
        if (path := Path(named)).is_file():
            text = path.read_text()
            study = self.read(text)
            self.keep(study, text)
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
        finish_ledgers_of(self.job(study, None), study.number(self.config.name))
        self.audit.write("closed", study=study.digest)

    def marker(self, study: Study, what: str = "") -> Path:
        """A file that is there once a study has begun here, or has come to ``what``."""
        return self.config.state / f"{study.digest}{'.' * bool(what)}{what}.json"

    def mark(self, study: Study, what: str = "", content: Any = None) -> None:
        """Put that file there."""
        files.make_folder(self.config.state)
        path = self.marker(study, what)
        files.write_json(path, {"study": study.digest, "title": study.title, "content": content})
        files.sync(path)
        files.sync(path.parent)

    def close(self) -> None:
        """Close ledgers and journals."""
        for admitted in self._admitted.values():
            admitted.hospitals.close()
        self._admitted.clear()


def finish_ledgers_of(job: Job, client: int) -> None:
    """Finish the run in this hospital's ledger alone."""
    plan = replace(job.plan, clients=(job.plan.clients[client],))
    finish_ledgers(replace(job, plan=plan))
