"""torch's compiler is not loaded while nothing is compiled, and is whole as soon as something is."""

import subprocess
import sys
from pathlib import Path

import pytest

STEPS = """
import sys
from medx.imports import quickly

with quickly():
    import torch
    from lightning.fabric.wrappers import OptimizedModule

layer = torch.nn.Linear(3, 1)


def steps(module):
    for kind in (torch.optim.SGD, torch.optim.Adam):
        optimizer = kind(layer.parameters(), lr=0.1)
        module(torch.ones(2, 3)).sum().backward()
        optimizer.step()


@torch.compiler.disable
def kept_out(inputs):
    'Its own doc.'
    return inputs + 1


assert kept_out(torch.ones(1)) == 2 and kept_out.__doc__ == "Its own doc."
steps(layer)
torch.func.functional_call(layer, dict(layer.named_parameters()), (torch.ones(2, 3),))
assert not isinstance(layer, OptimizedModule)
assert not [name for name in sys.modules if name.startswith("torch._dynamo.")]
"""

WAKE = {
    "compile": "",
    "attribute": "assert torch._dynamo.is_compiling() is False",
    "threads": """
from threading import Barrier, Thread
ready, found = Barrier(4), []
def wake(number):
    ready.wait()
    found.append(torch._dynamo.utils if number % 2 else __import__("torch._dynamo.utils", fromlist=["utils"]))
threads = [Thread(target=wake, args=(number,)) for number in range(4)]
[thread.start() for thread in threads], [thread.join(60) for thread in threads]
assert len(found) == 4 and set(found) == {sys.modules["torch._dynamo.utils"]}
""",
    "submodule": """
import torch._dynamo.config as config
import torch._dynamo
assert config is torch._dynamo.config is torch._dynamo.convert_frame.config is sys.modules["torch._dynamo.config"]
assert config.__spec__.name == "torch._dynamo.config" and config.__spec__.origin == config.__file__
""",
    "from": """
from torch._dynamo.utils import counters
assert counters is sys.modules["torch._dynamo.utils"].counters is sys.modules["torch._dynamo.convert_frame"].counters
""",
}

COMPILE = """
compiled = torch.compile(layer, backend="eager")
assert isinstance(compiled, OptimizedModule) and not isinstance(layer, OptimizedModule)
assert torch.equal(compiled(torch.ones(2, 3)), layer(torch.ones(2, 3)))
assert torch._dynamo is sys.modules["torch._dynamo"] and torch._dynamo.utils.counters["frames"]["ok"]
steps(compiled)
explained = torch._dynamo.explain(lambda inputs: kept_out(inputs * 2) * 3)(torch.ones(1))
assert explained.graph_break_count == 1  # the compiler keeps out of it, though it was marked before there was one
assert not [finder for finder in sys.meta_path if "idle_compiler" in type(finder).__module__]
"""


@pytest.mark.parametrize("wake", WAKE)
def test_the_compiler_is_there_when_it_is_needed_and_not_before(wake: str, tmp_path: Path) -> None:
    code = STEPS + WAKE[wake] + COMPILE
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_compiler_that_is_loaded_stays(tmp_path: Path) -> None:
    code = """
import sys, torch._dynamo
from medx.imports.idle_compiler import let_compiler_idle
real, finders = sys.modules["torch._dynamo"], list(sys.meta_path)
let_compiler_idle()
assert sys.modules["torch._dynamo"] is real and sys.meta_path == finders
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
