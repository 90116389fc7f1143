"""DPDK's test program: its virtio-user driver, which polls, without a VM; and its own back-end."""

from __future__ import annotations

import itertools
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from vuproc.testing.vms import clients
from vuproc.testing.vms.ending import Ending
from vuproc.testing.vms.errors import GuestFailed
from vuproc.testing.vms.process import GuestProcess

MEMORY_MIB = 256
BUFFERS = 8192
"""Of the pool that frames are in: more than four rings of 1024 entries hold."""
START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 60.0
LOOK_S = 0.05
"""Pause between two looks at the counters."""
POOL = "librte_mempool_ring.so"
VIRTIO, VHOST = "librte_net_virtio.so", "librte_net_vhost.so"
"""Drivers of ports: of a device's, and of a back-end's own."""

_numbers = itertools.count()
_COUNT = re.compile(r"(RX-packets|TX-packets|RX-errors|TX-errors): *(\d+)")
_RATE = re.compile(r"(Rx|Tx)-pps: *(\d+)")


class PortStats(NamedTuple):
    """What a port of testpmd has counted: frames."""

    received: int
    sent: int
    receive_errors: int
    send_errors: int


class PortRates(NamedTuple):
    """Frames a second, by testpmd's own clock."""

    received: float
    sent: float


class Testpmd(Ending):
    """dpdk-testpmd with one port, `device` of the driver `driver`, idle.

    A context manager: at its end it is dead. Its memory is ordinary pages, its drivers are loaded
    by name: DPDK refuses paths below a folder that everybody may write to. cpu: the one that it
    forwards on; None: any.
    """

    __test__ = False

    def __init__(self, driver: str, device: str, *, pairs: int, size: int, cpu: int | None):
        found = clients.dpdk(driver)
        cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        # The first types and prints, and sleeps else; the second forwards.
        places = f"(0,1)@({cpus})" if cpu is None else f"0@({cpus}),1@{cpu}"
        # Into a pipe it would write a block at a time.
        command: list[str | Path] = [clients.stdbuf(), "-oL", found.program]
        for name in (driver, POOL):
            command += ["-d", f"{name}.{found.abi}"]
        command += ["--no-huge", "-m", str(MEMORY_MIB), "--no-shconf", "--no-pci"]
        command += ["--no-telemetry", f"--file-prefix=vuproc-{os.getpid()}-{next(_numbers)}"]
        command += ["--lcores", places, f"--vdev={device}", "--", "-i", "--no-mlockall"]
        command += [f"--rxq={pairs}", f"--txq={pairs}", f"--total-num-mbufs={BUFFERS}"]
        command += [f"--rxd={size}", f"--txd={size}", "--no-flush-rx"]
        environment = dict(os.environ) | {"LD_LIBRARY_PATH": str(found.libraries)}
        self.process = GuestProcess(command, environment, typed=True)
        try:
            self._ask("show port summary 0", "Number of available ports", START_TIMEOUT_S)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """Ends testpmd at once (SIGKILL)."""
        self.process.kill()

    def start(self, mode: str, *, bursts: int = 0) -> None:
        """Forward in this mode of testpmd's (io, rxonly, txonly), after sending so many bursts of
        32 frames on each queue.
        """
        self.process.type(f"set fwd {mode}")
        self._ask(f"start tx_first {bursts}" if bursts else "start", f"{mode} packet forwarding")

    def stop(self) -> None:
        """Forward nothing any more."""
        self._ask("stop", "Done.")

    def stats(self) -> PortStats:
        """What the port has counted since its start."""
        self.process.type("show port stats 0")
        counted: dict[str, int] = {}
        self.process.wait_for(lambda line: "NIC statistics" in line, ANSWER_TIMEOUT_S, "its counts")

        def wanted(line: str) -> bool:
            counted.update((name, int(number)) for name, number in _COUNT.findall(line))
            return "TX-errors" in counted

        self.process.wait_for(wanted, ANSWER_TIMEOUT_S, "its counts")
        return PortStats(*(counted[name] for name in _STATS))

    def rates(self, seconds: float) -> PortRates:
        """What passes the port in the next so many seconds."""
        self._pps()
        time.sleep(seconds)
        return self._pps()

    def _pps(self) -> PortRates:
        # Since it was asked for the last time.
        self.process.type("show port stats 0")
        found: dict[str, float] = {}

        def wanted(line: str) -> bool:
            found.update((name, float(number)) for name, number in _RATE.findall(line))
            return "Tx" in found

        self.process.wait_for(wanted, ANSWER_TIMEOUT_S, "its rates")
        return PortRates(found["Rx"], found["Tx"])

    def wait_stats(self, received: int = 0, sent: int = 0, timeout_s: float = 60.0) -> PortStats:
        """Wait until it has received and sent at least so many frames. `GuestFailed`."""
        deadline = time.monotonic() + timeout_s
        while True:
            stats = self.stats()
            if stats.received >= received and stats.sent >= sent:
                return stats
            if time.monotonic() > deadline:
                wanted = f"waited {timeout_s:g} s for {received} received and {sent} sent frames"
                raise GuestFailed(f"dpdk-testpmd: {wanted}: {stats}", self.process.lines)
            time.sleep(LOOK_S)

    def quit(self) -> None:
        """Have it stop its port and end. `GuestFailed` if it does not end well."""
        self.process.type("quit")
        code = self.process.wait(ANSWER_TIMEOUT_S)
        if code != 0:
            raise GuestFailed(f"dpdk-testpmd ended with exit code {code}", self.process.lines)

    def _ask(self, command: str, answer: str, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self.process.type(command)
        self.process.wait_for(lambda line: answer in line, timeout_s, f"{answer!r} of {command!r}")


class Dpdk(Testpmd):
    """A port of the virtio-user driver on a vhost-user socket."""

    def __init__(
        self,
        socket: Path,
        *,
        pairs: int = 1,
        packed: bool = False,
        size: int = 256,
        cpu: int | None = None,
    ):
        device = f"net_virtio_user0,path={socket.absolute()},queues={pairs},queue_size={size}"
        device += f",packed_vq={int(packed)}"
        super().__init__(VIRTIO, device, pairs=pairs, size=size, cpu=cpu)


class DpdkBackend(Testpmd):
    """A port of net_vhost: DPDK's own back-end, which listens at `socket`."""

    def __init__(self, socket: Path, *, pairs: int = 1, size: int = 256, cpu: int | None = None):
        device = f"net_vhost0,iface={socket.absolute()},queues={pairs}"
        super().__init__(VHOST, device, pairs=pairs, size=size, cpu=cpu)


_STATS = ("RX-packets", "TX-packets", "RX-errors", "TX-errors")
"""The fields of `PortStats`, in testpmd's words."""
