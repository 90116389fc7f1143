"""One point of a scale of devices: many disks, by one command or by a command each."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench import quiet
from tests.bench.scale_point import BOUND_S, FIRST, KIB, descendants, message_of, rate_of
from vuproc.ops.admin import AdminError, Request, ask
from vuproc.testing.guest import Guest
from vuproc.testing.memory import Ram, RamRegion

MIB = KIB * KIB
LOOK_S = 0.001
SETTLE_S = 2.0
"""Seconds after the last socket: until then standbys come up."""
NOT_OURS = ("Pss_Shmem:",)
"""Guest memory, and the counters: what is shared on purpose."""


@dataclass(frozen=True, slots=True)
class FleetPoint:
    """What so many disks of one queue took, all with a front-end and their ring running."""

    start_ms: float
    """From the command, or the first of them, to the last socket."""
    rings_ms: float
    """From a connection to the ring running, the median device."""
    memory_kib: float
    """Proportional set size of all processes, a device, less what is shared with guests."""
    processes: float
    """Of them, a device."""
    message_ns: float
    """SET_VRING_CALL of the first device until it is acknowledged."""
    message_cpu_ns: float
    """CPU time of its master for that."""
    rate: float
    """Requests a second, all devices at once."""
    idle_ns: float
    """CPU time a second of all processes together, with nothing to do."""


def measure_fleet(devices: int, *, apart: bool, requests: int, idle_s: float) -> FleetPoint:
    """Serve and drive them. `apart`: by a command each."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vuproc-scale-")))
        files = list(_files(folder, devices))
        sockets = [file.with_suffix(".sock") for file in files]
        began = time.monotonic()
        commands = [[str(file)] for file in files] if apart else [[str(folder)]]
        running = [stack.enter_context(running_command(command)) for command in commands]
        await_sockets(sockets, running)
        start = time.monotonic() - began
        time.sleep(SETTLE_S)
        connects, guests = [], []
        for path in sockets:
            began = time.monotonic()
            memory = Ram([RamRegion(MIB, FIRST)])
            guests.append(stack.enter_context(Guest(path, memory=memory, timeout_s=BOUND_S)))
            connects.append(time.monotonic() - began)
        pids = [pid for process in running for pid in (process.pid, *descendants(process.pid))]
        idle = _all_idle(pids, idle_s)
        memory_kib = sum(map(pss_kib, pids))
        message, cpu = message_of(_master(sockets[0]), guests[0])
        return FleetPoint(
            start * 1e3,
            median(connects) * 1e3,
            memory_kib / devices,
            len(pids) / devices,
            message,
            cpu,
            rate_of(guests, 1, requests),
            idle,
        )


def pss_kib(pid: int) -> float:
    """Memory of a process, each page divided by those that have it; 0 if it has ended."""
    total = 0.0
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, value, *_ = line.split()
            if name == "Pss:":
                total += int(value)
            elif name in NOT_OURS:
                total -= int(value)
    return total


def _files(folder: Path, devices: int) -> Iterator[Path]:
    for number in range(devices):
        file = folder / f"disk{number}.yaml"
        file.write_text(f"socket: {folder}/disk{number}.sock\ndevice: {{type: blk, ram: 16MiB}}\n")
        yield file


@contextmanager
def running_command(words: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """`vuproc run` with these words, as a process; it is ended at the end."""
    command = [sys.executable, "-m", "vuproc", "run", *words, "--log-level", "warning"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(BOUND_S)


def await_sockets(sockets: Sequence[Path], running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Until all of them are there. Raises RuntimeError."""
    deadline = time.monotonic() + 4 * BOUND_S
    for path in sockets:
        while not os.path.exists(path):
            if time.monotonic() > deadline or any(each.poll() is not None for each in running):
                raise RuntimeError(f"{path} does not come")
            time.sleep(LOOK_S)


def _master(path: Path) -> int:
    try:
        return int(ask(path, Request("status"))["pid"])
    except AdminError as error:
        raise RuntimeError(f"{path}: {error}") from error


def _all_idle(pids: Sequence[int], seconds: float) -> float:
    before = sum(quiet.times(pid).ran for pid in pids)
    time.sleep(seconds)
    return (sum(quiet.times(pid).ran for pid in pids) - before) / seconds
