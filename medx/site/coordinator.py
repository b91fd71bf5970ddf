"""The coordinator's side of a study: it asks the hospitals who they are, runs the rounds, and collects receipts."""

import json
import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from medx.aggregation.keys import verified
from medx.federation.checkpoint import ServerState
from medx.federation.flower import to_record
from medx.federation.plain_rounds import RoundAborted
from medx.federation.prepared import Prepared
from medx.federation.replies import Code, Failure, ReplyError, ask, config_of, first_of, integer_of, refuse_exhausted
from medx.federation.server import Server
from medx.federation.setup import Job
from medx.federation.summed_rounds import SumRounds
from medx.federation.sums import Position
from medx.output import say
from medx.results import RoundRecord
from medx.site.answering import CHALLENGE, SIGNED, signed_part
from medx.site.consortium import Consortium, canonical, is_signed
from medx.site.flower import Patient
from medx.site.study import Study

log = logging.getLogger(__name__)
LONGEST = 100_000  # characters of a receipt or report
RECEIPT_TRIES = 3
AGAIN = 2.0  # seconds until nodes that were silent, or not there, are asked once more


class SiteServer(Server):
    """The rounds with hospitals elsewhere: a node is a hospital by its signature, and what it spent is counted here."""

    def __init__(
        self,
        job: Job,
        study: Study,
        consortium: Consortium,
        on_round: Callable[[RoundRecord], None],
        prepared: Prepared | None,
        *,
        patience: float,
    ) -> None:
        super().__init__(job, self.asked_for, on_round, None, prepared)
        self.study = study
        self.consortium = consortium
        self.patience = patience
        self.begun: dict[int, int] = {}  # releases that hospitals had begun when they came
        self.nodes: dict[int, int] = {}
        self.grid: Patient | None = None
        self._charged: Mapping[int, int] = {}

    def asked_for(self, answered: dict[int, int], among: Collection[int] | None = None) -> dict[int, int]:
        """Releases by hospital, at the most: those it came with, and as many as it was asked for since.

        A hospital that is away when a study is gone on with may have been asked just before the server was stopped:
        all that it has reserved is counted for it, which is as much as any ledger lets its hospital begin.
        """
        assert self.grid is not None
        counts = {}
        for plan in self.job.plan.clients:
            asked = self.grid.asked.get(self.nodes.get(plan.client, 0), 0) * self.job.plan.events_per_round(plan)
            known, most = self.begun.get(plan.client, 0) + asked, self.job.plan.reserved_events(plan)
            if plan.client not in self.nodes and self.job.resumed:
                known = most
            counts[plan.client] = min(max(known, answered.get(plan.client, 0)), most)
        return counts

    def rounds(self, grid: Grid, server: ServerState) -> Any:
        """As ever, on a grid that is patient."""
        assert isinstance(grid, Patient)
        self.grid, self._charged = grid, server.charged
        return super().rounds(grid, server)

    def identify(self, grid: Grid) -> dict[int, int]:
        """Which node is which hospital: proved by a signature over study, challenge and node; waits for who is late."""
        expected = len(self.study.hospitals)
        deadline, heard = time.monotonic() + self.patience, set[int]()
        told: list[Failure] = []
        say(f"waiting for {expected} hospitals")
        while len(self.nodes) < expected:
            nodes = [node for node in grid.get_node_ids() if node not in heard]
            failed = self._ask_who(grid, nodes)
            told += failed
            heard |= set(self.nodes.values()) | {failure.client for failure in failed if failure.code != Code.SILENT}
            if len(heard) >= expected or time.monotonic() > deadline:
                break
            time.sleep(AGAIN)
        for failure in told:
            log.warning("a node is not taken: %s", failure)
        refuse_exhausted(expected, told, 0)
        needed = min(expected, max(self.job.setup.federation.min_clients, self.engine.least))
        if len(self.nodes) < needed:
            raise RoundAborted(f"only {len(self.nodes)} of {expected} hospitals are there{first_of(told)}")
        return self.nodes

    def _ask_who(self, grid: Grid, nodes: list[int]) -> list[Failure]:
        """Ask these nodes, each with a challenge of its own; whoever proves to be a hospital is noted."""
        challenges = {node: secrets.token_bytes(CHALLENGE) for node in nodes}
        charged = [self._charged.get(number, 0) for number in range(len(self.study.hospitals))]

        def read(node: int, content: RecordDict) -> None:
            client = integer_of(config_of(content, "client"), "client")
            proof = config_of(content, "proof")
            begun, signature, reached = integer_of(proof, "begun"), proof.get("signature"), proof.get("reached")
            if not 0 <= client < len(self.study.hospitals) or client in self.nodes or begun < 0:
                raise ReplyError(f"node {node} claims to be hospital {client}, which is none or is there already")
            if (
                not isinstance(reached, list)
                or [type(each) for each in reached] != [int, int]
                or min(int(each) for each in reached) < 0
            ):
                raise ReplyError(f"node {node} does not say which round and attempt it has reached")
            said = canonical("node", [self.study.digest, challenges[node].hex(), node, client, begun, reached])
            if not isinstance(signature, bytes) or not verified(self._identity(client), said, signature):
                raise ReplyError(f"node {node} has no signature of hospital {self.study.hospitals[client].name}")
            self.nodes[client], self.begun[client] = node, begun
            if isinstance(self.engine, SumRounds):
                self.engine.reached[client] = Position(*reached)

        messages = [
            Message(RecordDict({"config": ConfigRecord({"challenge": challenge, "charged": charged})}), node, "query")
            for node, challenge in challenges.items()
        ]
        _, failed = ask(grid, messages, {node: node for node in nodes}, None, read)
        return failed

    def _identity(self, client: int) -> bytes:
        member = self.consortium.hospitals[self.consortium.number(self.study.hospitals[client].name)]
        return bytes.fromhex(str(member.identity))

    def genuine(self, answer: Message) -> bool:
        """Whether a known node's answer bears its hospital's signature; an error, or a node unknown yet needs none."""
        node = answer.metadata.src_node_id
        client = next((client for client, known in self.nodes.items() if known == node), None)
        if client is None or not answer.has_content():
            return True
        record = answer.content.get(SIGNED)
        signature = record.get("signature") if isinstance(record, ConfigRecord) else None
        said = signed_part(self.study.digest, node, answer.metadata.reply_to_message_id, answer.content)
        if isinstance(signature, bytes) and verified(self._identity(client), said, signature):
            return True
        log.warning("an answer of node %s was dropped: it is not signed by %s", node, self.study.hospitals[client].name)
        return False

    def receipts(self) -> dict[int, "Receipt"]:
        """What each hospital signs that it has spent; a hospital that gives none is told in the log.

        Who does not answer is asked again: its executor or node may be on its way back.
        """
        found: dict[int, Receipt] = {}

        def read(client: int, content: RecordDict) -> None:
            record = config_of(content, "receipt")
            most = self.job.plan.reserved_events(self.job.plan.clients[client]) if self.job.plan.private else 0
            found[client] = read_receipt(record, self.study, client, self._identity(client).hex(), most)

        for tries in range(RECEIPT_TRIES):
            missing = {client: node for client, node in self.nodes.items() if client not in found}
            failed = self._ask(missing, "query.receipt", RecordDict(), read)
            for failure in failed:
                log.warning("no receipt: %s", failure)
            if tries == RECEIPT_TRIES - 1 or not {each.code for each in failed} & {Code.SILENT, Code.FAILED}:
                break
            time.sleep(AGAIN)
        return dict(sorted(found.items()))

    def reports(self, state: ServerState) -> dict[int, dict[str, Any]]:
        """Metrics of the averaged model on hospitals' own images, from those that return them."""
        found: dict[int, dict[str, Any]] = {}

        def read(client: int, content: RecordDict) -> None:
            found[client] = read_report(config_of(content, "report"))

        content = RecordDict({"arrays": to_record(state.average)})
        for failure in self._ask(self.nodes, MessageType.EVALUATE, content, read):
            log.info("no report: %s", failure)
        return dict(sorted(found.items()))

    def _ask(
        self, nodes: Mapping[int, int], kind: str, content: RecordDict, read: Callable[[int, RecordDict], None]
    ) -> list[Failure]:
        assert self.grid is not None
        messages = [Message(content, node, kind) for node in nodes.values()]
        _, failed = ask(self.grid, messages, {node: client for client, node in nodes.items()}, None, read)
        return failed


