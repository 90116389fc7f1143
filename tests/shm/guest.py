"""A guest for the ring's tests: memory in a memfd, and a driver that writes anything anywhere."""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import pytest

from vuproc.errors import RingError
from vuproc.shm.counters import QueueCounters
from vuproc.shm.inflight import SplitRecord
from vuproc.shm.memory import GuestMemory
from vuproc.shm.request import Request
from vuproc.shm.ring import Ring
from vuproc.shm.split import SplitRing

NEXT = 1
WRITE = 2
INDIRECT = 4
F_INDIRECT = 1 << 28
F_EVENT_IDX = 1 << 29
NO_INTERRUPT = 1

PAGE = 4096
FILE_BYTES = 0x90000
GUARDS = ((0, PAGE), (0x41000, 0x50000), (0x70000, 0x80000), (0x81000, FILE_BYTES))
"""Parts of the file that no region shows: a byte changed there is an escape."""


@dataclass(frozen=True)
class Part:
    """One region, as the front-end describes it, and where its bytes lie in the file."""

    guest: int
    size: int
    user: int
    offset: int


PARTS = (
    Part(0x100000, 0x40000, 0x7F0000000000, 0x1000),
    Part(0x140000, 0x20000, 0x7F0010000000, 0x50000),
    Part(0x180000, 0x1000, 0x7F0020000000, 0x80000),
)
"""The first two are neighbours in guest memory and nowhere else; the third lies behind a hole."""

RING = 0x100000
DATA = 0x120000
BOUNDARY = 0x140000
HOLE = 0x160000
END = 0x181000


