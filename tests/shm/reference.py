"""The device side of a split ring in plain Python: the tests' oracle for the native one.

Written from virtio 1.2, section 2.7, for reading and not for speed: one thread, no barriers. It
works on any object with `read(addr, length)` and `write(addr, data)` that raise ValueError outside
guest memory.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

NEXT, WRITE, INDIRECT = 1, 2, 4
MAX_BYTES = 1 << 32


class Memory(Protocol):
    """Guest memory by guest address; a range may lie over neighbouring regions."""

    def read(self, addr: int, length: int) -> bytes: ...
    def write(self, addr: int, data: bytes) -> None: ...


class Broken(Exception):
    """The driver broke a rule of the ring: `cause` in the words of the native ring."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


@dataclass(frozen=True)
class Chain:
    """One request: (address, length) of its readable and its writable buffers."""

    head: int
    readable: tuple[tuple[int, int], ...]
    writable: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Descriptor:
    """One entry of a descriptor table."""

    addr: int
    length: int
    flags: int
    next: int


class ReferenceRing:
    """A split ring at guest addresses; `base` is where both indices stand."""

    def __init__(
        self,
        memory: Memory,
        size: int,
        desc: int,
        avail: int,
        used: int,
        base: int,
        *,
        event_idx: bool,
        indirect: bool,
        chain_limit: int = 0,
    ) -> None:
        self.memory = memory
        self.size = size
        self.desc = desc
        self.avail = avail
        self.used = used
        self.event_idx = event_idx
        self.indirect = indirect
        self.limit = max(size, chain_limit)
        self.last_avail = self.seen = base
        self.last_used = base
        self.in_flight: dict[int, None] = {}
        """Fetched and not shown to the driver as used, in the order of the fetches."""
        self.again: list[int] = []
        """Those of a predecessor, and readmitted ones, that are to be served first."""
        self.released: list[int] = []
        """Those that the device gave back."""
        self.places: dict[int, int] = {}
        """How many were fetched before each of those in flight; -1 where nobody can tell."""
        self.fetched = 0
        self.call_after_recovery = False
        self.finished: list[tuple[int, int]] = []
        self.wanted = False
        """The driver is to be notified of what `take` has published, or by `stop`."""
        self.notified_before = False
        self._set_word(used, 0)

    # Fetching.

    def available(self) -> int:
        """How many entries wait to be fetched."""
        self.seen = self._word(self.avail + 2)
        count = (self.seen - self.last_avail) & 0xFFFF
        if count > self.size:
            raise Broken("avail index is further on than the ring is long")
        return count

    def fetch(self) -> Chain | None:
        """Take the next chain; None if there is none."""
        if self.again:
            chain = self._walk(self.again[0])
            self.again.pop(0)
            return chain
        # A look at the index is good for all that it showed; only a hostile driver takes it back.
        if self.seen == self.last_avail and self.available() == 0:
            return None
        head = self._word(self.avail + 4 + 2 * (self.last_avail % self.size))
        if head >= self.size:
            raise Broken("avail entry is no descriptor of the table")
        if head in self.in_flight:
            raise Broken("descriptor head is in flight already")
        chain = self._walk(head)
        self.in_flight[head] = None
        self.places[head] = self.fetched
        self.fetched += 1
        self.last_avail = (self.last_avail + 1) & 0xFFFF
        return chain

    def take(self) -> Chain | None:
        """Take the next chain, as a device that pulls does; ask for a kick if there is none."""
        chain = self.fetch()
        if chain is None and self.finished:
            self.wanted |= self.publish()
            chain = self.fetch()
        if chain is None and self.arm():
            self.disarm()
            chain = self.fetch()
        return chain

    def release(self, head: int) -> None:
        """Take a request back from the device."""
        self.released.append(head)

    def readmit(self) -> int:
        """What was given back is to be served again; returns how many."""
        count = len(self.released)
        ours = {*self.again, *self.released}
        self.again = [head for head in self.in_flight if head in ours]
        self.released = []
        return count

    def stop(self) -> int:
        """Take back the last fetches, if nobody has these requests; returns how many are left."""
        ours = {*self.again, *self.released}
        last = set(range(self.fetched - len(self.in_flight), self.fetched))
        if ours == set(self.in_flight) and {self.places[head] for head in ours} == last:
            self.fetched -= len(ours)
            self.last_avail = (self.last_avail - len(ours)) & 0xFFFF
            self.in_flight, self.again, self.released = {}, [], []
        if not self.in_flight:
            self.wanted |= self.call_after_recovery
        return len(self.in_flight) - len(self.finished)

    def restart(self, *, clean: bool = False) -> None:
        """Go on as another worker, after a death or (`clean`) with nothing left to do.

        All that the driver has not seen as used is served again.
        """
        self.again = list(self.in_flight)
        self.released = []
        start = self.last_avail - len(self.again)
        entries = [
            self._word(self.avail + 4 + 2 * ((start + i) % self.size))
            for i in range(len(self.again))
        ]
        # Of those at the end that are what was fetched last, it is known when that was.
        last = 0
        while last < len(entries) and entries[-1 - last] == self.again[-1 - last]:
            last += 1
        first = self.fetched - len(self.again)
        self.places = {
            head: first + i if i >= len(self.again) - last else -1
            for i, head in enumerate(self.again)
        }
        self.seen = self.last_avail
        self.finished = []
        self.notified_before = False
        self.call_after_recovery = not clean
        self._set_word(self.used, 0)

    def _walk(self, head: int) -> Chain:
        table = self.memory.read(self.desc, 16 * self.size)
        entries, index, in_table, seen = self.size, head, False, 0
        parts: list[tuple[int, int]] = []
        readable_count: int | None = None
        while True:
            one = Descriptor(*struct.unpack_from("<QIHH", table, 16 * index))
            seen += 1
            if seen > entries:
                raise Broken("descriptor chain loops")
            if one.flags & INDIRECT:
                self._check_indirect(one, in_table)
                try:
                    table = self.memory.read(one.addr, one.length)
                except ValueError:
                    raise Broken("indirect table is not guest memory") from None
                entries, index, in_table, seen = one.length // 16, 0, True, 0
                continue
            if len(parts) == self.limit:
                raise Broken("descriptor chain is too long")
            if one.flags & WRITE:
                if readable_count is None:
                    readable_count = len(parts)
            elif readable_count is not None:
                raise Broken("device-readable descriptor after a device-writable one")
            parts.append((one.addr, one.length))
            if sum(length for _, length in parts) > MAX_BYTES:
                raise Broken("descriptor chain of more than 2^32 bytes")
            try:
                self.memory.read(one.addr, one.length)
            except ValueError:
                raise Broken("buffer is not guest memory") from None
            if not one.flags & NEXT:
                break
            if one.next >= entries:
                raise Broken("next descriptor is outside the table")
            index = one.next
        split = len(parts) if readable_count is None else readable_count
        return Chain(head, tuple(parts[:split]), tuple(parts[split:]))

    def _check_indirect(self, one: Descriptor, in_table: bool) -> None:
        if not self.indirect:
            raise Broken("indirect descriptor without the feature")
        if in_table:
            raise Broken("indirect descriptor in an indirect table")
        if one.flags & NEXT:
            raise Broken("indirect descriptor with a next one")
        if one.length == 0 or one.length % 16:
            raise Broken("indirect table is no whole number of descriptors")
        if one.length // 16 > self.limit:
            raise Broken("indirect table is too long")

    # Data.

    def load(self, chain: Chain) -> bytes:
        """All the readable bytes of a chain."""
        return b"".join(self.memory.read(addr, length) for addr, length in chain.readable)

    def store(self, chain: Chain, data: bytes) -> int:
        """Write to the start of the writable area; returns how many bytes it took."""
        at = 0
        for addr, length in chain.writable:
            part = data[at : at + length]
            self.memory.write(addr, part)
            at += len(part)
        return at

    # Completing.

    def finish(self, head: int, length: int) -> None:
        """Note a completion, to be published."""
        self.finished.append((head, length))

    def publish(self) -> bool:
        """Show what is finished to the driver; True if it wants to be notified."""
        if not self.finished:
            return False
        old = self.last_used
        for head, length in self.finished:
            at = self.used + 4 + 8 * (self.last_used % self.size)
            self.memory.write(at, struct.pack("<II", head, min(length, 0xFFFFFFFF)))
            self.last_used = (self.last_used + 1) & 0xFFFF
            del self.in_flight[head]
        self.finished = []
        self._set_word(self.used + 2, self.last_used)
        if not self.event_idx:
            return not self._word(self.avail) & 1
        first, self.notified_before = not self.notified_before, True
        event = self._word(self.avail + 4 + 2 * self.size)
        published = {(old + i) & 0xFFFF for i in range((self.last_used - old) & 0xFFFF)}
        return first or event in published

    # Kicks.

    def arm(self) -> bool:
        """Ask for a kick; True if there is something already."""
        if self.event_idx:
            self._set_word(self.used + 4 + 8 * self.size, self.last_avail)
        else:
            self._set_word(self.used, 0)
        return self.available() > 0 or bool(self.again)

    def begin(self) -> bool:
        """Begin to serve; True if the driver is to be notified of what it may have missed."""
        self.disarm()
        owed, self.call_after_recovery = self.call_after_recovery, False
        return owed

    def disarm(self) -> None:
        """Ask for no kicks."""
        if not self.event_idx:
            self._set_word(self.used, 1)

    def _word(self, addr: int) -> int:
        return int.from_bytes(self.memory.read(addr, 2), "little")

    def _set_word(self, addr: int, value: int) -> None:
        self.memory.write(addr, value.to_bytes(2, "little"))
