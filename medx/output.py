"""Standard output and error that take every word: in whatever encoding, and whether or not anybody reads them."""

import codecs
import io
import os
import sys

SPELLED = {"ε": "epsilon", "δ": "delta", "σ": "sigma", "α": "alpha", "±": "+-", "–": "-", "—": "-", "…": "..."}
SPELL_OUT = "medx.spell_out"


def plain_text(text: str) -> str:
    """Printable ASCII: Greek spelled out, control codes and the rest replaced."""
    spelled = text.encode("ascii", SPELL_OUT).decode("ascii")
    return "".join(letter if " " <= letter <= "~" else "?" for letter in spelled)


def take_all() -> None:
    """From here on no word that this process prints can end it.

    What the encoding lacks (Latin-1, ASCII, a file name that is no UTF-8) is spelled out or becomes a question mark.
    Where a pipe's reader has gone (``| head -1``) the rest goes nowhere: a run ends as ever, with its result.
    """
    sys.stdout, sys.stderr = (_lenient(stream) for stream in (sys.stdout, sys.stderr))


def _lenient(stream: io.TextIOWrapper | object) -> io.TextIOWrapper:
    assert isinstance(stream, io.TextIOWrapper)
    raw: io.RawIOBase = _Pipe(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, SPELL_OUT, line_buffering=True)


class _Pipe(io.FileIO):
    """A file descriptor that leads nowhere once nobody reads it, here and in child processes."""

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Number of bytes taken."""
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return super().write(data)


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(SPELLED.get(letter, "?") for letter in letters), error.end


codecs.register_error(SPELL_OUT, _spell_out)
