"""The package as a wheel installs it: from any folder, without the repository."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from tests.program import TINY

REPOSITORY = Path(__file__).parents[1]
PARTS = ("medx", "hydra_plugins", "conf", "experiments", "pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content; built from a copy, since setuptools leaves its output beside the source."""
    source, wheels, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "target"))
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PARTS],
        cwd=REPOSITORY, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in filter(None, files.split("\0")):
            if (REPOSITORY / name).exists():  # not yet committed that it is gone
                tar.add(REPOSITORY / name, name)
    archive.seek(0)
    with tarfile.open(fileobj=archive) as tar:
        tar.extractall(source, filter="data")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", str(source), "--no-deps", "--no-build-isolation", "-w", str(wheels)], check=True)
    (wheel,) = wheels.glob("medx-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True)
    return target


def call(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The console script in ``folder``, without ``site``, whose files of an editable install name the repository."""
    packages = sysconfig.get_paths()["purelib"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(installed), packages)), "COLUMNS": "80"}
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_runs_from_any_folder(installed: Path, tmp_path: Path) -> None:
    """The demo, in miniature, by the console script; nothing of the repository is loaded."""
    ours = tuple(str(REPOSITORY / part) for part in ("medx", "hydra_plugins", "tests"))
    program = f"""
import sys, medx, medx.cli, medx.schema
try:
    medx.cli.main(sys.argv[1:])
except SystemExit as ended:
    assert not ended.code
finally:
    print("from", medx.__file__, medx.schema.CONF)
    files = [str(getattr(module, "__file__", "")) for module in list(sys.modules.values())]
    print("strange", [file for file in files if file.startswith({ours!r})])
"""
    overrides = (*TINY, "federation.num_rounds=1", "privacy.epsilon=3,10", "jobs=2", "hydra.sweep.dir=sweep", "-m")
    kept = {part.split("=", 1)[0]: part for part in overrides}.values()
    ran = call(installed, tmp_path, "-c", program, "run", *kept)
    assert ran.returncode == 0, ran.stderr
    assert f"from {installed / 'medx' / '__init__.py'} {installed / 'medx' / 'conf'}" in ran.stdout
    assert "strange []" in ran.stdout
    results = [json.loads((tmp_path / "sweep" / job / "result.json").read_text()) for job in ("0", "1")]
    assert [result["config"]["privacy"]["epsilon"] for result in results] == [3, 10]


def test_carries_what_the_report_needs(installed: Path, tmp_path: Path) -> None:
    """The study's yaml and the templates."""
    ran = call(installed, tmp_path, str(installed / "bin" / "medx"), "report", "--study", "nothing")
    assert ran.stderr.endswith("accepted: dermatology_sites, personal, phantom_report, reference_report\n"), ran.stderr
    for place in ("report", "data"):
        written = {path.name for path in (REPOSITORY / "medx" / place / "templates").iterdir()}
        assert {path.name for path in (installed / "medx" / place / "templates").iterdir()} == written
    for ending in ("csv.gz", "md"):
        assert (installed / "medx" / "dataset" / f"pneumoniamnist_patients.{ending}").exists()


def test_carries_every_option_and_plugin(installed: Path) -> None:
    """What lies in the repository, and nothing that tests or benchmarks are made of."""

    def below(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*.yaml")}

    assert below(installed / "medx" / "conf") == below(REPOSITORY / "conf")
    assert below(installed / "medx" / "experiments") == below(REPOSITORY / "experiments")
    plugins = {path.name for path in (REPOSITORY / "hydra_plugins").glob("*.py")}
    assert {path.name for path in (installed / "hydra_plugins").glob("*.py")} == plugins
    assert (installed / "medx" / "py.typed").exists()
    assert not {"tests", "benchmarks", "conf", "experiments", "docs"} & {path.name for path in installed.iterdir()}


def test_the_console_script(installed: Path, tmp_path: Path) -> None:
    """Help fits 80 columns and comes at once; a wrong verb is one line; commands are named as they were called."""
    script = str(installed / "bin" / "medx")
    shown = call(installed, tmp_path, script, "--help")
    assert shown.returncode == 0
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert call(installed, tmp_path, script, "--version").stdout.startswith("medx 0.")
    for arguments, words in {
        ("reprot",): "medx: reprot: no such verb; did you mean report; accepted: run, report, ",
        (): "medx: a verb is missing; accepted: run, ",
        ("seed=1",): "medx: seed=1: the verb comes first, as in medx run seed=1; accepted: run, ",
        ("compare", "a"): "medx: the following arguments are required: RUN; medx compare --help tells ",
        ("show", "a"): "medx: roster a: No such file",
        ("run", "mdel=cnn"): "medx: mdel is unknown; did you mean model",
    }.items():
        refused = call(installed, tmp_path, script, *arguments)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
        assert refused.stderr.startswith(words)
    assert "python -m" not in call(installed, tmp_path, script, "run", "--help").stdout


def test_help_loads_no_library(installed: Path, tmp_path: Path) -> None:
    """Nor does importing the package: what takes seconds comes with the first call."""
    program = """
import sys
before = set(sys.modules)
import medx, medx.cli
medx.cli.main(["--help"])
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(loaded & {"torch", "numpy", "hydra", "pydantic", "flwr", "mlflow", "pandas", "rich"})
"""
    assert call(installed, tmp_path, "-c", program).stdout.splitlines()[-1] == "set()"
