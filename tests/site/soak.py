"""A study on real nodes through random faults, and whether anything was lost: ``make soak``.

Executors, nodes and the run's server are killed (SIGKILL) or frozen at random moments, by a seed, and started again. At
the end every ledger shows what its hospital signed for and no more than its budget, every audit log is whole, the last
round was reached, and no executor's memory has grown.
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
from contextlib import ExitStack, closing
from pathlib import Path

from medx.privacy.accounting import epsilon_spent
from medx.privacy.ledger import PrivacyLedger
from medx.results import ExperimentResult
from medx.site.audit import verify
from medx.site.consortium import Consortium
from medx.site.processes import HERE, supernode_command
from medx.site.site_config import SiteConfig
from medx.site.study import Study
from medx.site.submitting import submit
from tests.site.consortium_example import Example, approve, make_example, signed, study_of
from tests.site.test_deployment import free_port, wait_until

NAMES = ("north", "south", "west", "east", "centre")
TOTAL = 30.0
REFUSED_FOR = 65.0  # seconds in which a node that was killed is not let in again
FAULTS = ("kill executor", "kill executor", "freeze executor", "kill node", "kill server")
MOST_TRIES = 40


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


def main() -> None:
    """Run it and print what came of it; ends with 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=float, default=25.0, help="seconds between two faults, in the mean")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        example = make_example(Path(folder), free_port(len(NAMES)), names=NAMES, total_epsilon=TOTAL)
        executors, nodes = start(example, stack)
        study = study_of(example, "privacy=distributed_dp", "aggregation=secure", "trainer.sampling_probability=0.3",
                         "noise=system", f"federation.num_rounds={options.rounds}", "privacy.epsilon=8",
                         f"privacy.spare_rounds={options.rounds}", rehearsal=False)  # fmt: skip
        approve(example, study)
        over, counts, memory = threading.Event(), Counter[str](), list[float]()
        plague = threading.Thread(
            target=trouble, args=(options, executors, nodes, over), kwargs={"counts": counts, "memory": memory}
        )
        plague.start()
        began = time.monotonic()
        result, tries = until_finished(example, study)
        over.set()
        plague.join()
        lost = losses(example, study, result, options.rounds)
        grown = memory[-1] - memory[len(memory) // 4] if len(memory) > 8 else 0.0
        took = time.monotonic() - began
        print(f"{len(result.rounds)} rounds in {took:.0f} s, {tries} submissions, faults {dict(counts)}")
        print(f"epsilon {result.privacy.epsilon:.3f}; largest executor {max(memory):.0f} MB, grown by {grown:.0f} MB")
        print("\n".join(lost) or "nothing was lost")
    sys.exit(1 if lost else 0)


def start(example: Example, stack: ExitStack) -> tuple[list[Kept], list[Kept]]:
    """The coordinator, and a node and an executor for each hospital."""
    command = [sys.executable, "-m", "medx.site", "coordinator", "start", str(example.coordinator), "--listen", HERE]
    log = example.folder / "coordinator.log"
    with log.open("wb") as file:
        coordinator = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    stack.callback(coordinator.terminate)
    wait_until(lambda: "is open to" in log.read_text(errors="replace"))
    executors, nodes = [], []
    for name in NAMES:
        kit = example.kit(name)
        node = Kept(
            supernode_command(kit, SiteConfig.load(kit), Consortium.load(kit)), example.folder / f"{name}.node.log"
        )
        own = [sys.executable, "-m", "medx.site", "site", "start", str(kit), "--only", "executor"]
        executor = Kept(own, example.folder / f"{name}.log")
        for kept in (node, executor):
            stack.callback(kept.end)
        nodes.append(node)
        executors.append(executor)
    return executors, nodes


def trouble(
    options: argparse.Namespace,
    executors: list[Kept],
    nodes: list[Kept],
    over: threading.Event,
    *,
    counts: Counter[str],
    memory: list[float],
) -> None:
    """Faults until it is over; one node at a time, since one that was killed stays away for a minute."""
    draw = random.Random(options.seed)
    node_free = 0.0
    over.wait(30)
    while not over.wait(draw.expovariate(1 / options.every)):
        memory.append(max(executor.megabytes for executor in executors))
        fault, victim = draw.choice(FAULTS), draw.randrange(len(executors))
        if fault == "kill node" and time.monotonic() < node_free:
            continue
        counts[fault] += 1
        if fault == "kill executor":
            executors[victim].process.kill()
        elif fault == "freeze executor":
            executors[victim].process.send_signal(signal.SIGSTOP)
            over.wait(5)
            executors[victim].process.send_signal(signal.SIGCONT)
        elif fault == "kill node":
            nodes[victim].process.kill()
            node_free = time.monotonic() + REFUSED_FOR
        else:
            subprocess.run(["pkill", "-9", "-f", "flwr-serverapp"], check=False)


def until_finished(example: Example, study: Study) -> tuple[ExperimentResult, int]:
    """Submit the study until it has finished; how often it took."""
    (example.coordinator / "coordinator.yaml").write_text("timeout: 60\npatience: 90\n")
    for tries in range(1, MOST_TRIES + 1):
        try:
            result = submit(example.coordinator, signed(example, study))
        except Exception as error:
            print(f"submission {tries}: {error}", flush=True)
            continue
        print(f"submission {tries}: {result.status}, {len(result.rounds)} rounds; {result.error}", flush=True)
        if result.status == "finished":
            return result, tries
    raise SystemExit(f"not finished after {MOST_TRIES} submissions")


def losses(example: Example, study: Study, result: ExperimentResult, rounds: int) -> list[str]:
    """What does not agree, in words."""
    lost = [] if len(result.rounds) == rounds else [f"{len(result.rounds)} rounds of {rounds}"]
    folder = example.coordinator / "runs" / study.digest[:16]
    receipts = {
        each["receipt"]["hospital"]: each["receipt"] for each in json.loads((folder / "receipts.json").read_text())
    }
    for number, name in enumerate(NAMES):
        with closing(
            PrivacyLedger(example.kit(name) / "ledger" / f"client_{number:04d}.sqlite", create=False)
        ) as ledger:
            executed = ledger.executed(study.run)
        steps = sum(count for _, count in executed)
        if name not in receipts:
            lost.append(f"{name}: no receipt")
        elif receipts[name]["steps"] != steps:
            lost.append(f"{name}: its receipt has {receipts[name]['steps']} steps, its ledger {steps}")
        if epsilon_spent(executed, 1e-5).value > TOTAL:
            lost.append(f"{name}: its ledger is beyond the budget")
        if result.privacy.clients[number].steps < steps:
            lost.append(f"{name}: the result has {result.privacy.clients[number].steps} steps, its ledger {steps}")
        verify(example.kit(name) / "audit.jsonl")
    return lost


if __name__ == "__main__":
    main()
