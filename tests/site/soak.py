"""A study on real nodes through random faults, and whether anything was lost: ``make soak``.

Executors, nodes and the run's server are killed (SIGKILL) or frozen at random moments, by a seed, one by one or all of
them and the SuperLink at once, and started again; with ``--cut`` each hospital is in a network namespace of its own,
whose wire is cut and healed. At the end every ledger shows what its hospital signed for and no more than its budget,
the result no less, every audit log is whole, the last round was reached, and no executor's memory has grown.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from medx.federation.checkpoint import load_checkpoint
from medx.privacy.accounting import epsilon_spent
from medx.privacy.ledger import PrivacyLedger
from medx.results import ExperimentResult
from medx.site.audit import verify
from medx.site.conduct import run_folder
from medx.site.consortium import Consortium
from medx.site.processes import HERE, is_open, supernode_command
from medx.site.site_config import SiteConfig
from medx.site.study import Study
from medx.site.submitting import submit
from tests.site import wires
from tests.site.consortium_example import Example, approve, make_example, signed, study_of
from tests.site.test_deployment import free_port, wait_until

NAMES = ("north", "south", "west", "east", "centre")
TOTAL = 30.0
DELTA = 1e-5
REFUSED_FOR = 65.0  # seconds in which a node that was killed is not let in again
FAULTS = ("kill executor", "kill executor", "freeze executor", "kill node", "kill server", "kill all")
FROZEN = (5, 5, 80)  # seconds; Flower gives a task up after 60
CUT = (5, 20, 45)  # seconds
MOST_TRIES = 40
KINDS = {
    "fedavg": ("privacy=distributed_dp", "aggregation=secure"),
    "fedbuff": (
        "federation=fedbuff",
        "federation.buffer_size=2",
        "privacy=local_dp",
        "trainer.expected_batch_size=null",
    ),
}


class Kept:
    """A process that is started again wherever it ends."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.command, self.log, self.over = command, log, False
        self.process = self.start()
        threading.Thread(target=self.keep, daemon=True).start()

    def start(self) -> subprocess.Popen:
        with self.log.open("ab") as file:
            return subprocess.Popen(self.command, stdout=file, stderr=subprocess.STDOUT)

    def keep(self) -> None:
        while not self.over:
            self.process.wait()
            time.sleep(2)
            if not self.over:
                self.process = self.start()

    def end(self) -> None:
        self.over = True
        self.process.kill()

    @property
    def megabytes(self) -> float:
        """Resident memory."""
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0.0
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass
class Running:
    """A consortium's processes, and what was done to them."""

    example: Example
    coordinator: Kept
    executors: list[Kept]
    nodes: list[Kept]
    wires: list[wires.Wire]
    over: threading.Event = field(default_factory=threading.Event)
    counts: Counter[str] = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)

    def trouble(self, seed: int, every: float, most: int) -> None:
        """Faults until it is over; one node at a time, since one that was killed stays away for a minute."""
        draw, node_free = random.Random(seed), 0.0
        faults = (*FAULTS, "cut network", "cut network") if self.wires else FAULTS
        self.over.wait(30)
        while self.counts.total() < most and not self.over.wait(draw.expovariate(1 / every)):
            self.memory.append(max(executor.megabytes for executor in self.executors))
            fault, victim = draw.choice(faults), draw.randrange(len(self.executors))
            if fault in ("kill node", "kill all"):
                if time.monotonic() < node_free:
                    continue
                node_free = time.monotonic() + REFUSED_FOR
            self.counts[fault] += 1
            print(f"{time.strftime('%H:%M:%S')} {fault} {self.example.names[victim]}", flush=True)
            self.strike(fault, victim, draw)

    def strike(self, fault: str, victim: int, draw: random.Random) -> None:
        if fault == "kill executor":
            self.executors[victim].process.kill()
        elif fault == "freeze executor":
            frozen = self.executors[victim].process
            frozen.send_signal(signal.SIGSTOP)
            self.over.wait(draw.choice(FROZEN))
            frozen.send_signal(signal.SIGCONT)
        elif fault == "kill node":
            self.nodes[victim].process.kill()
        elif fault == "cut network":
            self.wires[victim].cut()
            self.over.wait(draw.choice(CUT))
            self.wires[victim].heal()
        elif fault == "kill server":
            kill_of(self.example.coordinator, "flwr-serverapp")
        else:
            for kept in (self.coordinator, *self.executors, *self.nodes):
                kept.process.kill()
            kill_of(self.example.coordinator, "")


