"""What a process does to be fast: memory that is kept, threads that are shared."""

import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from medx import machine
from medx.machine import keep_freed_memory

FAULTS = """
import resource, sys
import torch
from medx.machine import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(10 * 2**20)  # 40 MB, which glibc gives back to the system when it is freed
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
if sys.argv[1:] != ["started later"]:
    print(faults() > 50000)
    print(keep_freed_memory())
faults()
print(faults() < 1000)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_memory_that_tensors_freed_is_not_fetched_anew() -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    assert faults_of(FAULTS, plain) == ["True", "True", "True"]
    keep_freed_memory()
    assert faults_of(FAULTS, dict(os.environ), "started later") == ["True"]


def faults_of(code: str, environment: dict[str, str], *arguments: str) -> list[str]:
    """What the code prints in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


def test_a_share_of_the_threads_is_given_back_while_all_jobs_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_ALL", [])
    before = torch.get_num_threads()
    with machine.all_threads():
        assert torch.get_num_threads() == before  # nothing was shared
    try:
        torch.set_num_threads(3)
        machine.share_threads(2)
        with suppress(ValueError), machine.all_threads():
            inside = torch.get_num_threads()
            raise ValueError
        assert (inside, torch.get_num_threads()) == (3, 2)
    finally:
        torch.set_num_threads(before)


V2 = {"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/memory.max": "5000", "sys/fs/cgroup/a/memory.current": "4000"}
V1 = {
    "proc/self/cgroup": "4:cpu,memory:/c\n1:cpuset:/c",
    "sys/fs/cgroup/memory/c/memory.limit_in_bytes": "3000",
    "sys/fs/cgroup/memory/c/memory.usage_in_bytes": "2900",
    "sys/fs/cgroup/memory/c/memory.stat": "inactive_file 7\ntotal_inactive_file 50",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, sys.maxsize),
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:       2 kB"}, 2048),
        ({"proc/meminfo": "MemAvailable: 2 kB"} | V2, 1000),  # a group above it has the limit
        (V2 | {"sys/fs/cgroup/a/b/memory.max": "max", "sys/fs/cgroup/a/b/memory.current": "10"}, 1000),
        (V2 | {"sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 300"}, 1300),  # pages that can be had back
        (V1, 150),
        (V1 | {"sys/fs/cgroup/memory/c/memory.usage_in_bytes": "4000"}, 0),
    ],
)
def test_memory_that_is_left_is_what_the_tightest_limit_leaves(
    files: dict[str, str], expected: int, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.available_memory(tmp_path) == expected


@pytest.mark.parametrize(("wanted", "expected"), [(100, "100 256"), (400, "400 400"), (1000, "512 512")])
def test_as_many_files_as_are_wanted_or_as_may_be(wanted: int, expected: str) -> None:
    """In a process of its own: a limit cannot be put back."""
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512))\n"
        "from medx.machine import room_for_files\n"
        f"print(room_for_files({wanted}), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == expected
