"""What jobs of a pool do in tests; a process of its own has to be able to import it."""

import os
import time
from pathlib import Path

from medx.folder import CONFIG_FILE, RESULT_FILE
from tests.report.examples import make_result


def measured_then_recorded(folder: Path, beside: Path, until: Path) -> None:
    """Compute until the job ``beside`` has begun, by the clock in ``times``, and wait for a store until another has."""
    began = time.monotonic()
    (folder / "began").touch()
    wait_for(beside / "began")
    time.sleep(0.2)
    (folder / "times").write_text(f"{began} {time.monotonic()}")
    result = make_result("pneumoniamnist", None, 0, 0.9)
    (folder / CONFIG_FILE).write_text(f'{{"run": "{result.run}", "config_hash": "{result.config_hash}"}}')
    result.save(folder / RESULT_FILE)
    wait_for(until / "began")


def wait_for(path: Path, seconds: float = 120) -> None:
    """Until it is there; raises TimeoutError."""
    end = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(path)
        time.sleep(0.05)


def leave_without_a_word(code: int) -> None:
    """End the process at once."""
    os._exit(code)


def divide_by_zero() -> None:
    """A fault of the program."""
    raise ZeroDivisionError("a fault of the program")


def threads(folder: Path) -> None:
    """Write down with how many threads a job computes, and with how many what all jobs wait for."""
    import torch

    from medx.machine import all_threads

    share = torch.get_num_threads()
    with all_threads():
        (folder / "threads").write_text(f"{share} {torch.get_num_threads()} {os.environ['FROM_THE_PARENT']}")
