"""The hospitals of one run in this process: data, ledgers, journal, local training, and how they read a message.

A server may send anything. What a hospital does follows from its own configuration; a message gives it the model, the
place in the plan and the bytes of the protocol, read strictly, and what is not of the expected form ends before any
data is touched.
"""

import hashlib
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from flwr.app import ConfigRecord, RecordDict
from torch import nn

from medx.aggregation.integer_noise import NoiseStream
from medx.aggregation.journal import Journal
from medx.aggregation.wire import ProtocolError, Reason
from medx.federation.flower import PayloadError, from_record
from medx.federation.ledgers import journal_path, keeps_ledger, open_ledger, recorded_steps
from medx.federation.prepared import Prepared, prepare
from medx.federation.setup import Job, build_module, secret_key
from medx.federation.sums import Position, aggregation_result, attempts_of
from medx.machine import room_for_files
from medx.personalisation import Own
from medx.personalisation.kept import Kept, hospital_folder, keep, kept_before
from medx.privacy.base import ClientPlan
from medx.privacy.ledger import PrivacyLedger
from medx.privacy.noise_health import NoiseHealth
from medx.privacy.units import PATIENT
from medx.randomness import keyed_generator
from medx.schema import DataError
from medx.trainer.batches import Patients
from medx.trainer.local_training import ClientUpdate
from medx.trainer.state import ModelState

SERVER = "server"
log = logging.getLogger(__name__)
MOST = 1024  # hospitals that a process keeps, where it may have as many files open
FILES = 3  # of a hospital that is kept: its ledger, what SQLite writes ahead of it, and that one's index
OTHER_FILES = 256  # that a process has open beside: libraries, sockets, the journal


class Hospitals:
    """All hospitals of one run in this process; what they keep between rounds can be made again from the job.

    A copy that arrives in another process (a worker of Ray gets one with every message) is that process's own.
    """

    def __init__(self, job: Job, prepared: Prepared | None = None) -> None:
        self.job = job
        self._given = prepared
        self._known: OrderedDict[int, Hospital] = OrderedDict()
        self._modules: dict[int, nn.Module] = {}
        self._journal: Journal | None = None
        self._opening = threading.Lock()
        self.noise = NoiseHealth()
        self._most = most_hospitals() if keeps_ledger(job) else MOST

    def __reduce__(self) -> tuple[Callable[[Job], "Hospitals"], tuple[Job]]:
        return _of_this_process, (self.job,)

    @cached_property
    def prepared(self) -> Prepared:
        """The data of the hospitals; raises DataError where they are not those that the run was planned for."""
        if self._given is not None:
            return self._given
        found = prepare(self.job.setup)
        if found.declared != self.job.declared:
            raise DataError(
                "dataset: its files have changed since the run began; accepted: the same files, or a new run"
            )
        return found

    @cached_property
    def own_names(self) -> Own:
        """The parameters that a hospital goes on from as its own."""
        return self.job.setup.personalisation.own_names(self.module())

    def hospital(self, client: int) -> "Hospital":
        """One hospital; at its first message here its ledger reserves the run, before any data is touched."""
        known = self._known.get(client)
        if known is None:
            inputs, labels = self.prepared.client(client)
            numbers = self.prepared.patients(client) if self.job.plan.unit is PATIENT else None
            patients = None if numbers is None else Patients(numbers, self.job.plan.max_records_per_patient)
            ledger = open_ledger(self.job, self.prepared, client) if keeps_ledger(self.job) else None
            known = Hospital(self, client, self.job.plan.clients[client], inputs, labels, ledger, patients)
            if ledger is not None:  # once nobody uses it: a connection to SQLite waits for the collector of cycles
                weakref.finalize(known, ledger.close)
            self._known[client] = known
            while len(self._known) > self._most:
                self._known.popitem(last=False)
        return known  # and not what the dictionary has: another thread may have made room by now

    def module(self) -> nn.Module:
        """A module for this thread: hospitals load their state into it, so it holds nothing between rounds."""
        thread = threading.get_ident()
        if thread not in self._modules:
            self._modules[thread] = build_module(self.job.setup, self.job.declared.spec).to(self.job.setup.device)
        return self._modules[thread]

    def journal(self) -> Journal:
        """What the hospitals here have answered in secure sums; the file lies beside their ledgers."""
        with self._opening:
            if self._journal is None:
                pinned = getattr(self.job.setup.aggregation, "roster", None) is not None
                lasting = pinned or aggregation_result(self.job).trust_domain == "separate"
                self._journal = Journal(journal_path(self.job), create=not self.job.resumed, sync=lasting)
            return self._journal

    def ledgers(self) -> dict[int, PrivacyLedger]:
        """The ledgers that are open here, by client."""
        known = list(self._known.values())
        return {hospital.client: hospital.ledger for hospital in known if hospital.ledger is not None}

    def recorded(self, answered: dict[int, int], among: Collection[int] | None = None) -> dict[int, int]:
        """Steps by client as the ledgers have them, see ``recorded_steps``."""
        return recorded_steps(self.job, answered, self.ledgers(), among)

    def close(self) -> None:
        """Close ledgers and journal, and let go of the rest."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        for ledger in self.ledgers().values():
            ledger.close()
        self._known.clear()
        self._modules.clear()


_HERE: dict[str, Hospitals] = {}


def _of_this_process(job: Job) -> Hospitals:
    """The hospitals of a run in a process that gets them with every message: made at the first one."""
    if job.run_id not in _HERE:
        _HERE.clear()
        _HERE[job.run_id] = Hospitals(job)
    return _HERE[job.run_id]


def most_hospitals() -> int:
    """How many hospitals with ledgers this process can keep: each has files open."""
    return min(MOST, max(1, (room_for_files(FILES * MOST + OTHER_FILES) - OTHER_FILES) // FILES))


@dataclass
class Hospital:
    """One client: its plan, inputs ``[n, ...]``, labels ``[n]``, and ledger, None where it has none of its own.

    ``patients`` are told where they are what is drawn and clipped.
    """

    site: Hospitals = field(repr=False)
    client: int
    plan: ClientPlan
    inputs: torch.Tensor = field(repr=False)
    labels: torch.Tensor = field(repr=False)
    ledger: PrivacyLedger | None
    patients: Patients | None = field(default=None, repr=False)

    @property
    def job(self) -> Job:
        """The run."""
        return self.site.job

    def train(self, state: ModelState, number: int) -> ClientUpdate:
        """The steps of round ``number`` from this state; the ledger is charged before any data is read."""
        job = self.job
        ledger = self.ledger if self.plan.step is not None else None  # without, the sum is what is charged
        own, begin, model = self.own_before(number), state, state.hash()
        if own is not None:
            begin = job.setup.personalisation.begin(state, own.state, self.site.own_names)
            model = hashlib.sha256(model + begin.hash()).digest()  # the sum follows from both
        if ledger is not None:
            release = secret_key(job, "release", self.client, number, model)
            ledger.begin_round(job.run_id, number, self.plan.steps_per_round, release=release)
        sample, noise, views = generators(job, self.client, number, model, self.site.noise)
        update = job.setup.trainer.train(
            module=self.site.module(),
            objective=self.site.prepared.objective,
            inputs=self.inputs,
            labels=self.labels,
            plan=self.plan,
            state=begin,
            sample_generator=sample,
            noise_stream=noise,
            device=torch.device(job.setup.device),
            proximal_mu=job.setup.federation.pull or job.setup.personalisation.pull,
            anchor=None if begin is state else state,
            view_generator=views,
            patients=self.patients,
            first_step=(number - 1) * self.plan.steps_per_round,
        )
        if ledger is not None:
            ledger.commit_round(job.run_id, number)
        if job.setup.personalisation.keeps_own:
            self.keep(own, update.state, number)
        return update

    @property
    def folder(self) -> Path:
        """Where what is this hospital's alone lies."""
        return hospital_folder(self.job.folder, self.client)

    def own_before(self, number: int) -> Kept | None:
        """What it kept of its own model before round ``number``; None where it keeps none, or in its first round."""
        if not self.job.setup.personalisation.keeps_own:
            return None
        found = kept_before(self.folder, number)
        if found is None and number > 1 and self.job.resumed:
            log.warning("client %d: %s has no model of an earlier round; it begins from the shared one",
                        self.client, self.folder)  # fmt: skip
        return found

    def keep(self, before: Kept | None, state: ModelState, number: int) -> None:
        """Keep what a round ended in, and its running average."""
        decay, average = self.job.setup.trainer.ema_decay**self.plan.steps_per_round, state.without_momentum()
        if before is not None:
            mixed = decay * before.average.parameters + (1 - decay) * state.parameters
            average = ModelState(state.layout, mixed.astype(state.parameters.dtype))
        keep(self.folder, number, Kept(state, average))


