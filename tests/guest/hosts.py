"""Network namespaces that stand for hosts: what is started inside one has that network, and no
other.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vuproc.testing.vms import ClientMissing

CLONE_NEWNET = 0x40000000
"""Linux, sched.h."""
MY_NETWORK = "/proc/thread-self/ns/net"
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass
class Host:
    """One of them. `addresses`: its own, by the name of the host at the other end of the cable."""

    name: str
    addresses: dict[str, str] = field(default_factory=dict)

    @property
    def network(self) -> Path:
        """The namespace, as ip-netns(8) has it."""
        return Path("/run/netns", self.name)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """What this thread starts meanwhile is on that host."""
        before = os.open(MY_NETWORK, os.O_RDONLY | os.O_CLOEXEC)
        try:
            there = os.open(self.network, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _enter(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _enter(before)
        finally:
            os.close(before)

    def has(self, pid: int) -> bool:
        """Whether a process is on it."""
        return os.path.samefile(f"/proc/{pid}/ns/net", self.network)


def _enter(network: int) -> None:
    if _LIBC.setns(network, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise ClientMissing("hosts", f"ip {' '.join(words)}: {done.stderr.strip()}")


@contextmanager
def cabled(names: Sequence[str]) -> Iterator[list[Host]]:
    """Hosts with a cable between each two. Raises ClientMissing where there can be none."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise ClientMissing("hosts", "network namespaces want root, and ip(8)")
    hosts = [Host(f"vuproc-{os.getpid()}-{name}") for name in names]
    with ExitStack() as undo:
        for host in hosts:
            _ip("netns", "add", host.name)
            undo.callback(_ip, "netns", "del", host.name)
            _ip("-n", host.name, "link", "set", "lo", "up")
        for number, pair in enumerate(itertools.combinations(range(len(hosts)), 2)):
            ends = [f"vu{os.getpid() % 100000}x{number}{end}" for end in "ab"]
            _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
            for end, one, other in ((ends[0], *pair), (ends[1], *pair[::-1])):
                address = f"10.199.{number}.{one + 1}"
                _ip("link", "set", end, "netns", hosts[one].name)
                _ip("-n", hosts[one].name, "address", "add", f"{address}/24", "dev", end)
                _ip("-n", hosts[one].name, "link", "set", end, "up")
                hosts[one].addresses[names[other]] = address
        yield hosts
