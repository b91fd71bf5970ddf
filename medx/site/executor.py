"""The executor of a hospital: it imports MedX once and answers the node's messages, one after the other."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medx.output import say
from medx.site.answering import Answers
from medx.site.flower import Rest, Work
from medx.site.hospital import Site

log = logging.getLogger(__name__)


def execute(kit: Path, node: str | None = None) -> None:
    """Answer messages until the process is asked to end; ``node`` is the node's address, None on this machine.

    Raises MedxError where the kit cannot be used.
    """
    site = Site(kit)
    answers = Answers(site)
    os.environ["MEDX_CACHE"] = str(site.config.cache)  # of decoded images too
    secret = (kit / "exec.secret").read_bytes()
    work = Work(node or f"127.0.0.1:{site.config.node_port}", secret)
    rest = Rest()
    site.audit.write("started", hospital=site.config.name)
    say(f"hospital {site.config.name}: waiting for studies of {site.consortium.address}")
    try:
        with sigterm_as_interrupt():
            while True:
                if (token := work.next()) is None:
                    rest.take()
                    continue
                rest.found()
                try:
                    work.do(token, answers.answer)
                except Exception:
                    log.exception("an answer did not reach the node")
    except KeyboardInterrupt:
        pass
    finally:
        work.close()
        site.close()
        site.audit.write("stopped", hospital=site.config.name)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Within the block SIGTERM raises what Ctrl-C does."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
