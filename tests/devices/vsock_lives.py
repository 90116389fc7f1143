"""A socket device on real rings in the test's own process, whose worker may die at any instruction.

A death is an exception out of the device's code, before one of its bytecode instructions; whatever
it has in memory is gone then. The next life has the shared files, guest memory and the in-flight
records, as the next worker would.
"""

from __future__ import annotations

import select
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

from vuproc.devices.vsock import Vsock, VsockOptions
from vuproc.errors import RequestAbandoned
from vuproc.fd import Fd
from vuproc.pool.inflight_file import make_records
from vuproc.shm.inflight import SplitRecord
from vuproc.shm.memory import GuestMemory
from vuproc.shm.request import Request
from vuproc.shm.split import SplitRing
from vuproc.spec.inflight import RECORD_ALIGN
from vuproc.spec.virtio import Feature
from vuproc.spec.vsock import EVENT, RX, TX
from vuproc.testing.memory import Ram
from vuproc.testing.queue import DriverQueue

SIZE = 64
RECORD = 64 * RECORD_ALIGN
QUEUES = RX, TX, EVENT
CODE = "/devices/vsock"


class Dead(BaseException):
    """The worker was killed."""


class Guest:
    """Memory and rings of a driver that polls, and what outlives a worker; as much of
    `vuproc.testing.Guest` as a driver of sockets needs.
    """

    def __init__(self, path: Path, **options: Any) -> None:
        self.options = VsockOptions(path=str(path), **options)
        self.ram = Ram(16 << 20)
        self.map()
        self.queues = {index: DriverQueue(self.ram, index, SIZE) for index in QUEUES}
        self.records, _ = make_records(len(QUEUES), RECORD)
        self.bases: dict[int, int | None] = dict.fromkeys(QUEUES, 0)
        """Where a ring begins; None: where it stopped, or where its record says."""
        self.files: dict[str, Fd] = Vsock(self.options).shared_files()

    def map(self) -> None:
        """Have its memory, as a worker has it."""
        self.memory = GuestMemory.from_regions(
            (r.guest_addr, r.size, r.user_addr, r.mmap_offset, r.fd.fileno())
            for r in self.ram.regions
        )

    def keep_filled(self, queue: int, *, count: int, size: int) -> None:
        """As that of a `Guest`."""
        self.queues[queue].keep_filled(count, size)

    def submit(self, queue: int, out: list[bytes]) -> tuple[int, int]:
        """As that of a `Guest`."""
        return queue, self.queues[queue].submit(out)

    def packets(self) -> list[bytes]:
        """What has come, without waiting."""
        for queue in self.queues.values():
            queue.reap()
        receiving = self.queues[RX]._receiving
        assert receiving is not None
        return [self.queues[RX].receive() for _ in range(len(receiving.filled))]

    def close(self) -> None:
        """Take everything down."""
        for queue in self.queues.values():
            queue.close()
        for file in self.files.values():
            file.close()
        self.records.close()
        self.ram.close()


