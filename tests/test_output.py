"""No word that is printed ends the program: in whatever encoding, and whether or not anybody reads it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PRINTS = """
import sys
from medx import output
output.take_all()
for stream in (sys.stdout, sys.stderr):
    print("ε 1 ± 2, é, \\udcff", file=stream)
"""
READS_NOT = """
import os
from medx import output
output.take_all()
for word in ("first", "second"):
    print(word * 100_000, flush=True)
os.system("echo from a child")
with open("went_on", "w") as file:
    file.write("yes")
"""


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [("ascii", "epsilon 1 +- 2, ?, ?"), ("latin-1", "epsilon 1 ± 2, é, ?"), ("utf-8", "ε 1 ± 2, é, ?")],
)
def test_what_an_encoding_lacks_is_spelled_out(encoding: str, printed: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", PRINTS], env=environment, capture_output=True, check=True)
    assert [text.decode(encoding).strip() for text in (done.stdout, done.stderr)] == [printed] * 2


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_the_program_goes_on_where_nobody_reads(stream: str, tmp_path: Path) -> None:
    code = READS_NOT.replace("flush=True", f"flush=True, file=__import__('sys').{stream}")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    reading, writing = os.pipe()
    os.close(reading)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: writing}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False, **pipes)
    os.close(writing)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "went_on").exists()
    assert not done.stderr


@pytest.mark.parametrize("command", ["run", "report", "tracking", "aggregation"])
def test_every_command_takes_all_words(command: str) -> None:
    package = ROOT / "medx" / command
    source = (package / "__main__.py" if package.is_dir() else package.with_suffix(".py")).read_text()
    assert "take_all()" in source.partition('if __name__ == "__main__":')[2].splitlines()[1]
