"""Damaged messages for everybody who reads one: no exception but ours, and one liar never ends a round.

    python -m tests.fuzz --seconds 300 --seed 0

Every input starts from an honest one, of which a few places are changed. A failure prints what was fed, and the seed
and number that make it again.
"""

import argparse
import dataclasses
import json
import logging
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict

from medx.aggregation import messages as wire
from medx.aggregation.coordinator import Coordinator
from medx.aggregation.journal import ParticipantState
from medx.aggregation.messages import STAGES
from medx.aggregation.participant import Participant
from medx.aggregation.roster import Roster, simulated_roster
from medx.federation.flower import from_record, to_record
from medx.federation.hospital_app import client_app
from medx.federation.replies import Code
from medx.federation.setup import Job
from medx.runtime.in_process import Turns
from medx.schema import LedgerError, MedxError
from tests.aggregation.conftest import parameters
from tests.damage import TEXTS, WHOLE, Damage
from tests.federation.sum_examples import LossyGrid, forget, make, model_of, never, server_of, site_of

MODEL = b"m" * 32
SERVER = "server"


class Liar(LossyGrid):
    """A grid whose client ``who`` answers with damage in the messages of ``kind``, or in all of them."""

    def __init__(self, job: Any, turns: Turns) -> None:
        super().__init__(job, turns, never, never)
        self.damage: Damage | None = None
        self.who, self.kind = 0, ""

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Iterator[Message]:
        for message in messages:
            for reply in self.deliver([message]):
                hit = reply.metadata.src_node_id == self.who + 2 and not reply.has_error()
                if self.damage and hit and message.metadata.message_type.endswith(self.kind):
                    yield from self.damage.reply(reply)
                else:
                    yield reply


