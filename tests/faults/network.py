"""A network of its own for a process, which can be cut without a word: a Linux network namespace and a pair of veth.

Needs root, `ip` and `iptables`.
"""

from __future__ import annotations

import os
import shutil
import subprocess

HOST_ADDRESS, GUEST_ADDRESS, NETWORK = "10.213.77.1", "10.213.77.2", "10.213.77.0/30"
# The kernel's list of interfaces is one for all tests of the machine: one test at a time.
_HOST_LINK, _GUEST_LINK = "hpsearch-host", "hpsearch-guest"


def missing_for_networks() -> str | None:
    """What keeps us from making one, in words."""
    if os.geteuid() != 0:
        return "only root can make a network namespace"
    missing = [program for program in ("ip", "iptables") if shutil.which(program) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


class GuestNetwork:
    """A namespace from which this machine is reached at HOST_ADDRESS, and nothing else."""

    def __init__(self, name: str) -> None:
        self.name = name
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", _HOST_LINK, "type", "veth", "peer", "name", _GUEST_LINK, "netns", name)
        _run("ip", "address", "add", f"{HOST_ADDRESS}/30", "dev", _HOST_LINK)
        _run("ip", "link", "set", _HOST_LINK, "up")
        self._within("ip", "address", "add", f"{GUEST_ADDRESS}/30", "dev", _GUEST_LINK)
        self._within("ip", "link", "set", _GUEST_LINK, "up")
        self._within("ip", "link", "set", "lo", "up")

    def cut(self) -> None:
        """From now on every packet is lost, in both directions; nobody is told."""
        for chain in ("INPUT", "OUTPUT"):
            self._within("iptables", "--append", chain, "--jump", "DROP")

    def heal(self) -> None:
        for chain in ("INPUT", "OUTPUT"):
            self._within("iptables", "--delete", chain, "--jump", "DROP")

    def remove(self) -> None:
        """The links go with it."""
        _run("ip", "link", "delete", _HOST_LINK)
        _run("ip", "netns", "delete", self.name)

    def _within(self, *command: str) -> None:
        _run("ip", "netns", "exec", self.name, *command)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
