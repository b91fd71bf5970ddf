"""The ServerApp that Flower's executor calls on the coordinator's machine."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from medx.federation.flower import quiet_flower
from medx.output import Line, shown_by
from medx.site.conduct import conduct
from medx.site.coordinator import home

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Conduct the study of the run's configuration in the folder that ``MEDX_COORDINATOR`` names."""
    quiet_flower()
    shown_by(Line())
    folder: Path = home()
    result = conduct(folder, str(context.run_config["study"]), grid)
    if result.status != "finished":
        raise RuntimeError(f"{result.status}: {result.error}")
