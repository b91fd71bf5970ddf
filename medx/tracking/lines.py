"""Lines of JSON over a socket, and beside them the ends of further sockets."""

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

PIECE = 65536


def say(line: socket.socket, words: dict[str, Any], end: socket.socket | None = None) -> None:
    """Send one line, with the end of another socket where one is given; raises OSError where nobody listens."""
    data = json.dumps(words, default=str).encode() + b"\n"
    sent = socket.send_fds(line, [data], [] if end is None else [end.fileno()])
    line.sendall(data[sent:])


def heard(line: socket.socket, admit: Callable[[socket.socket], object] | None = None) -> Iterator[dict[str, Any]]:
    """Every line that comes, until the other side has gone; ``admit`` is given the sockets that come along."""
    rest = b""
    while True:
        try:
            piece, ends, _, _ = socket.recv_fds(line, PIECE, 8 if admit else 0)
        except OSError:  # reset by the other side, or closed by this one
            return
        for end in ends:
            assert admit is not None
            admit(socket.socket(fileno=end))
        if not piece:
            return
        *whole, rest = (rest + piece).split(b"\n")
        yield from map(json.loads, whole)