def kill_of(coordinator: Path, what: str) -> None:
    """Kill what the coordinator of this folder has started and whose command has ``what`` in it; nobody else's."""
    mark = f"MEDX_COORDINATOR={coordinator.absolute()}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            own = mark in (process / "environ").read_bytes().split(b"\0")
            if own and what.encode() in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


def main() -> None:
    """Run it and print what came of it; ends with 1 where something was lost, or fewer faults happened than asked."""
    parser = argparse.ArgumentParser(prog="python -m tests.site.soak", description=__doc__)
    parser.add_argument("--hospitals", type=int, default=len(NAMES), choices=range(3, len(NAMES) + 1))
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--federation", choices=("fedavg", "fedbuff"), default="fedavg")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=float, default=25.0, help="seconds between two faults, in the mean")
    parser.add_argument("--faults", type=int, help="as many, and then none; as long as it runs, if not given")
    parser.add_argument("--cut", action="store_true", help="cut networks too: hospitals in namespaces, as root")
    options = parser.parse_args()
    if options.cut:
        wires.enter("tests.site.soak")
    most = sys.maxsize if options.faults is None else options.faults
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        names, host = NAMES[: options.hospitals], wires.HUB if options.cut else HERE
        example = make_example(Path(folder), free_port(len(names)), names=names, host=host, total_epsilon=TOTAL)
        for name in names:
            if options.federation == "fedbuff":
                trusted = example.consortium.coordinator
                example.set_policy(name, total_epsilon=TOTAL, secure_aggregation=False, trusted_server=trusted)
        running = start(example, stack, cut=options.cut)
        study = study_of(example, *KINDS[options.federation], "trainer.sampling_probability=0.3", "noise=system",
                         f"federation.num_rounds={options.rounds}", "privacy.epsilon=8",
                         f"privacy.spare_rounds={options.rounds}", rehearsal=False)  # fmt: skip
        approve(example, study)
        plague = threading.Thread(target=running.trouble, args=(options.seed, options.every, most))
        plague.start()
        began = time.monotonic()
        try:
            result, tries = until_finished(example, study)
        finally:
            running.over.set()
            plague.join()
        buffered = options.federation == "fedbuff"  # how many its updates are depends on who was faster
        lost = losses(example, study, result, None if buffered else options.rounds)
        if options.faults is not None and running.counts.total() < options.faults:
            lost.append(f"{running.counts.total()} faults of {options.faults}: it needs more rounds")
        tell(running, result, tries, time.monotonic() - began, lost)
    sys.exit(1 if lost else 0)


