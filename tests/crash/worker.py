"""The device's side of a crash test: what runs in a process that dies at a store of its ring."""

from __future__ import annotations

import ctypes
import importlib
import os
import select
import signal
import struct
from collections.abc import Callable
from mmap import mmap
from typing import Any

from tests.crash.driver import LENGTH, LOG_BYTES, Driver, answer
from tests.crash.packed_driver import PackedDriver
from tests.shm.guest import F_EVENT_IDX, F_INDIRECT, PARTS, user
from vuproc.shm.batch import Batch
from vuproc.shm.dirty import DirtyLog
from vuproc.shm.inflight import SplitRecord
from vuproc.shm.kick_wait import KickWait
from vuproc.shm.memory import GuestMemory
from vuproc.shm.packed import PackedRing
from vuproc.shm.packed_record import PackedRecord
from vuproc.shm.request import Request
from vuproc.shm.ring import SLICE_NS, Ring
from vuproc.shm.spin import Spin
from vuproc.shm.split import SplitRing

STARTED = b"d"
IDLE = struct.Struct("<cI")
"""Goes to sleep, and has taken so many kicks."""
FAILED = b"!"
STOP = b"s"
STOPPED = struct.Struct("<cI")
"""At this base."""
RAN = 0
SKIPPED = 1
BEGUN = 2


def crash_words() -> ctypes.Array[ctypes.c_int64]:
    """The stores so far and the number of the deadly one: the units' own words."""
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    place: bytes = getenv(b"VUPROC_CRASH_WORDS")
    return (ctypes.c_int64 * 2).from_address(int(place.split()[1], 16))


class Journal:
    """What the devices of all lives did, in memory that outlives them: (life, number, kind)."""

    def __init__(self) -> None:
        self.memory = mmap(-1, 1 << 16)

    def append(self, life: int, number: int, kind: int) -> None:
        (count,) = struct.unpack_from("<Q", self.memory)
        struct.pack_into("<III", self.memory, 8 + 12 * count, life, number, kind)
        struct.pack_into("<Q", self.memory, 0, count + 1)

    def entries(self) -> list[tuple[int, int, int]]:
        (count,) = struct.unpack_from("<Q", self.memory)
        return [struct.unpack_from("<III", self.memory, 8 + 12 * i) for i in range(count)]

    def clear(self) -> None:
        struct.pack_into("<Q", self.memory, 0, 0)


class Bell:
    """A kick that has come and is the only one, for a ring that is served between two sleeps."""

    def __init__(self) -> None:
        self._kick = os.eventfd(0, os.EFD_CLOEXEC)
        self._polls = select.epoll()
        self._polls.register(self._kick, select.EPOLLIN)
        self._wait = KickWait(self._polls.fileno())
        self._spin = Spin("off", None, 1)

    def serve(self, ring: Ring, budget: int) -> bool:
        """As `Ring.serve_native` and `Ring.arm`."""
        os.eventfd_write(self._kick, 1)
        return self._wait.serve(ring, self._kick, self._spin, 0.0, budget, SLICE_NS)


