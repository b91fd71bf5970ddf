"""A study from overrides, as ``medx run`` takes them, and its way to the SuperLink: no code goes with it."""

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import medx
from medx.aggregation.roster import read_identity
from medx.api import composed
from medx.configuration import typed
from medx.folder import RESULT_FILE
from medx.results import ExperimentResult
from medx.schema import ConfigError
from medx.site.conduct import run_folder
from medx.site.consortium import Consortium
from medx.site.declaring import read_declarations
from medx.site.kits import DECLARED
from medx.site.processes import LINK, environment_of, flower
from medx.site.study import Study, make_study, read_study

ATTEMPTS = 30  # at a round: hospitals answer each once, and a study that was stopped or cut off goes on at the next
APP = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "medx-study"
version = "{version}"
description = "A study: data in the key below, and no code"
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "medx"

[tool.flwr.app.components]
serverapp = "medx.site.server_app:app"
clientapp = "medx.site.server_app:app"

[tool.flwr.app.config]
study = {study}
"""


def new_study(
    folder: Path, overrides: Sequence[str], hospitals: Sequence[str] | None = None, title: str | None = None
) -> Study:
    """The study that these overrides describe for the hospitals, all of the consortium where None; raises MedxError."""
    consortium = Consortium.load(folder)
    names = list(hospitals or (member.name for member in consortium.hospitals))
    found = read_declarations(folder / DECLARED, consortium, names)
    own = ("federation.num_clients", "runtime", "tracking", "resume", "partition")
    for part in overrides:
        if part.lstrip("+~").split("=")[0] in own:
            raise ConfigError(f"{part}: a study's hospitals, and where it runs, are the consortium's; leave it out")
    given = [*overrides, f"federation.num_clients={len(names)}", "runtime=in_process", "tracking=none"]
    config, _ = composed(given, None, Path("."))
    config.pop("resume")
    if not any(part.lstrip("+~").split("=")[0] == "aggregation.max_attempts" for part in overrides):
        config["aggregation"] |= {key: ATTEMPTS for key in ("max_attempts",) if key in config["aggregation"]}
    first = found[0]
    return make_study(
        *(typed(config), consortium, [each.declaration for each in found], first.spec, first.class_names),
        mean=first.mean,
        std=first.std,
        synthetic=first.synthetic,
        title=title,
    )


def signing_key(folder: Path) -> Ed25519PrivateKey:
    """The coordinator's key; raises ConfigError."""
    return read_identity(folder / "coordinator.pem")


def submit(folder: Path, text: str) -> ExperimentResult:
    """Run the signed study and follow it to its end; raises ConfigError where it leaves no result."""
    folder = folder.absolute()
    study = read_study(text, Consortium.load(folder).coordinator)
    before = _time_of_result(folder, study)
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "pyproject.toml").write_text(app_of(text))
        command = flower(folder, "run", place, LINK, "--stream")
        subprocess.run(command, env=environment_of(folder), check=False)
    if _time_of_result(folder, study) == before:
        raise ConfigError(
            f"study {study.digest[:16]}: it left no result; accepted: what the lines above say, then it once more"
        )
    return ExperimentResult.load(run_folder(folder, study) / RESULT_FILE)


def app_of(text: str) -> str:
    """The only file of the bundle that Flower wants: it names the installed app, and holds the signed study."""
    return APP.format(version=medx.__version__, study=json.dumps(text))


def _time_of_result(folder: Path, study: Study) -> float | None:
    path = run_folder(folder, study) / RESULT_FILE
    return path.stat().st_mtime if path.exists() else None
