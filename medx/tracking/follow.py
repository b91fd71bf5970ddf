"""The process that copies runs while they are running."""

import logging
import os
import signal
import time
from pathlib import Path

from medx import files
from medx.folder import SWEEP_FILE
from medx.tracking import content
from medx.tracking.record import (
    FOLLOW_LOCK,
    RUN_FILE,
    backlog_of,
    change_backlog,
    is_held,
    read_run,
    read_synced,
    runs_below,
)
from medx.tracking.store import Destination, TrackingError, ready
from medx.tracking.sync import Copy, sync

log = logging.getLogger(__name__)
GLANCE = 0.1  # seconds between two looks at what has changed
PAUSE, LONGEST_PAUSE = 1.0, 30.0  # between two visits to the store; the longer, the longer it has not answered
LINGER = 12.0  # after the last run below a folder, for the next one, which prepares before it is announced


class Followed:
    """One run that is copied as it grows: every second, after a failure less often, and at once when it has ended."""

    def __init__(self, folder: Path) -> None:
        self._copy = Copy(folder)
        self._file = folder / RUN_FILE
        self._settled = 0  # when the file was written that told of its end, and that end was seen to
        self._arrived = 0
        self._helped = False
        self._pause = 0.0
        self._next = 0.0

    def look(self) -> bool:
        """Bring what is new, if it is time to; whether the run is still running."""
        try:
            written = self._file.stat().st_mtime_ns
            if written == self._settled:
                return False
            run = self._copy.read()
        except (OSError, ValueError, TrackingError):  # removed, or nothing that can be read
            return False
        ended = run.status != "running"
        due = not self._is_there() if ended else run.saved != self._arrived and time.monotonic() >= self._next
        if due:
            self._attempt()
        self._settled = written if ended else 0
        return not ended

    def _is_there(self) -> bool:
        """Whether an earlier process has brought the whole run: of a study's hundreds none is asked for anew."""
        run = read_run(self._copy.folder)  # as it says itself: of one that was killed the store may lack the end
        return run is not None and run.status != "running" and read_synced(self._copy.folder, run.destination).has(run)

    def _attempt(self) -> None:
        try:
            run = self._copy.bring()
            self._arrived, self._pause = run.saved, PAUSE
            if not self._helped:
                self._helped = True
                bring_backlog(run.destination)
        except Exception as error:  # whatever a store raises: it is written down where the run reads it
            log.debug("%s", error)
            self._pause = min(LONGEST_PAUSE, 2 * max(self._pause, PAUSE))
        self._next = time.monotonic() + self._pause


def bring_backlog(destination: Destination) -> None:
    """Try each run that waits for this destination; forget those that arrived or were removed."""
    path = backlog_of(destination)
    for line in path.read_text().splitlines() if path.exists() else []:
        run = read_run(Path(line))
        if run is None or (run.destination == destination and all(error is None for _, error in sync(Path(line)))):
            change_backlog(path, drop=[line])


def follow(root: Path, starter: int) -> None:
    """Copy the runs at and below ``root`` while one of them is running; nothing where another process does.

    Started before the first run is announced, it gets ready meanwhile, and waits as long as its parent is ``starter``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if is_held(root / FOLLOW_LOCK):
        return
    ready()
    content.installed_packages()
    try:
        # A sweep's folder is there, and its jobs see by the lock that they are followed; a run may still be refused,
        # and that must leave no folder.
        if (root / SWEEP_FILE).exists() or _announced(root, starter):
            with files.locked(root / FOLLOW_LOCK, wait=False):
                if _announced(root, starter):
                    _follow(root)
    except BlockingIOError:
        return


def _announced(root: Path, starter: int) -> bool:
    """Wait for the first run at or below ``root``; False where the process that started this one has gone before."""
    while not runs_below(root):
        if not root.exists() or os.getppid() != starter:
            return False
        time.sleep(GLANCE)
    return True


def _follow(root: Path) -> None:
    followed: dict[Path, Followed] = {}
    alone = (root / RUN_FILE).exists()
    searched = ran = time.monotonic()
    while True:
        if not followed or time.monotonic() >= searched + PAUSE:
            searched = time.monotonic()
            for folder in runs_below(root):
                followed.setdefault(folder, Followed(folder))
        if any([each.look() for each in followed.values()]):
            ran = time.monotonic()
        elif alone or time.monotonic() >= ran + LINGER:
            return
        time.sleep(GLANCE)
