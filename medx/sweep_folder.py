"""The folder of a sweep: whose it is, which jobs it is made of, and going on with them after it was stopped."""

import json
import os
import uuid
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from medx.folder import RESULT_FILE, SWEEP_FILE, load_result
from medx.schema import CheckpointError, ConfigError
from medx.sweeper import jobs_of, written

FAILURE_FILE = "failure.json"
AGAIN = "resume=its_own_folder"  # of every job of a sweep that is gone on with: to go on with what lies there
BESIDE_RESUME = ("jobs", "cache", "tracking", "runtime")  # what a sweep may change when it goes on


def claim(folder: Path, config: DictConfig, jobs: list[list[str]]) -> None:
    """Make the folder this sweep's, exclusively; raises ConfigError where another sweep has used it."""
    folder.mkdir(parents=True, exist_ok=True)
    identity = {
        "id": uuid.uuid4().hex,
        "start": str(Path.cwd()),
        "overrides": written(config.hydra.overrides.task),
        "hydra": written(config.hydra.overrides.hydra),
        "params": OmegaConf.to_container(config.hydra.sweeper.get("params") or OmegaConf.create({})),
        "jobs": jobs,
    }
    temporary = folder / f".{SWEEP_FILE}.{uuid.uuid4().hex}"
    temporary.write_text(json.dumps(identity, indent=1))
    try:
        os.link(temporary, folder / SWEEP_FILE)
    except FileExistsError:
        raise ConfigError(
            f"hydra.sweep.dir={folder}: another sweep has used this folder; accepted: another folder, or "
            f"resume={folder} -m to go on with that sweep"
        ) from None
    finally:
        temporary.unlink()


def go_on(config: DictConfig, resume: list[str]) -> None:
    """Make ``config`` that of the sweep to go on with: the same jobs, each with what its folder holds.

    Raises ConfigError where the jobs are not known or would be others, and CheckpointError where there is no sweep.
    """
    given = resume[-1].split("=", 1)[1].strip("'\"")
    folder = Path(given).resolve()
    if not (folder / SWEEP_FILE).exists():
        raise CheckpointError(f"{resume[-1]} -m: no {SWEEP_FILE} there; accepted with -m: the folder of one sweep")
    known = json.loads((folder / SWEEP_FILE).read_text())
    beside = [part for part in written(config.hydra.overrides.task) if part not in resume]
    for part in beside:
        if part.lstrip("+~").split("=", 1)[0].split(".")[0].split("@")[0] not in BESIDE_RESUME:
            raise ConfigError(
                f"{resume[-1]}: {part}: a sweep goes on with its own settings; accepted beside it: a value of "
                f"{', '.join(BESIDE_RESUME)}"
            )
    if not known.get("jobs"):
        raise ConfigError(f"{resume[-1]}: its jobs were chosen as it went; accepted: resume= with one job's folder")
    if not Path(known["start"]).is_dir():
        raise ConfigError(f"{resume[-1]}: it was started in {known['start']}, from where its paths go; not there")
    os.chdir(known["start"])
    own = [part for part in known["hydra"] if not part.startswith("hydra.sweep.dir=")]
    config.hydra.overrides.hydra = [*own, f"hydra.sweep.dir='{folder}'"]
    config.hydra.overrides.task = known["overrides"]
    config.hydra.sweeper.params = known["params"] or None
    config.hydra.sweep.dir = str(folder)
    if jobs_of(config) != known["jobs"]:
        raise ConfigError(f"{resume[-1]}: its settings give other jobs now than they did then")
    config.hydra.overrides.task = [*known["overrides"], *beside, AGAIN]
    if len(jobs_of(config)) != len(known["jobs"]):
        raise ConfigError(f"{resume[-1]}: {' '.join(beside)}: accepted is one value of each for all its jobs")


def is_done(folder: Path) -> bool:
    """Whether a job has finished and its record says so too, so that nothing of it is to be done again."""
    if not (folder / RESULT_FILE).exists() or (folder / FAILURE_FILE).exists():
        return False
    from medx.tracking.record import read_run

    result, tracked = load_result(folder), read_run(folder)
    return result is not None and result.status == "finished" and (tracked is None or tracked.status != "running")
