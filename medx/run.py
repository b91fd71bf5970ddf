"""``python -m medx.run``: compose the configuration, run the experiment, or a sweep of them with ``-m``."""

import logging
import os
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import medx.sweep
from medx.schema import MedxError

log = logging.getLogger(__name__)
CONF = Path(__file__).resolve().parent.parent / "conf"
_RAISED: list[Exception] = []


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(cfg: DictConfig) -> float | None:
    """One job. In a sweep a job that fails is written down and the others go on."""
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    overrides = list(settings.overrides.task)
    try:
        from medx.job import run_job

        return run_job(OmegaConf.create(cfg), folder, overrides)
    except Exception as error:
        if settings.mode != RunMode.MULTIRUN:
            _RAISED.append(error)  # main() tells of it in one line; Hydra would print two of its own first
            return None
        if not isinstance(error, MedxError):
            log.error("job %s failed", overrides, exc_info=True)
            (folder / "error.log").write_text(traceback.format_exc())
        medx.sweep.record_failure(folder, overrides, error)
        return None


def main() -> None:
    """Run Hydra with errors of one line; exit code 2 for a refusal, 1 where a job of a sweep failed."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, and the lines below say what a person can do
    try:
        run()
        if _RAISED:
            raise _RAISED[0]
    except (HydraException, OmegaConfBaseException) as error:
        from medx.configuration import explain

        sys.exit(refuse(explain(error, sys.argv[1:])))
    except MedxError as error:
        sys.exit(refuse(str(error)))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(medx.sweep.exit_code())


def refuse(message: str) -> int:
    """Print the one line and give the exit code."""
    print(f"medx: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
