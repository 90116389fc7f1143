"""What a sandbox costs a request: threads of one process serve one ring in turn, some of them
locked in.

Two disks differ by some percent, as their memory lies. So it is one disk, with the same memory,
files and ring, and only the thread that serves it changes, every millisecond or two: the code is a
worker's, its sleep in the poll set included, and so are the system calls. A filter of system calls,
Landlock and the loss of capabilities are a thread's own; namespaces are not, and are left out.
"""

from __future__ import annotations

import ctypes
import os
import random
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from threading import Event, Thread

from tests.bench.wake import BLOCK, HEADER, think
from tests.devices.inline import Inline
from vuproc.devices.blk import Blk
from vuproc.sandbox import kernel
from vuproc.sandbox.lockdown import Lockdown
from vuproc.sandbox.make import make_policy
from vuproc.sandbox.policy import Mode, Policy, absolute
from vuproc.shm.counters import QueueCounters, block_bytes
from vuproc.shm.kick_wait import KickWait
from vuproc.shm.ring import SLICE_NS
from vuproc.shm.spin import Spin
from vuproc.testing.queue import DriverQueue
from vuproc.workers.poller import Watcher
from vuproc.workers.queue import MOST

LOCKED: tuple[Mode, ...] = ("standard", "strict")
AGAIN = "off again"
"""What two that are the same differ by."""
WARM_UP = 2
THINK_NS = 50_000
SWITCH_S = 1e-4
"""After which a thread that runs Python lets another one do so."""
DRIVER_CPU, DEVICE_CPU = 0, 1
BOUND_S = 60.0
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2


@dataclass(frozen=True, slots=True)
class Way:
    """How requests are made: so many at a time, so many times in a sample."""

    depth: int
    times: int

    def once(self, queue: DriverQueue) -> None:
        """With one kick; all of them are completed then."""
        for token in queue.submit_many([([HEADER], [BLOCK, 1])] * self.depth):
            queue.wait(token)


WAYS = {"a request that wakes": Way(1, 8), "one of 16": Way(16, 4)}


class OneDisk:
    """A disk with its ring, which a thread serves until it is told to stop."""

    def __init__(self, image: Path) -> None:
        device = Blk(Blk.options_type(image=str(image), readonly=True, engine="sync"))
        self.needs = absolute(device.sandbox_needs(), "/")
        self._inline = Inline(device, counters=QueueCounters(bytearray(block_bytes(1)), 0))
        self.queue = self._inline.queue
        self._inline.ring.set_call(self.queue.call_bell.theirs.fileno())
        self._inline.chain([HEADER], [BLOCK, 1])
        assert self.queue.kick_bell is not None
        self._kick = self.queue.kick_bell.theirs.fileno()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._watcher = Watcher()
        for file in (self._kick, self._stop):
            self._watcher.add(file, lambda _events: None)
        self._kicks, self._spin = KickWait(self._watcher.fileno()), Spin("off", None, 1)

    def serve(self) -> None:
        """As a worker's loop, until `stop`."""
        ring, native = self._inline.ring, self._inline.native
        assert native is not None
        while True:
            ready = self._kicks.serve(ring, self._kick, self._spin, None, MOST, SLICE_NS)
            while ready:
                more = ring.serve_native(native, _raise, MOST, 0, SLICE_NS)
                ready = more or ring.arm()
            try:
                os.eventfd_read(self._stop)
                return
            except BlockingIOError:
                pass  # it looks up now and then

    def stop(self) -> None:
        """Has `serve` return."""
        os.eventfd_write(self._stop, 1)

    def close(self) -> None:
        """Once nobody serves it."""
        self._watcher.close()
        os.close(self._stop)
        self._inline.close()


def _raise(_request: object, error: BaseException) -> None:
    raise error


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("start", ctypes.c_char_p))


class _ThreadLockdown(Lockdown):
    """That of the calling thread alone."""

    def _filter(self) -> None:
        program = self._policy.program
        told = _Program(len(program) // 8, program)
        kernel.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(told))


class Side:
    """A thread that serves the disk when it is its turn."""

    def __init__(self, disk: OneDisk, policy: Policy | None) -> None:
        self._disk = disk
        self._policy = policy
        self._turn, self._done = Event(), Event()
        self._over = False
        self._thread = Thread(target=self._run)
        self._thread.start()
        self._await_done()
        assert self._thread.ident is not None
        status = Path(f"/proc/self/task/{self._thread.native_id}/status").read_text()
        if ("Seccomp:\t2" in status) != (policy is not None):
            raise RuntimeError("the thread has not the filter of system calls that it is to have")
        self._clock = time.pthread_getcpuclockid(self._thread.ident)

    def measure(self, way: Way) -> float:
        """Nanoseconds of the thread's CPU time a request, in the median."""
        self._turn.set()
        read = []
        for _ in range(WARM_UP + way.times):
            way.once(self._disk.queue)
            think(THINK_NS)  # until it sleeps: then its clock stands still
            read.append(time.clock_gettime_ns(self._clock))
        self._disk.stop()
        self._await_done()
        spent = [after - before for before, after in pairwise(read[WARM_UP - 1 :])]
        return median(spent) / way.depth

    def end(self) -> None:
        """Of the thread."""
        self._over = True
        self._turn.set()
        self._thread.join()

    def _run(self) -> None:
        _pin(DEVICE_CPU)
        if self._policy is not None:
            _ThreadLockdown(self._policy).close()
        self._done.set()
        while True:
            self._turn.wait()
            self._turn.clear()
            if self._over:
                return
            self._disk.serve()
            self._done.set()

    def _await_done(self) -> None:
        if not self._done.wait(BOUND_S):
            raise TimeoutError("the thread that serves does not get on")
        self._done.clear()


Found = dict[str, dict[str, list[float]]]
"""By way and side: nanoseconds of CPU time a request, one a round."""


def measure(image: Path, seconds: float, ways: Collection[str]) -> Found:
    """As many rounds as fit into so many seconds, with each side once in each.

    To be called in a process of its own: what is given up is not had again.
    """
    found: Found = {}
    with closing(OneDisk(image)) as disk, _sides(disk) as sides:
        _pin(DRIVER_CPU)
        sys.setswitchinterval(SWITCH_S)
        chance = random.Random(1)
        for title in ways:
            samples: dict[str, list[float]] = {name: [] for name in sides}
            ends = time.monotonic() + seconds / len(ways)
            while time.monotonic() < ends:
                for name in chance.sample(list(sides), len(sides)):
                    samples[name].append(sides[name].measure(WAYS[title]))
            found[title] = samples
    return found


@contextmanager
def _sides(disk: OneDisk) -> Iterator[dict[str, Side]]:
    sides: dict[str, Side] = {}
    try:
        sides["off"], sides[AGAIN] = Side(disk, None), Side(disk, None)
        for mode in LOCKED:
            sides[mode] = Side(disk, make_policy(mode, disk.needs))
        yield sides
    finally:
        for side in sides.values():
            side.end()


def _pin(cpu: int) -> None:
    """The calling thread."""
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {cpu})