@dataclass(frozen=True)
class Receipt:
    """What a hospital has begun of a study, by its ledger, with its signature (hex) over that."""

    hospital: str
    steps: int
    epsilon: float | None
    signature: str
    said: dict[str, Any] = field(repr=False)


def read_receipt(record: ConfigRecord, study: Study, client: int, identity: str, most: int) -> Receipt:
    """The receipt in a hospital's reply; raises ReplyError unless it is signed by it, of this study, and possible."""
    try:
        said = json.loads(str(record.get("receipt"))[:LONGEST])
        signature = str(record.get("signature"))
        receipt = Receipt(str(said["hospital"]), said["steps"], said["epsilon"], signature, said)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ReplyError(f"hospital {client}: no receipt") from None
    name = study.hospitals[client].name
    if not is_signed(identity, canonical("receipt", said), signature):
        raise ReplyError(f"hospital {name}: its receipt is not signed by it")
    epsilon = receipt.epsilon
    if (receipt.hospital, said.get("study")) != (name, study.digest) or type(receipt.steps) is not int:
        raise ReplyError(f"hospital {name}: a receipt of another study or hospital")
    if not 0 <= receipt.steps <= most or not (epsilon is None or (type(epsilon) is float and 0 <= epsilon < math.inf)):
        raise ReplyError(f"hospital {name}: a receipt of {receipt.steps} steps and epsilon {epsilon}")
    return receipt


def read_report(record: ConfigRecord) -> dict[str, Any]:
    """Metrics and counts of a hospital's own images; raises ReplyError for anything else than numbers by name."""
    try:
        said = json.loads(str(record.get("report"))[:LONGEST])
        metrics, counts = said["metrics"], said["counts"]
        numbers = [*metrics.values(), *counts.values()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ReplyError("no report") from None
    if not all(value is None or type(value) in (int, float) for value in numbers) or len(numbers) > 1000:
        raise ReplyError("a report of something else than numbers")
    return {"metrics": metrics, "counts": counts}


def home() -> Path:
    """The coordinator's folder, as the process that starts the server has it."""
    return Path(os.environ["MEDX_COORDINATOR"])
