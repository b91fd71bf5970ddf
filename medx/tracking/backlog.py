"""Runs whose records have not all arrived, remembered in the working directory until they have."""

from collections.abc import Callable
from pathlib import Path

from medx.tracking.delivery import deliver, intended
from medx.tracking.spool import Spool, file_lock
from medx.tracking.store import Destination

Change = Callable[[list[str]], list[str]]


class Backlog:
    """``mlartifacts/undelivered.txt``: one output folder a line; there only while something is undelivered."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "mlartifacts" / "undelivered.txt"

    def add(self, output_dir: Path) -> None:
        """Remember a run."""
        self._change(lambda folders: [*folders, str(output_dir)])

    def deliver(self, destination: Destination) -> None:
        """Try each remembered run that was meant for ``destination``; forget those that arrived or were removed."""
        if not self.path.exists():
            return
        folders = self.path.read_text().splitlines()
        spools = {folder: Spool(Path(folder)) for folder in folders}
        done = [folder for folder, spool in spools.items() if not spool.path.exists()]
        meant = [folder for folder in folders if folder not in done and intended(spools[folder]) == destination]
        done += [folder for folder in meant if all(error is None for _, error in deliver(Path(folder)))]
        self._change(lambda now: [folder for folder in now if folder not in done])

    def _change(self, change: Change) -> None:
        with file_lock(self.path.with_suffix(".lock")):
            folders = self.path.read_text().splitlines() if self.path.exists() else []
            changed = list(dict.fromkeys(change(folders)))
            if changed:
                self.path.write_text("\n".join(changed) + "\n")
            else:
                self.path.unlink(missing_ok=True)
