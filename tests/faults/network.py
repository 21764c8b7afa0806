"""A network of its own for a process, which can be cut without a word: a Linux network namespace and a pair of veth.

Needs root, `ip` and `iptables`.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess

_ALL_NETWORKS = "10.213.0.0/16"


def missing_for_networks() -> str | None:
    """What keeps us from making one, in words."""
    if os.geteuid() != 0:
        return "only root can make a network namespace"
    missing = [program for program in ("ip", "iptables") if shutil.which(program) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


class GuestNetwork:
    """A namespace from which this machine is reached at `host_address`, and nothing else.

    Args:
        number: of the process that makes it: other tests of this machine have networks of their own, and one that was
            killed leaves its links behind.
    """

    def __init__(self, number: int) -> None:
        networks = list(ipaddress.ip_network(_ALL_NETWORKS).subnets(new_prefix=30))
        network = networks[number % len(networks)]
        host_address, guest_address = (f"{address}/30" for address in network.hosts())
        self.name, self.network = f"hpsearch-{number}", str(network)
        self.host_address = host_address.removesuffix("/30")
        self._host_link, guest_link = f"hps{number}-host", "guest"
        _run("ip", "netns", "add", self.name)
        _run("ip", "link", "add", self._host_link, "type", "veth", "peer", "name", guest_link, "netns", self.name)
        _run("ip", "address", "add", host_address, "dev", self._host_link)
        _run("ip", "link", "set", self._host_link, "up")
        self._within("ip", "address", "add", guest_address, "dev", guest_link)
        self._within("ip", "link", "set", guest_link, "up")
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
        _run("ip", "link", "delete", self._host_link)
        _run("ip", "netns", "delete", self.name)

    def _within(self, *command: str) -> None:
        _run("ip", "netns", "exec", self.name, *command)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