class Guest:
    """Guest memory with one ring of `size` entries at RING, and raw access to all of it."""

    def __init__(self, size: int = 8, base: int = 0) -> None:
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, FILE_BYTES)
        self.bytes = mmap.mmap(self.fd, FILE_BYTES)
        self.size = size
        self.desc = RING
        self.avail = RING + 16 * size
        self.used = (self.avail + 6 + 2 * size + 3) & ~3
        self.offered = self.taken = base
        self.set_avail_idx(base)
        self.set_used_idx(base)
        self.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.memory = GuestMemory.from_regions(
            (part.guest, part.size, part.user, part.offset, self.fd) for part in PARTS
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bytes.close()
        os.close(self.fd)
        os.close(self.call)

    def ring(
        self,
        features: int = F_INDIRECT,
        *,
        base: int | None = None,
        chain_limit: int = 0,
        counters: QueueCounters | None = None,
        record: SplitRecord | None = None,
        fresh: bool = False,
    ) -> SplitRing:
        """The device side of the ring, notifying through `call`."""
        made = SplitRing(
            3,
            self.size,
            self.memory,
            user(self.desc),
            user(self.avail),
            user(self.used),
            base,
            features=features,
            chain_limit=chain_limit,
            counters=counters,
            record=record,
            fresh=fresh,
        )
        made.set_call(self.call)
        return made

    # Memory, by guest address.

    def read(self, addr: int, length: int) -> bytes:
        return b"".join(self.bytes[at:end] for at, end in places(addr, length))

    def write(self, addr: int, data: bytes) -> None:
        for at, end in places(addr, len(data)):
            self.bytes[at:end], data = data[: end - at], data[end - at :]

    def word(self, addr: int) -> int:
        return int.from_bytes(self.read(addr, 2), "little")

    def set_word(self, addr: int, value: int) -> None:
        self.write(addr, (value & 0xFFFF).to_bytes(2, "little"))

    def intact(self) -> bool:
        """No byte outside the regions was written."""
        return not any(self.bytes[start:end].strip(b"\0") for start, end in GUARDS)

    # The ring, by its parts.

    def set_desc(self, index: int, addr: int, length: int, flags: int = 0, next_: int = 0) -> None:
        self.write(self.desc + 16 * index, descriptor(addr, length, flags, next_))

    def set_avail_idx(self, idx: int) -> None:
        self.set_word(self.avail + 2, idx)

    def set_used_idx(self, idx: int) -> None:
        self.set_word(self.used + 2, idx)

    def set_used_event(self, idx: int) -> None:
        self.set_word(self.avail + 4 + 2 * self.size, idx)

    def set_avail_flags(self, flags: int) -> None:
        self.set_word(self.avail, flags)

    @property
    def used_idx(self) -> int:
        return self.word(self.used + 2)

    @property
    def used_flags(self) -> int:
        return self.word(self.used)

    @property
    def avail_event(self) -> int:
        return self.word(self.used + 4 + 8 * self.size)

    # What a driver does.

    def chain(self, head: int, parts: list[tuple[int, int, bool]]) -> None:
        """Descriptors head, head + 1, ...: (address, length, device may write)."""
        for i, (addr, length, writable) in enumerate(parts):
            last = i == len(parts) - 1
            flags = (WRITE if writable else 0) | (0 if last else NEXT)
            self.set_desc(head + i, addr, length, flags, 0 if last else head + i + 1)

    def offer(self, *heads: int) -> None:
        """Make chains available, without a kick."""
        for head in heads:
            self.set_word(self.avail + 4 + 2 * (self.offered % self.size), head)
            self.offered = (self.offered + 1) & 0xFFFF
        self.set_avail_idx(self.offered)

    def submit(self, head: int, parts: list[tuple[int, int, bool]]) -> None:
        self.chain(head, parts)
        self.offer(head)

    def reap(self) -> list[tuple[int, int]]:
        """(head, length) of the used elements that are new."""
        found = []
        while self.taken != self.used_idx:
            at = self.used + 4 + 8 * (self.taken % self.size)
            found.append(struct.unpack("<II", self.read(at, 8)))
            self.taken = (self.taken + 1) & 0xFFFF
        return [(head, length) for head, length in found]

    def calls(self) -> int:
        """Notifications since the last time."""
        try:
            return os.eventfd_read(self.call)
        except BlockingIOError:
            return 0


def descriptor(addr: int, length: int, flags: int = 0, next_: int = 0) -> bytes:
    return struct.pack("<QIHH", addr, length, flags, next_)


def places(addr: int, length: int) -> list[tuple[int, int]]:
    """Parts of the file, as (start, end), that a guest address range is; ValueError on a hole."""
    found = []
    while length > 0:
        for part in PARTS:
            if part.guest <= addr < part.guest + part.size:
                here = min(length, part.guest + part.size - addr)
                at = addr - part.guest + part.offset
                found.append((at, at + here))
                addr += here
                length -= here
                break
        else:
            raise ValueError(f"{addr:#x} is not guest memory")
    return found


def user(addr: int) -> int:
    """The front-end's user address of a guest address."""
    for part in PARTS:
        if part.guest <= addr < part.guest + part.size:
            return addr - part.guest + part.user
    raise ValueError(f"{addr:#x} is not guest memory")


def fail(request: Request, error: BaseException) -> None:
    """An `on_error` for tests in which no handler may fail."""
    raise error


def take(ring: Ring, budget: int = 1000) -> list[Request]:
    """Fetch what is there and leave it in flight."""
    requests: list[Request] = []

    def handle(request: Request) -> None:
        request.defer()
        requests.append(request)

    ring.drain(handle, fail, budget)
    return requests


def expect_broken(guest: Guest, ring: SplitRing, cause: str, index: int = 0) -> None:
    """The next look at the ring finds it broken, and from then on nothing of it is written."""
    reached: list[Request] = []
    with pytest.raises(RingError, match=cause) as caught:
        ring.drain(reached.append, fail, 100)
    error = caught.value
    assert (error.queue, error.index, reached) == (3, index, [])
    assert ring.broken is not None and ring.broken.args == error.args
    before = guest.bytes[:]
    guest.offer(0)
    guest.bytes[:] = before
    with pytest.raises(RingError, match=cause):
        ring.drain(reached.append, fail, 100)
    with pytest.raises(RingError, match=cause):
        ring.arm()
    ring.disarm()
    assert (ring.publish(), ring.pending, ring.in_flight, ring.unpublished) == (0, False, 0, 0)
    assert guest.bytes[:] == before
    assert reached == []


def write_table(guest: Guest, at: int, entries: list[tuple[int, int, int, int]]) -> None:
    guest.write(at, b"".join(descriptor(*entry) for entry in entries))