class Worker:
    """One life. `new`: no earlier one got as far as to say that the ring is started."""

    def __init__(
        self, driver: Driver, record: int, journal: Journal, life: int, *, new: bool
    ) -> None:
        self.scenario = driver.scenario
        self.driver = driver
        self.journal = journal
        self.life = life
        self.budget = 1 if life and self.scenario.one_by_one else self.scenario.budget
        self.words = crash_words()
        self.deferred: list[Request] = []
        self.handled = 0
        guest = driver.guest
        self.ring = self._packed(record, new) if self.scenario.packed else self._split(record, new)
        self.ring.set_call(guest.call)
        self.ring.resubmit = self.scenario.resubmit
        self.ring.on_skip = self.skip
        if self.scenario.logged:
            self.ring.log_writes(DirtyLog(driver.log, LOG_BYTES), guest.used)
        self.given_back: set[int] = set()
        self.native: Any = None
        self.bell = Bell()
        if self.scenario.device != "python":
            # Built beside the units under test, and nowhere else.
            made: Any = importlib.import_module("crash_native")
            if self.scenario.device == "blk":
                self.native = made.Disk(driver.image, 1 << 20, block_size=1)
            elif self.scenario.pulls:
                self.native = made.Pulling()
                self.native.last = self.scenario.total - self.scenario.held
                self.ring.pulled_by(self.native)
                self.ring.may_be_pulled = True
            else:
                self.native = made.Answering()
            self.native.prepare(journal.memory, life, self.scenario.defer)

    def _memory(self) -> GuestMemory:
        return GuestMemory.from_regions(
            (part.guest, part.size, part.user, part.offset, self.driver.guest.fd) for part in PARTS
        )

    def _features(self) -> int:
        indirect = self.scenario.indirect or self.scenario.mixed
        return F_INDIRECT * indirect | F_EVENT_IDX * self.scenario.event_idx

    def _split(self, record: int, new: bool) -> Ring:
        guest = self.driver.guest
        return SplitRing(
            0,
            guest.size,
            self._memory(),
            user(guest.desc),
            user(guest.avail),
            user(guest.used),
            self.scenario.base if new else None,
            features=self._features(),
            chain_limit=4,
            record=SplitRecord(record, 0, guest.size),
            fresh=new and self.scenario.fresh,
        )

    def _packed(self, record: int, new: bool) -> Ring:
        assert isinstance(self.driver, PackedDriver)
        guest = self.driver.guest
        return PackedRing(
            0,
            guest.size,
            self._memory(),
            user(guest.desc),
            user(guest.driver),
            user(guest.device),
            self.driver.base() if new else None,
            features=self._features(),
            chain_limit=4,
            record=PackedRecord(record, 0, guest.size),
            fresh=new and self.scenario.fresh,
        )

    def serve(self, control: int) -> None:
        """Until told to stop: scan, then sleep until the next kick."""
        os.write(control, STARTED)
        poller = select.poll()
        poller.register(control, select.POLLIN)
        poller.register(self.driver.kick, select.POLLIN)
        kicks = 0
        while True:
            while self.work() or self.ring.in_flight or self.ring.arm():
                pass
            os.write(control, IDLE.pack(b"i", kicks))
            ready = dict(poller.poll())
            if self.driver.kick in ready:
                kicks += os.eventfd_read(self.driver.kick)
                self.point()
            else:
                break
        base = self.ring.stop()
        # Without the answer: another one stops the ring again.
        self.point()
        os.write(control, STOPPED.pack(b"s", base))

    def work(self) -> bool:
        """One turn: True if the budget ended it."""
        if self.native is not None and self.scenario.pulls:
            fetched = self.native.pull_some(self.budget)
            self.ring.publish()
            return bool(fetched == self.budget)
        if self.native is not None:
            if self.ring.quiet:
                more = self.bell.serve(self.ring, self.budget)
            else:
                more = self.ring.serve_native(self.native, self.failed, self.budget)
            self.ring.publish()
            return more
        if self.scenario.pulls:
            fetched = self.pull()
        elif self.scenario.gathers:
            fetched = self.ring.drain_batch(self.handle_batch, self.failed, self.budget)
        else:
            fetched = self.ring.drain(self.handle, self.failed, self.budget)
        if self.scenario.twice and self.ring.released > self.scenario.held:
            self.ring.readmit()
        # The oldest is kept back as long as there is something newer.
        while len(self.deferred) > (1 if fetched else 0):
            self.deferred.pop().finish()
        self.ring.publish()
        return fetched == self.budget

    def pull(self) -> int:
        """As a device that does so: as many as there are, or the budget."""
        fetched = 0
        while fetched < self.budget and (request := self.ring.take()) is not None:
            fetched += 1
            self.handle(request)
            if not request.finished and request not in self.deferred:
                request.finish()
        return fetched

    def handle(self, request: Request) -> None:
        number = int.from_bytes(request.read(LENGTH), "little")
        if self.gives_back(number):
            self.point()
            request.release()
            self.point()
            return
        self.journal.append(self.life, number, BEGUN)
        self.point()
        if self.scenario.own_word:
            request.resubmit = "drop"
        self.journal.append(self.life, number, RAN)
        request.write(answer(number))
        self.point()
        self.handled += 1
        if self.scenario.defer and self.handled % 2:
            request.defer()
            self.deferred.append(request)

    def handle_batch(self, batch: Batch) -> None:
        for request in batch:
            self.handle(request)
        self.point()
        # Some by a verb of all, the rest by the return.
        rest = [not (request.finished or request.deferred) for request in batch]
        batch.where(rest)[::2].finish()
        self.point()

    def gives_back(self, number: int) -> bool:
        scenario = self.scenario
        again = number in self.given_back
        self.given_back.add(number)
        return number > scenario.total - scenario.held or (scenario.twice and not again)

    def skip(self, request: Request, reason: str, attempts: int) -> None:
        expected = "drop" if self.scenario.own_word else self.scenario.resubmit
        if reason != expected or attempts > 2:
            raise AssertionError(f"request was to be skipped: {reason}, {attempts} attempts")
        number = int.from_bytes(request.read(LENGTH), "little")
        self.journal.append(self.life, number, SKIPPED)

    def failed(self, request: Request, error: BaseException) -> None:
        raise error

    def point(self) -> None:
        """A crash point of the test's own: round the side effect, and once a kick is consumed."""
        self.words[0] += 1
        if self.words[0] == self.words[1]:
            os.kill(os.getpid(), signal.SIGKILL)


def live(control: int, make: Callable[[], Worker]) -> None:
    """The whole life of a forked process; does not return."""
    code = 70
    try:
        make().serve(control)
        code = 0
    except BaseException as error:
        os.write(control, FAILED + f"{type(error).__name__}: {error}".encode()[:4000])
    finally:
        os._exit(code)