class Life:
    """One worker: a loop of its own, and the device in it. `start`: the rings are there already."""

    def __init__(self, guest: Guest, *, start: bool = True) -> None:
        self.watched: dict[int, tuple[int, Callable[[], None]]] = {}
        self.soon: deque[Callable[[], None]] = deque()
        self.timers: deque[SimpleNamespace] = deque()
        self.errors: list[BaseException] = []
        device = self.device = Vsock(guest.options)
        device.shared = guest.files
        loop: Any = self
        device.attach(loop)
        self.rings: dict[int, SplitRing] = {}
        self._guest = guest
        for index in QUEUES:
            device.setup(index)
        device.features_acked(device.features | Feature.VERSION_1)
        if start:
            self.start()

    def start(self) -> None:
        """The rings start, or go on."""
        for index in QUEUES:
            self.rings[index] = self._ring(index)
            self.device.ring_started(index)

    def stop(self) -> None:
        """The rings stop in good order, one after the other."""
        for index in QUEUES:
            self.device.ring_stopping(index)
            ring = self.rings.pop(index)
            assert not ring.in_flight
            ring.publish()
            ring.on_skip = None
            ring.stop()
            self.device.ring_stopped(index)

    def _ring(self, index: int) -> SplitRing:
        guest, queue = self._guest, self._guest.queues[index]
        base, guest.bases[index] = guest.bases[index], None
        ring = SplitRing(
            index,
            SIZE,
            guest.memory,
            queue.desc,
            queue.avail,
            queue.used,
            base,
            features=int(Feature.VERSION_1 | Feature.INDIRECT_DESC),
            chain_limit=SIZE,
            record=SplitRecord(guest.records.fileno(), index * RECORD, SIZE),
        )
        ring.on_skip = self._skip
        native = self.device.native(index)
        if native is not None:
            ring.pulled_by(native)
            ring.may_be_pulled = True
        return ring

    def _skip(self, request: Request, why: str, _attempts: int) -> None:
        """As a worker: `DeviceCode.request_skipped`."""
        if why == "fail":
            self.device.fail(request, RequestAbandoned(request.queue, request.head, 0))
        if not request.finished:
            request.finish(0)

    def turn(self) -> bool:
        """One turn of the loop; whether there was something to do."""
        poller = select.poll()
        for number, (events, _) in self.watched.items():
            poller.register(number, events)
        busy = False
        for number, _ in poller.poll(0):
            if number in self.watched:
                self.watched[number][1]()
                busy = True
        for _ in range(len(self.soon)):
            self.soon.popleft()()
            busy = True
        for index, ring in self.rings.items():
            ring.publish()
            if ring.pending:
                self.device.available(index)
                busy = True
            ring.arm()
        return busy

    def rest(self) -> None:
        """Nothing happens for a while: the timers come."""
        for _ in range(len(self.timers)):
            timer = self.timers.popleft()
            if timer.active:
                timer.active = False
                timer.callback()

    def leave(self) -> None:
        """Close what it has open, as the kernel does for a process."""
        self.soon.clear()
        self.timers.clear()
        for ring in self.rings.values():
            ring.on_skip = None  # requests hold the ring, which the garbage collector cannot see
        self.rings.clear()
        with suppress(AttributeError, OSError, ValueError, KeyError):
            self.device.teardown()

    # vuproc.device.Loop.

    def watch(self, fd: Any, callback: Callable[[], None], *, write: bool) -> None:
        number = fd if isinstance(fd, int) else fd.fileno()
        assert number not in self.watched
        self.watched[number] = (select.POLLOUT if write else select.POLLIN), callback

    def unwatch(self, fd: Any) -> None:
        self.watched.pop(fd if isinstance(fd, int) else fd.fileno(), None)

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def call_later(self, _seconds: float, callback: Callable[[], None], *, again: bool) -> Any:
        assert not again
        timer = SimpleNamespace(callback=callback, active=True)
        timer.cancel = lambda: setattr(timer, "active", False)
        self.timers.append(timer)
        return timer

    def take(self, queue: int) -> Request | None:
        ring = self.rings.get(queue)
        return None if ring is None else ring.take()

    def publish(self, queue: int) -> None:
        self.rings[queue].publish()

    def unfinished(self, queue: int) -> frozenset[int] | None:
        ring = self.rings.get(queue)
        return None if ring is None else frozenset(each.head for each in ring.recovered)

    def count_dropped(self, _queue: int, _count: int) -> None:
        pass


class Deaths:
    """Counts the bytecode instructions of the device's code, and raises `Dead` at some."""

    def __init__(self, at: set[int]) -> None:
        self.at = at
        self.count = 0

    def __enter__(self) -> Deaths:
        sys.settrace(self._call)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        if CODE not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._step

    def _step(self, _frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "opcode":
            self.count += 1
            if self.count in self.at:
                raise Dead
        return self._step
