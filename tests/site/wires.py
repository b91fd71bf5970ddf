"""Hospitals in network namespaces of their own, each on a wire that can be cut: for a trial, as root, on Linux.

The namespaces have no name and no way out, and are gone with the processes in them: nothing of the machine is changed.
"""

import os
import subprocess
import sys
from collections.abc import Sequence

HUB = "10.77.0.1"  # the coordinator's address, on the loopback of its namespace
INSIDE = "MEDX_TRIAL_NAMESPACE"


def enter(module: str) -> None:
    """Go on in a network namespace of its own, with nothing but a loopback: this command is started anew there."""
    if not os.environ.get(INSIDE):
        os.environ[INSIDE] = "1"
        os.execvp("unshare", ["unshare", "--net", sys.executable, "-m", module, *sys.argv[1:]])
    ip("link", "set", "lo", "up")
    ip("address", "add", f"{HUB}/32", "dev", "lo")


def ip(*arguments: str, inside: Sequence[str] = ()) -> None:
    """``ip`` with these arguments, in this namespace or ``inside`` another."""
    subprocess.run([*inside, "ip", *arguments], check=True)


class Wire:
    """One hospital's namespace, held by a process that sleeps, and its wire to the coordinator."""

    def __init__(self, number: int) -> None:
        self.name, net = f"hospital{number}", f"10.77.{number + 1}"
        held = ["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"]
        self._holder = subprocess.Popen(held, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        self._holder.stdout.readline()  # it is in its namespace
        self.inside = ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "--"]
        ip("link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", str(self._holder.pid))
        ip("address", "add", f"{net}.1/30", "dev", self.name)
        ip("link", "set", self.name, "up")
        for words in ("link set lo up", f"address add {net}.2/30 dev eth0", "link set eth0 up"):
            ip(*words.split(), inside=self.inside)
        ip("route", "add", "default", "via", f"{net}.1", inside=self.inside)

    def cut(self) -> None:
        """From now on packets go nowhere, and nobody is told."""
        ip("link", "set", self.name, "down")

    def heal(self) -> None:
        """Whole again."""
        ip("link", "set", self.name, "up")

    def end(self) -> None:
        """Let go of the namespace."""
        self._holder.kill()
        self._holder.wait()
