"""The golden figures: ``python -m tests.end_to_end.golden`` writes them anew; CHANGELOG.md says why."""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from medx.randomness import NUMERICS
from tests.program import SCATTERNET, TINY, Ran, call

PATH = Path(__file__).with_name("golden.json")
WITHOUT_MODEL = tuple(part for part in TINY if not part.startswith("model"))
CASES = {
    "cnn": (*TINY, "federation.num_rounds=5"),
    "scatternet": (*WITHOUT_MODEL, *SCATTERNET, "federation.num_rounds=5"),
}


def figures(ran: Ran) -> dict[str, Any]:
    """What is pinned of a run."""
    result = ran.result
    return {
        "test": {name: interval.value for name, interval in sorted(result.test.items())},
        "noise_multiplier": result.privacy.clients[0].noise_multiplier,
        "bytes_up": result.rounds[-1].bytes_up,
    }


@contextmanager
def noise_of_any_machine() -> Iterator[None]:
    """Draws that depend neither on versions and instructions nor on a model's last bits, which they move."""
    with (
        patch("medx.trainer.state.ModelState.hash", lambda state, clip_norm=None: b"any model"),
        patch("medx.federation.setup._computed_by", lambda device: ("any machine",)),
    ):
        yield


def rounded(value: Any) -> Any:
    """Figures less what another machine may move."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def write() -> None:
    """Run every case and keep its figures."""
    with tempfile.TemporaryDirectory() as folder, noise_of_any_machine():
        found = {name: figures(call(Path(folder) / name, base=case)) for name, case in CASES.items()}
    before = json.loads(PATH.read_text())
    moved = [name for name in CASES if rounded(before[name]) != rounded(found[name])]
    if moved and before["numerics"] == NUMERICS:
        sys.exit(f"{', '.join(moved)} moved: raise NUMERICS in medx/randomness.py, so that all draws move too")
    PATH.write_text(json.dumps({"numerics": NUMERICS, **found}, indent=1) + "\n")


if __name__ == "__main__":
    write()