class Fuzz:
    """All targets on one small roster and three small jobs."""

    def __init__(self, folder: Path, pool: ThreadPoolExecutor) -> None:
        self.folder = folder
        self.roster, self.identities = simulated_roster(parameters(), 4, 3, 3)
        self.text = json.loads(self.roster.model_dump_json())
        self.path = folder / "roster.json"
        self.words = np.arange(self.roster.dimension, dtype=np.uint32)
        self.seen: dict[tuple[str, str], bytes] = {}
        self.honest_flow()
        turns = Turns(pool, pool)
        self.jobs = {
            "plain": make(folder / "plain", privacy="none", secure=False, rounds=2),
            "trusted": make(folder / "trusted", secure=False, rounds=2, aggregation={"minimum_survivors": 3}),
            "secure": secure_job(folder / "secure"),
        }
        # A message that says a late round ends a hospital's part in all before it: so those go to others.
        self.addressed = self.jobs | {"secure": secure_job(folder / "addressed")}
        self.grids = {name: Liar(job, turns) for name, job in self.jobs.items()}
        self.servers = {name: server_of(job) for name, job in self.jobs.items()}
        self.arrays = {name: to_record(model_of(job)) for name, job in self.jobs.items()}
        self.state = dataclasses.replace(model_of(self.jobs["plain"]), momentum=np.ones(17, np.float32))
        self.record = to_record(self.state)
        self.rounds = 0

    def close(self) -> None:
        for job in (*self.jobs.values(), self.addressed["secure"]):
            forget(job)

    def honest_flow(self, damage: Damage | None = None, *, of_server: bool = False) -> None:
        """One attempt; with damage, of one client's messages or of what the server sends to one client."""
        clients = [Participant(self.roster, i, self.identities[i]) for i in range(4)]
        server, liar = Coordinator(self.roster, 1, 0, MODEL), damage.random.randrange(4) if damage else -1
        hit = damage.one(STAGES) if damage else ""
        request: bytes | dict[int, bytes] = server.begin()
        refused: MedxError | None = None
        for stage in STAGES:
            for number in server.participants:
                message = request[number] if isinstance(request, dict) else request
                damaged = damage is not None and number == liar and stage == hit
                if damaged and of_server:
                    message = self.altered(damage, message)
                try:
                    reply = self.answer(clients[number], stage, message)
                    if damage is None:
                        self.seen[stage, "down"], self.seen[stage, "up"] = message, reply
                    if damaged and not of_server:
                        reply = self.altered(damage, reply)
                    getattr(server, f"receive_{stage}")(number, reply)
                except MedxError as error:
                    refused = error
            if stage != "unmask":
                request = getattr(server, f"close_{stage}")()
        total = server.finish()
        if hit != "masked" or of_server:  # words cannot be checked, all else can
            expected = self.words * np.uint32(len(server.survivors))
            assert np.array_equal(total, expected), f"a wrong sum after damage at {hit}"
        if refused is not None:
            raise refused

    def answer(self, client: Participant, stage: str, message: bytes) -> bytes:
        if stage == "keys":
            return client.begin(message, MODEL)
        if stage == "masked":
            return client.mask(message, self.words.copy())
        return {"shares": client.share, "confirm": client.confirm, "unmask": client.unmask}[stage](message)

    def altered(self, damage: Damage, data: bytes) -> bytes:
        (kind,) = (kind for kind in KNOWN if data[:4] == kind.KIND)
        return damage.message(kind.from_bytes(data, SERVER))

    def protocol_client(self, damage: Damage) -> None:
        """Damaged messages to one party of the protocol."""
        self.honest_flow(damage, of_server=True)

    def protocol_server(self, damage: Damage) -> None:
        self.honest_flow(damage)

    def codec(self, damage: Damage) -> None:
        data = damage.one(self.seen.values())
        kind = (
            damage.one((*KNOWN, ParticipantState))
            if damage.often(0.2)
            else next(k for k in KNOWN if data[:4] == k.KIND)
        )
        kind.from_bytes(damage.data(data), 3, damage.one((None, kind.largest(4, 17, 300))))

    def roster_file(self, damage: Damage) -> None:
        values = dict(self.text)
        for key in damage.random.sample(sorted(values), damage.random.randrange(3)):
            old = values.pop(key)
            if key == "public_keys" and damage.often(0.7):
                values[key] = [
                    damage.data(text.encode()).decode("latin-1") if damage.often(0.3) else text for text in old
                ]
            elif damage.often(0.8):
                values[key] = damage.one(
                    (damage.one(WHOLE), damage.one(TEXTS), 1e400, -0.5, None, True, [old], {"x": old})
                )
        text = json.dumps(values).encode()
        if damage.often(0.1):
            text = text.replace(b"17", b"1" * damage.one((300, 5000)))
        self.path.write_bytes(damage.data(text) if damage.often(0.5) else text)
        Roster.load(self.path).check()

    def payload(self, damage: Damage) -> None:
        state = from_record(damage.arrays(self.record), self.state.layout, momentum=True)
        assert [vector.shape for vector in state.vectors] == [(17,)] * 2
        assert len(state.hash()) == 32

    def plain_round(self, damage: Damage) -> None:
        self.one_round("plain", "train", damage, 1)

    def start(self, damage: Damage) -> None:
        grid = self.lying("secure", "query", damage)
        try:
            nodes = self.servers["secure"].identify(grid)
        except LedgerError:
            return  # before it begins, a budget that is spent refuses a run
        elsewhere = {client for client in range(5) if nodes.get(client) != client + 2} - {grid.who}
        assert len(nodes) >= 4, nodes
        assert len(elsewhere) <= 1, nodes  # whose place the liar was first to claim

    def trusted_sum(self, damage: Damage) -> None:
        self.one_round("trusted", "train.sum", damage, 1)

    def secure_sum(self, damage: Damage) -> None:
        self.rounds += 1
        self.servers["secure"].engine.out.clear()  # type: ignore[attr-defined]
        self.one_round("secure", f"train.{damage.one(STAGES)}", damage, self.rounds)

    def lying(self, name: str, kind: str, damage: Damage) -> Liar:
        grid = self.grids[name]
        grid.damage, grid.who, grid.kind = damage, damage.random.randrange(5), kind
        return grid

    def one_round(self, name: str, kind: str, damage: Damage, number: int) -> None:
        """A round with one liar among five, of whom three are enough: it ends well."""
        server, grid = self.servers[name], self.lying(name, kind, damage)
        state = dataclasses.replace(server.initial_state(), round=number - 1)
        outcome = server.engine.run(grid, {client: client + 2 for client in range(5)}, state, number)
        assert outcome.clients >= 4, outcome.clients

    def client_messages(self, damage: Damage) -> None:
        """Damaged requests to a ClientApp, which answers or refuses."""
        name = damage.one(self.jobs)
        job, kind = (
            self.addressed[name],
            damage.one(("query", "train", "train.sum", *(f"train.{stage}" for stage in STAGES))),
        )
        stage = kind.rpartition(".")[2]
        data = self.seen.get((stage, "down"), b"")
        config = ConfigRecord({"data": data, "position": [1, 0], "server-round": 1})
        content = damage.content(RecordDict({"arrays": self.arrays[name], "config": config}))
        client = damage.random.randrange(5)
        context = Context(1, client + 2, {"partition-id": client, "num-partitions": 5}, RecordDict(), {})
        try:
            reply = client_app(site_of(job))(Message(content, client + 2, kind), context)
        except ValueError as error:
            if "function registered with name" not in str(error):
                raise
            return  # Flower's words for a type of message that this client does not know
        if reply.has_error() and reply.error.code < Code.FAILED:
            raise AssertionError(f"an error that is not ours: {reply.error}")


