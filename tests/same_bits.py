"""Equal bits with another revision: ``make golden BASE=REV``, or ``python -m tests.same_bits REV``.

A change that is not numeric gives the same runs to the bit. About a dozen tiny configurations run here and in a
worktree of the other revision, on one machine, on one thread, with cold caches. What is compared of each: every tensor
of the last rounds' checkpoints and of the exported model, the result less times and paths, the rows of the privacy
ledgers, and the bytes on the wire (which the result has by round).
"""

import argparse
import hashlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from medx.schema import option_of
from tests.program import DATA, MODEL, SCATTERNET

TREE = Path(__file__).resolve().parent.parent
WORK = ("federation.num_clients=3", "federation.num_rounds=2", "device=cpu", "tracking=none", "noise=seed")
CNN = (*DATA, *MODEL, *WORK, "trainer.expected_batch_size=20", "trainer.local_steps=2")
FEATURES = (*DATA, *SCATTERNET, *WORK)
ONE_STEP = ("trainer.expected_batch_size=null", "trainer.sampling_probability=0.4", "trainer.local_steps=1")
DISTRIBUTED = ("privacy=distributed_dp", *ONE_STEP)
SWEEP = "-m"
STOPPED = "stop and resume"
CASES: dict[str, tuple[str, ...]] = {
    "scatternet local_dp": (*FEATURES, "trainer.expected_batch_size=20", "trainer.local_steps=2"),
    "scatternet distributed_dp": (*FEATURES, *DISTRIBUTED),
    "scatternet none": (*FEATURES, "privacy=none", "baseline=[local_only,centralized]"),
    "cnn local_dp": (*CNN, "partition=dirichlet", "partition.alpha=1"),
    "cnn distributed_dp secure": (*CNN, *DISTRIBUTED, "aggregation=secure"),
    "cnn distributed_dp trusted": (*CNN, *DISTRIBUTED, "aggregation=plain", "privacy.trusted_aggregator=true"),
    "cnn central_dp adaptive": (*CNN, "privacy=central_dp", "privacy.epsilon=100", "privacy.delta=0.01"),
    "cnn none fedadam": (*CNN, "privacy=none", "federation=fedadam", "federation.num_rounds=12", STOPPED),
    "cnn local_dp fedavgm": (*CNN, "federation=fedavgm", "federation.num_rounds=12", STOPPED),
    "cnn views": (*CNN, "trainer.augmentation=affine", "trainer.augmentation_multiplicity=2"),
    "resnet18": (*DATA, "model=resnet18", *WORK, "federation.num_rounds=1", "trainer.expected_batch_size=8",
                 "trainer.local_steps=1"),
    "selection": (*FEATURES, *DISTRIBUTED, "privacy.num_runs=2", "select=loss", "seed=0,1", "jobs=1",
                  "trainer.learning_rate_noise=0.1,0.2", SWEEP),
    "ray": (*CNN, "runtime=ray"),
}  # fmt: skip
VARYING = (
    "run",
    "started",
    "timing",
    "checkpoint",
    "tracking",
    "environment",
    "seconds",
    "cache",
    "roster_hash",
)  # times, places, keys
DIGEST = re.compile(r"\b[0-9a-f]{64}\b")  # in the statement: of a roster, whose keys are new in every simulation


def main() -> int:
    """Compare; exit code 1 where a bit differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.same_bits", description=__doc__)
    parser.add_argument("base", help="the revision to compare with")
    parser.add_argument("--only", default="", help="only the cases whose name has this in it")
    chosen = parser.parse_args()
    cases = [name for name in CASES if chosen.only in name]
    with worktree(chosen.base) as base, tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        trees = {"base": base, "here": TREE}
        found = {
            name: {side: pool.submit(bits, tree, Path(scratch) / side, name) for side, tree in trees.items()}
            for name in cases
        }
        differ = [name for name in cases if not tell(name, found[name]["base"].result(), found[name]["here"].result())]
    print(f"{len(cases) - len(differ)} of {len(cases)} configurations have the bits of {chosen.base}")
    return 1 if differ or not cases else 0


def tell(name: str, base: dict[str, str], here: dict[str, str]) -> bool:
    """Print a line for a configuration, and what differs; whether nothing does. New fields of a result move no bit."""
    wrong = sorted(key for key in base.keys() | here.keys() if base.get(key) != here.get(key))
    new = [key for key in wrong if key not in base and "result.json ." in key]
    wrong = [key for key in wrong if key not in new]
    digest = hashlib.sha256(json.dumps(here, sort_keys=True).encode()).hexdigest()[:16]
    fields = ", ".join(sorted({key.rpartition(".")[2] for key in new}))
    said = f"  (new fields: {fields})" if fields else ""
    print(f"{'DIFFERS' if wrong else 'equal  '}  {digest}  {len(here):4d} items  {name}{said}", flush=True)
    for key in wrong[:20]:
        print(f"           {key}: {base.get(key, 'missing')[:90]} -> {here.get(key, 'missing')[:90]}")
    return not wrong


@contextmanager
def worktree(revision: str) -> Iterator[Path]:
    """A checkout of the revision."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", path, revision], cwd=TREE, check=True)
        try:
            yield path
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", path], cwd=TREE, check=True)