def generators(
    job: Job, client: int, number: int, model: bytes, health: NoiseHealth
) -> tuple[torch.Generator, NoiseStream, torch.Generator]:
    """What the client samples by, its noise, and what it draws views by in one round, at this hash of a model.

    Streams that share nothing. Who knows the sampling loses what it amplifies, so it is as secret as the noise.
    """
    sampling, noise, views = (
        secret_key(job, purpose, client, number, model) for purpose in ("sampling", "noise", "views")
    )
    return keyed_generator(sampling), NoiseStream(noise, health.of(number, client)), keyed_generator(views)


def config_of(content: RecordDict) -> ConfigRecord:
    """The message's settings; raises ProtocolError where it has none."""
    config = content.get("config")
    if not isinstance(config, ConfigRecord):
        raise ProtocolError(Reason.MALFORMED, SERVER, "a message without its record config")
    return config


def data_of(content: RecordDict) -> bytes:
    """The bytes of the protocol's own message."""
    data = config_of(content).get("data")
    if not isinstance(data, bytes):
        raise ProtocolError(Reason.MALFORMED, SERVER, "a message without bytes as its data")
    return data


def round_of(job: Job, content: RecordDict) -> int:
    """Which round of the plan a plain message asks for, counted from 1."""
    return _in_plan(job, [config_of(content).get("server-round")], 1)[0]


def position_of(job: Job, content: RecordDict) -> Position:
    """Which round and attempt of the plan a message asks for."""
    position = config_of(content).get("position")
    if not isinstance(position, list) or len(position) != 2:
        raise ProtocolError(Reason.MALFORMED, SERVER, "a position that is not a round and an attempt")
    return Position(*_in_plan(job, position, attempts_of(job)))


def model_of(job: Job, content: RecordDict) -> ModelState:
    """The model in the message, which must have exactly the layout, type and size that is trained here."""
    try:
        return from_record(content.get("arrays"), job.layout, momentum=job.sends_momentum)
    except PayloadError:
        raise ProtocolError(
            Reason.MODEL, SERVER, "its tensors are not those of the model that is configured here"
        ) from None


def _in_plan(job: Job, position: Sequence[object], attempts: int) -> list[int]:
    numbers = [value for value in position if type(value) is int]
    rounds = job.setup.federation.num_rounds
    limits = ((1, rounds), (0, attempts - 1))
    if len(numbers) < len(position) or not all(
        low <= number <= high for number, (low, high) in zip(numbers, limits, strict=False)
    ):
        raise ProtocolError(
            Reason.POSITION, SERVER, f"round and attempt {list(position)} of {rounds} rounds with {attempts} attempts"
        )
    return numbers