def secure_job(folder: Path) -> Job:
    """Five hospitals, of whom three are enough."""
    return make(folder, privacy="none", rounds=100_000, aggregation={"threshold": 3})


KNOWN: tuple[Any, ...] = (
    wire.Begin,
    wire.Keys,
    wire.KeyList,
    wire.Shares,
    wire.Inbox,
    wire.Masked,
    wire.Survivors,
    wire.Confirm,
    wire.UnmaskRequest,
    wire.Unmask,
)
TARGETS: dict[str, Callable[[Fuzz, Damage], None]] = {
    "codec": Fuzz.codec,
    "roster": Fuzz.roster_file,
    "payload": Fuzz.payload,
    "client": Fuzz.protocol_client,
    "server": Fuzz.protocol_server,
    "start": Fuzz.start,
    "plain round": Fuzz.plain_round,
    "trusted sum": Fuzz.trusted_sum,
    "secure sum": Fuzz.secure_sum,
    "client's messages": Fuzz.client_messages,
}
NEVER_REFUSED = ("start", "plain round", "trusted sum", "secure sum")  # one liar ends none of them


def fuzz(seconds: float, seed: int, only: str | None = None) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Feed damage for so long, each target the same time; returns counts by (target, outcome) and what went wrong."""
    counts: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        fuzzed = Fuzz(Path(folder), pool)
        spent = dict.fromkeys([only] if only else TARGETS, 0.0)
        try:
            while min(spent.values()) < seconds / len(spent) and len(wrong) < 20:
                name = min(spent, key=lambda name: spent[name])
                number, started = sum(counts[name, kind] for kind in ("read", "refused", "wrong")), time.perf_counter()
                counts[name, outcome_of(fuzzed, name, f"{seed}/{name}/{number}", wrong)] += 1
                spent[name] += time.perf_counter() - started
        finally:
            fuzzed.close()
            logging.disable(logging.NOTSET)
    return counts, wrong


def outcome_of(fuzzed: Fuzz, name: str, key: str, wrong: list[str]) -> str:
    """Whether this input was read, refused by an error of ours, or wrong."""
    try:
        TARGETS[name](fuzzed, Damage(key))
    except MedxError as error:
        if name not in NEVER_REFUSED:
            return "refused"
        wrong.append(f"{key}: one liar ended it: {type(error).__name__}: {error}")
    except Exception as error:  # what is looked for
        wrong.append(f"{key}: {type(error).__name__}: {str(error)[:300]}\n{traceback.format_exc(limit=-6)}")
    else:
        return "read"
    return "wrong"


def main() -> int:
    """Print one line of counts; 1 and what went wrong where anything did."""
    parser = argparse.ArgumentParser("tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=TARGETS, help="one target")
    options = parser.parse_args()
    counts, wrong = fuzz(options.seconds, options.seed, options.only)
    names = dict.fromkeys(name for name, _ in counts)
    parts = [f"{n} {counts[n, 'read']}+{counts[n, 'refused']}" for n in names]
    print(f"seed {options.seed}: {counts.total()} inputs, {len(wrong)} wrong; read+refused: {', '.join(parts)}")
    print("\n".join(wrong), end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
