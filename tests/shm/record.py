"""An in-flight record for the ring's tests, whose every byte they may read and write, and rings on
it.
"""

from __future__ import annotations

import mmap
import os
import struct
from types import TracebackType
from typing import NamedTuple

from tests.shm.guest import DATA, F_INDIRECT, Guest, fail
from vuproc.shm.inflight import SplitRecord, record_bytes
from vuproc.shm.split import SplitRing

HEADER = struct.Struct("<QHHHH")
ENTRY = struct.Struct("<BBBxHHQ")


class Header(NamedTuple):
    """QueueRegionSplit."""

    features: int
    version: int
    desc_num: int
    last_batch_head: int
    used_idx: int


class Entry(NamedTuple):
    """DescStateSplit, with what lies in its padding."""

    inflight: int
    attempts: int
    stage: int
    lead: int
    next: int
    counter: int


class Record:
    """The record of a queue of `size` entries, behind another one in its file."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.offset = record_bytes(size)
        self.fd = os.memfd_create("record", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, 2 * self.offset)
        self.bytes = mmap.mmap(self.fd, 0)

    def __enter__(self) -> Record:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bytes.close()
        os.close(self.fd)

    def map(self) -> SplitRecord:
        """As a ring takes it."""
        return SplitRecord(self.fd, self.offset, self.size)

    @property
    def header(self) -> Header:
        return Header._make(HEADER.unpack_from(self.bytes, self.offset))

    @header.setter
    def header(self, value: Header) -> None:
        HEADER.pack_into(self.bytes, self.offset, *value)

    def __getitem__(self, head: int) -> Entry:
        return Entry._make(ENTRY.unpack_from(self.bytes, self._at(head)))

    def __setitem__(self, head: int, value: Entry) -> None:
        ENTRY.pack_into(self.bytes, self._at(head), *value)

    def set_header(self, **fields: int) -> None:
        """Change some fields."""
        self.header = self.header._replace(**fields)

    def set_entry(self, head: int, **fields: int) -> None:
        """Change some fields."""
        self[head] = self[head]._replace(**fields)

    @property
    def live(self) -> list[int]:
        """The marked heads, in the order in which they were fetched."""
        marked = [head for head in range(self.size) if self[head].inflight]
        return sorted(marked, key=lambda head: self[head].counter)

    def _at(self, head: int) -> int:
        return self.offset + HEADER.size + ENTRY.size * head


def start(guest: Guest, record: Record, base: int = 0, features: int = F_INDIRECT) -> SplitRing:
    """The front-end starts the ring."""
    return guest.ring(features, base=base, record=record.map(), fresh=True)


def restart(guest: Guest, record: Record) -> SplitRing:
    """The worker before has died; the ring goes on."""
    return guest.ring(record=record.map())


def heads(ring: SplitRing, **attributes: object) -> list[int]:
    """Drain and finish everything; the heads that were run."""
    for name, value in attributes.items():
        setattr(ring, name, value)
    seen: list[int] = []
    ring.drain(lambda request: seen.append(request.head), fail, 1000)
    return seen


def submit(guest: Guest, *heads: int) -> None:
    """Offer a request with 8 device-writable bytes at each of these heads."""
    for head in heads:
        guest.submit(head, [(DATA, 8, True)])