def tell(running: Running, result: ExperimentResult, tries: int, took: float, lost: Sequence[str]) -> None:
    memory, counts = running.memory or [0.0], running.counts
    grown = memory[-1] - memory[len(memory) // 4] if len(memory) > 8 else 0.0
    print(f"{len(result.rounds)} rounds in {took:.0f} s, {tries} submissions, {counts.total()} faults {dict(counts)}")
    print(f"releases by hospital {[client.steps for client in result.privacy.clients]}")
    print(f"epsilon {result.privacy.epsilon:.3f}; largest executor {max(memory):.0f} MB, grown by {grown:.0f} MB")
    print("\n".join(lost) or "nothing was lost")


def start(example: Example, stack: ExitStack, *, cut: bool = False) -> Running:
    """The coordinator, and a node and an executor for each hospital, with ``cut`` each in a namespace of its own."""
    listen = "0.0.0.0" if cut else HERE
    command = [sys.executable, "-m", "medx.site", "coordinator", "start", str(example.coordinator), "--listen", listen]
    coordinator = Kept(command, example.folder / "coordinator.log")
    stack.callback(kill_of, example.coordinator, "")
    stack.callback(coordinator.end)
    wait_until(lambda: "is open to" in coordinator.log.read_text(errors="replace"))
    running = Running(example, coordinator, [], [], [])
    for number, name in enumerate(example.names):
        inside: list[str] = []
        if cut:
            running.wires.append(wires.Wire(number))
            stack.callback(running.wires[-1].end)
            inside = running.wires[-1].inside
        kit = example.kit(name)
        node = [*inside, *supernode_command(kit, SiteConfig.load(kit), Consortium.load(kit))]
        own = [*inside, sys.executable, "-m", "medx.site", "site", "start", str(kit), "--only", "executor"]
        running.nodes.append(Kept(node, example.folder / f"{name}.node.log"))
        running.executors.append(Kept(own, example.folder / f"{name}.log"))
        stack.callback(running.nodes[-1].end)
        stack.callback(running.executors[-1].end)
    return running


def until_finished(example: Example, study: Study) -> tuple[ExperimentResult, int]:
    """Submit the study until it has finished; how often it took."""
    (example.coordinator / "coordinator.yaml").write_text("timeout: 60\npatience: 90\n")
    for tries in range(1, MOST_TRIES + 1):
        wait_until(lambda: is_open(example.coordinator, HERE, example.consortium.port), 600)  # all may start at once
        try:
            result = submit(example.coordinator, signed(example, study))
        except Exception as error:
            print(f"submission {tries}: {error}", flush=True)
            continue
        print(f"submission {tries}: {result.status}, {len(result.rounds)} rounds; {result.error}", flush=True)
        if result.status == "finished":
            return result, tries
    raise SystemExit(f"not finished after {MOST_TRIES} submissions")


def losses(example: Example, study: Study, result: ExperimentResult, rounds: int | None) -> list[str]:
    """What does not agree, in words; ``rounds`` is how many there must be, None where that is not known before."""
    lost = [] if rounds in (None, len(result.rounds)) else [f"{len(result.rounds)} rounds of {rounds}"]
    signed_for = json.loads((run_folder(example.coordinator, study) / "receipts.json").read_text())
    receipts = {each["receipt"]["hospital"]: each["receipt"] for each in signed_for}
    answered = load_checkpoint(run_folder(example.coordinator, study) / "checkpoints").charged
    for number, name in enumerate(example.names):
        path = example.kit(name) / "ledger" / f"client_{number:04d}.sqlite"
        with closing(PrivacyLedger(path, create=False)) as ledger:
            executed, all_runs = ledger.executed(study.run), [entry.event for entry in ledger.entries()]
        steps, said = sum(count for _, count in executed), result.privacy.clients[number].steps
        if name not in receipts:
            lost.append(f"{name}: no receipt")
        elif receipts[name]["steps"] != steps:
            lost.append(f"{name}: its receipt has {receipts[name]['steps']} steps, its ledger {steps}")
        if steps < (least := answered.get(number, 0)):
            lost.append(f"{name}: it has answered for {least} steps, its ledger has {steps}")
        if epsilon_spent(all_runs, DELTA).value > TOTAL:
            lost.append(f"{name}: its ledger is beyond the budget")
        if said < steps or (result.privacy.epsilon or 0.0) * (1 + 1e-6) < epsilon_spent(executed, DELTA).value:
            lost.append(f"{name}: the result has {said} steps, its ledger {steps}")
        verify(example.kit(name) / "audit.jsonl")
    return lost


if __name__ == "__main__":
    main()