def bits(tree: Path, folder: Path, name: str) -> dict[str, str]:
    """What is compared of one configuration under the code in ``tree``, by name."""
    work = folder / name.replace(" ", "-")
    work.mkdir(parents=True)
    run(tree, work, CASES[name])
    found: dict[str, str] = {}
    for path in sorted(work.rglob("*")):
        key = str(path.relative_to(work))
        if path.suffix == ".safetensors" and key.startswith("cache/"):  # under a key over the code that computed it
            found |= {f"{path.parent.name} {tensor} {digest}": digest for tensor, digest in tensors(path)}
        elif path.suffix == ".safetensors":
            found |= {f"{key} {tensor}": digest for tensor, digest in tensors(path)}
        elif path.name == "result.json":
            found |= {f"{key} {field}": text for field, text in leaves(json.loads(path.read_text()), "")}
        elif path.suffix == ".sqlite":
            found |= {f"{key} {row}": text for row, text in rows(path)}
    if not any(key.endswith("status") for key in found):
        raise SystemExit(f"{name}: no result under {tree}: {(work / 'log').read_text()[-500:]}")
    return found


def run(tree: Path, work: Path, overrides: tuple[str, ...]) -> None:
    """Run it as a person would; where it is to be stopped, after its second round, and then gone on with."""
    where = "hydra.sweep.dir=out" if SWEEP in overrides else "hydra.run.dir=out"
    given = [part for part in overrides if part not in (STOPPED, SWEEP)]
    command = [sys.executable, "-m", "medx.run", *given, where, *([SWEEP] if SWEEP in overrides else [])]
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    environment = {**os.environ, **threads, "PYTHONPATH": str(tree), "MEDX_CACHE": str(work / "cache")}
    with (work / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=work, env=environment, stdout=log, stderr=log)
        if STOPPED in overrides:
            while process.poll() is None and not (work / "out" / "checkpoints" / "round_00002").exists():
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
        process.wait()
        if STOPPED in overrides:
            assert not (work / "out" / "model.safetensors").exists(), "it had ended before it was stopped"
            subprocess.run([*command[:3], "resume=out"], cwd=work, env=environment, stdout=log, stderr=log, check=True)


def tensors(path: Path) -> Iterator[tuple[str, str]]:
    """The digest of each tensor's bytes, shape and type."""
    for name, tensor in load_file(path).items():
        content = tensor.numpy().tobytes() + repr((tensor.dtype, tuple(tensor.shape))).encode()
        yield name, hashlib.sha256(content).hexdigest()


def leaves(value: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Every value of nested JSON as text, less what varies from one call to the next."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key == "_target_":  # the class may have moved, the option is the same
                yield f"{prefix}.{key}", option_of(prefix.rsplit(".", 1)[-1], each)
            elif key not in VARYING and not key.endswith("_seconds"):
                yield from leaves(each, f"{prefix}.{key}")
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from leaves(each, f"{prefix}.{index}")
    else:
        yield prefix, DIGEST.sub("", json.dumps(value))


def rows(path: Path) -> Iterator[tuple[str, str]]:
    """Every row of a ledger as text, less ids and times."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store:
        store.row_factory = sqlite3.Row
        for (table,) in store.execute("select name from sqlite_master where type = 'table' order by name").fetchall():
            found = [dict(row) for row in store.execute(f"select * from {table}")]
            kept = sorted(repr({key: value for key, value in row.items() if key != "run_id"}) for row in found)
            yield from ((f"{table}.{index}", text) for index, text in enumerate(kept))


if __name__ == "__main__":
    sys.exit(main())
