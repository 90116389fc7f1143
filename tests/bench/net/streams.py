"""TCP between a guest and the host: our device on a tap, QEMU's own tap, and passt."""

from __future__ import annotations

import fcntl
import shutil
import socket
import struct
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bench import quiet
from tests.bench.backends import LOOK_S, Missing, child
from tests.bench.bars import Bar
from tests.bench.clients.compiled import build
from tests.bench.contenders import Taken
from tests.bench.rounds import Entry
from tests.bench.scale_point import workers
from tests.devices.network_of_ours import bring_up, network
from vuproc.testing import serve
from vuproc.testing.vms import LinuxGuest, Qemu, VhostUserNet, boot_qemu, clients

OURS, TAP, PASST = "vuproc tap", "QEMU's tap", "passt"
LEAST = 1.2
QUEUE_SIZE = 1024
"""Entries of every queue of a device under this QEMU."""
PORT = 4000
MAC, GATEWAY_MAC = "52:54:00:12:34:56", "52:54:00:12:34:57"
WARM_UP_S = 0.3
BOOT_S = 90.0
BLOCK = bytes(1 << 18)
BOUND_S = 20.0
PASST_PROGRAM = "passt/usr/bin/passt"

WAYS = {"up": b"u", "down": b"d"}
"""From the guest to the host, and from the host to the guest: what the guest is told."""
TITLES = {"up": "a TCP stream from the guest", "down": "a TCP stream to the guest"}


def bars() -> list[Bar]:
    """Of all comparisons."""
    return [
        Bar(f"{TITLES[way]}, of {peer}", way, OURS, (peer,), LEAST)
        for way in WAYS
        for peer in (TAP, PASST)
    ]


@dataclass(frozen=True, slots=True)
class Stream:
    """A guest that has joined, and does what it is told."""

    name: str
    family: str
    what: bytes
    listener: socket.socket
    workers: Callable[[], list[int]]
    queues: int = 1
    depth: int = 1

    def take(self, count: int, tries: int) -> Taken:
        """Bytes a second, of so many milliseconds. cpu_ns: of the whole side, a byte. Raises
        Missing if the guest is gone.
        """
        pids = self.workers()
        (rate, cpu_ns), found = quiet.measure(
            lambda: self._sample(count / 1000, pids), pids, tries, crowded=True
        )
        return Taken(rate, 0.0, 0.0, cpu_ns, found.foreign, found.foreign <= quiet.FOREIGN_LIMIT)

    def _sample(self, seconds: float, pids: list[int]) -> tuple[float, float]:
        try:
            with self.listener.accept()[0] as end:
                end.settimeout(BOUND_S)
                end.sendall(self.what)
                move = _receive if self.what == b"u" else _send
                move(end, WARM_UP_S)
                before = sum(quiet.times(pid).ran for pid in pids)
                moved, took = move(end, seconds)
                spent = sum(quiet.times(pid).ran for pid in pids) - before
        except TimeoutError:
            raise Missing(f"nothing passed for {BOUND_S:g} s") from None
        if not moved:
            raise Missing("nothing passed")
        return moved / took, spent / moved


def _receive(end: socket.socket, seconds: float) -> tuple[int, float]:
    began = now = time.monotonic()
    room, moved = bytearray(len(BLOCK)), 0
    while now - began < seconds:
        moved += end.recv_into(room)
        now = time.monotonic()
    return moved, now - began


def _send(end: socket.socket, seconds: float) -> tuple[int, float]:
    # What the other end has not acknowledged is not there yet.
    began = now = time.monotonic()
    moved = _unacknowledged(end)
    while now - began < seconds:
        moved += end.send(BLOCK)
        now = time.monotonic()
    return moved - _unacknowledged(end), now - began


def _unacknowledged(end: socket.socket) -> int:
    found: int = struct.unpack("i", fcntl.ioctl(end, termios.TIOCOUTQ, bytes(4)))[0]
    return found


@contextmanager
def apart() -> Iterator[None]:
    """In a network of its own. Raises Missing without the right to make one."""
    try:
        with network():
            bring_up("lo")
            yield
    except pytest.skip.Exception as skipped:
        raise Missing(str(skipped)) from None


