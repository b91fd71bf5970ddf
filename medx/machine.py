"""The machine that a run is on: its device, and the versions that a reader needs to make the run again."""

import ctypes
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from medx.schema import ConfigError

# M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h, in bytes: beyond any tensor's size.
MALLOC = {-3: 2**30, -1: 2**31 - 1}

_ALL: list[int] = []  # torch's threads in this process, before it was given a share of them


def share_threads(share: int) -> None:
    """Compute with ``share`` threads from here on: other jobs have the rest."""
    _ALL[:] = [torch.get_num_threads()]
    torch.set_num_threads(share)


@contextmanager
def all_threads() -> Iterator[None]:
    """For what is computed once for all jobs, which wait for it: all threads, so the same sums whoever computes it."""
    share = torch.get_num_threads()
    torch.set_num_threads(_ALL[0] if _ALL else share)
    try:
        yield
    finally:
        torch.set_num_threads(share)


def room_for_files(wanted: int) -> int:
    """How many files this process may have open, after asking for as many as ``wanted``, or for all it may have."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY or allowed >= wanted:
        return wanted
    asked = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (asked, most))
    except (OSError, ValueError):  # macOS says that it has no limit, and refuses what is above its own
        return allowed
    return asked


def resolve_device(device: str) -> str:
    """``auto`` to what is there; raises ConfigError where CUDA is asked for and absent."""
    cuda = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if cuda else "cpu"
    if device != "cpu" and not (device == "cuda" or device.removeprefix("cuda:").isdigit()):
        raise ConfigError(f"device={device} is unknown; accepted: auto, cpu, cuda, cuda:0, cuda:1, ...")
    if device != "cpu" and not cuda:
        raise ConfigError(f"device={device}, but no CUDA device is there; accepted here: auto, cpu")
    if device.startswith("cuda:") and int(device.removeprefix("cuda:")) >= torch.cuda.device_count():
        raise ConfigError(f"device={device}, but there are only {torch.cuda.device_count()} CUDA devices")
    return device


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep what tensors free for the next ones; False where the C library has no such setting.

    Else every large tensor is given back and fetched again, with a page fault for each 4 kB: up to a third of a step
    on a CPU. The peak stays what it was, but memory comes back only when the process ends. It is for commands to call,
    whose process it is; processes that are started later, such as Ray's, keep theirs too.
    """
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(MALLOC[-3]), "MALLOC_TRIM_THRESHOLD_": str(MALLOC[-1])}
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc: musl, macOS, Windows
        return False
    return all(mallopt(setting, value) for setting, value in MALLOC.items())  # an old glibc may refuse the first


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still take: what the system has, or less where a control group's limit leaves less.

    ``sys.maxsize`` where the system tells neither; ``root`` is where ``proc`` and ``sys`` are.
    """
    left = [sys.maxsize]
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            left.append(1024 * int(line.split()[1]))
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            left += _left_in(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            left += _left_in(root / "sys/fs/cgroup/memory", path, *files)
    return max(0, min(left))


def _left_in(mount: Path, path: str, limit: str, usage: str, cache: str) -> Iterator[int]:
    """What this group and those above it leave; file pages that are not in use can be had back."""
    group = mount / path.lstrip("/")
    for folder in (group, *group.parents):
        most, used = _lines(folder / limit), _lines(folder / usage)
        if most and used and most[0].isdigit():
            pages = [int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.startswith(cache + " ")]
            yield int(most[0]) - int(used[0]) + sum(pages)
        if folder == mount:
            return


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # no such file on this system
        return []


def environment(device: str) -> dict[str, str]:
    """Versions, machine and git revision: what a reader needs to make the run again."""
    packages = ("medx", "torch", "flwr", "opacus", "lightning", "mlflow", "medmnist", "numpy", "dp-accounting")
    facts = {name: version(name) for name in packages}
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    facts["git"] = revision.stdout.strip() or "not a git checkout"
    facts["python"] = platform.python_version()
    facts["platform"] = f"{platform.system()} {platform.machine()}"
    facts["device"] = torch.cuda.get_device_name(device) if device != "cpu" else "cpu"
    return facts
