"""What is shown of jobs at once: what stays on a terminal is never erased by what does not."""

import io
import sys

import pytest

from medx.launcher.progress import Progress, overall

UP = "\x1b[1A"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Always."""
        return True

    def since(self, place: int) -> str:
        """What was written after ``place``."""
        return self.getvalue()[place:]


@pytest.mark.parametrize("how", ["tell", "warn"])
def test_what_stays_is_not_erased_by_the_next_lines(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, terminal)
    monkeypatch.setenv("TERM", "xterm")
    progress = Progress()
    progress.show(["job 0  round 1", "job 1  round 1"])
    before = len(terminal.getvalue())
    progress.show(["job 0  round 2", "job 1  round 2"])
    assert UP in terminal.since(before)  # running lines replace each other
    before = len(terminal.getvalue())
    getattr(progress, how)("records are kept")
    progress.show(["job 1  round 3"])
    erased, kept, after = terminal.since(before).partition("records are kept")
    assert kept
    assert UP in erased
    assert UP not in after
    assert "job 1  round 3" in after


def test_without_a_terminal_only_what_stays_and_what_is_prepared_is_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = Progress()
    progress.show(["job 0  round 1", "job 1  preparing: features of 9 images: 3 of 9", "0 of 2 done"])
    progress.show(["job 0  round 2", "job 1  preparing: features of 9 images: 3 of 9", "0 of 2 done"])
    progress.tell("job 0  ε 0.998")
    progress.warn("")
    progress.warn("WARNING: said twice\n")
    out = "job 1  preparing: features of 9 images: 3 of 9\njob 0  epsilon 0.998\n"
    assert capsys.readouterr() == (out, "WARNING: said twice\n")


@pytest.mark.parametrize(
    ("done", "parts", "shown"),
    [
        (0, [0.0, 0.0], "0 of 6 done"),
        (0, [0.5, 0.25], "0 of 6 done, about 7:00 left"),
        (3, [0.0], "3 of 6 done, about 1:00 left"),
        (5, [1.0], "5 of 6 done"),
        (6, [], "6 of 6 done"),
    ],
)
def test_how_far_a_sweep_is_and_the_time_it_still_takes(done: int, parts: list[float], shown: str) -> None:
    assert overall(done, parts, 6, 60.0) == shown