def entries(way: str) -> list[Entry[Stream]]:
    """All sides, each with a guest of its own; in a network that nothing else is in."""
    sides = {OURS: _ours, TAP: _tap, PASST: _passt}
    return [Entry(name, opened(WAYS[way])) for name, opened in sides.items()]


@contextmanager
def _ours(what: bytes) -> Iterator[Stream]:
    with ExitStack() as stack:
        file = {"type": "net", "backend": "tap", "interface": "vuours0"}
        served = stack.enter_context(serve(file, queue_size=QUEUE_SIZE))
        bring_up("vuours0", "10.9.1.1")
        device = VhostUserNet(socket=served.socket, properties={"mac": MAC})
        guest = _boot(stack, "10.9.1.1", [device], [])
        pids = [served.pid, guest.process.pid]
        yield Stream(
            OURS, "vuproc", what, _joined(stack, "10.9.1.1"), lambda: [*pids, *workers(served)]
        )


@contextmanager
def _tap(what: bytes) -> Iterator[Stream]:
    with ExitStack() as stack:
        netdev = "tap,id=net,ifname=vuqemu0,script=no,downscript=no,vnet_hdr=on"
        guest = _boot(stack, "10.9.2.1", [], _network(netdev))
        _until(lambda: Path("/proc/thread-self/net/dev").read_text().find("vuqemu0") >= 0)
        bring_up("vuqemu0", "10.9.2.1")
        pids = [guest.process.pid]
        yield Stream(TAP, "qemu", what, _joined(stack, "10.9.2.1"), lambda: pids)


@contextmanager
def _passt(what: bytes) -> Iterator[Stream]:
    program = clients.cache() / PASST_PROGRAM
    if not program.exists():
        raise Missing(f"there is no {PASST_PROGRAM} in the cache ({clients.HOW})")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vuproc-bench-"))
        path = Path(folder, "passt.sock")
        # Its guest sees the host's own addresses as those of the gateway.
        command: list[str | Path] = [program, "-f", "-q", "-e", "-s", path, "--runas", "0"]
        command += ["-i", "lo", "-a", "10.9.3.2", "-n", "24", "-g", "10.9.3.1", "-4"]
        command += ["-M", GATEWAY_MAC]
        passt = stack.enter_context(child(command, path))
        netdev = f"stream,id=net,server=off,addr.type=unix,addr.path={path}"
        # As passt's manual has it: without segments, what helps is a large MTU.
        guest = _boot(stack, "10.9.3.1", [], _network(netdev), mtu=65520)
        pids = [guest.process.pid, *passt.pids()]
        yield Stream(PASST, "passt", what, _joined(stack, "127.0.0.1"), lambda: pids)


def _network(netdev: str) -> list[str]:
    return ["-netdev", netdev, "-device", f"virtio-net-pci,netdev=net,romfile=,mac={MAC}"]


def _boot(
    stack: ExitStack,
    host: str,
    devices: Sequence[VhostUserNet],
    extra: Sequence[str],
    mtu: int = 1500,
) -> LinuxGuest:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vuproc-bench-"))
    program = Path(folder, "stream")
    shutil.copy(build("stream"), program)
    script = f"""
ip link set eth0 up mtu {mtu}
ip addr add {host.rpartition(".")[0]}.2/24 dev eth0
stream {host} {PORT}
"""
    return stack.enter_context(
        boot_qemu(
            devices,
            script=script,
            modules=("virtio_pci", "virtio_net"),
            programs=[program],
            cpus=1,
            qemu=Qemu.TRIXIE,
            extra=extra,
        )
    )


def _joined(stack: ExitStack, host: str) -> socket.socket:
    """Where the guest connects, after it has done so for the first time."""
    listener = stack.enter_context(socket.create_server((host, PORT)))
    listener.settimeout(BOOT_S)
    try:
        listener.accept()[0].close()
    except TimeoutError:
        raise Missing(f"the guest has not connected within {BOOT_S:g} s") from None
    listener.settimeout(BOUND_S)
    return listener


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not holds():
        if time.monotonic() > deadline:
            raise Missing(f"QEMU has made no interface within {BOUND_S:g} s")
        time.sleep(LOOK_S)
