"""A ring of either layout, its driver and its device in one thread: what the device's part takes.

The device drops every frame. The ring has an in-flight record and counters, as a worker's has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench import extension
from vuproc.devices.net_native import NULL_KIND, NativePair
from vuproc.shm.counters import QueueCounters, block_bytes
from vuproc.shm.inflight import SplitRecord
from vuproc.shm.memory import GuestMemory
from vuproc.shm.packed import PackedRing
from vuproc.shm.packed_record import PackedRecord
from vuproc.shm.ring import Ring
from vuproc.shm.spin import Spin
from vuproc.shm.split import SplitRing
from vuproc.spec.inflight import packed_record_bytes, split_record_bytes
from vuproc.spec.net import HEADER
from vuproc.spec.virtio import Feature
from vuproc.testing.packed_ring import PackedDriverRing, packed_layout
from vuproc.testing.ring import DriverRing
from vuproc.testing.split_ring import SplitDriverRing, split_layout

RX, TX = 0, 1
SIZE = 256
FRAME = HEADER.size + 60
MEMORY, USER, BUFFERS, APART, TABLES = 1 << 22, 1 << 32, 1 << 20, 256, 1 << 21
"""Bytes of memory, the front-end's address of it, and where buffers and indirect tables lie."""
FEATURES = Feature.INDIRECT_DESC | Feature.EVENT_IDX
SPLIT, PACKED = "split", "packed"


@dataclass(frozen=True)
class Layout:
    """What a ring of one layout is made of, on both of its sides."""

    areas: Callable[[int], tuple[int, int, int, int]]
    """By size: where its three areas begin, and where it ends."""
    names: tuple[str, str, str]
    """Of the areas, as the driver's class has them."""
    driver: Callable[..., DriverRing]
    ring: Callable[..., Ring]
    record: Callable[[int, int, int], object]
    record_bytes: Callable[[int], int]


LAYOUTS = {
    SPLIT: Layout(
        areas=split_layout,
        names=("desc", "avail", "used"),
        driver=SplitDriverRing,
        ring=SplitRing,
        record=SplitRecord,
        record_bytes=split_record_bytes,
    ),
    PACKED: Layout(
        areas=packed_layout,
        names=("desc", "driver_event", "device_event"),
        driver=PackedDriverRing,
        ring=PackedRing,
        record=PackedRecord,
        record_bytes=packed_record_bytes,
    ),
}


@dataclass(frozen=True)
class Chain:
    """What a request of the driver's is."""

    title: str
    segments: Sequence[tuple[int, bool]]
    """Bytes, and whether the device may write there; one behind the other."""
    in_table: bool = False

    @property
    def slots(self) -> int:
        """Descriptors of the ring that it takes."""
        return 1 if self.in_table else len(self.segments)


DISK = ((16, False), (200, True), (1, True))
"""A disk's request: header, data and status."""
ONE = Chain("", ((FRAME, False),))
THREE = Chain("3 descriptors, ", DISK)
CHAINS = (
    Chain("2 descriptors, ", ((HEADER.size, False), (FRAME - HEADER.size, False))),
    THREE,
    Chain("5 descriptors, ", ((16, False), (40, False), (40, True), (40, True), (1, True))),
    Chain("3 in a table, ", DISK, in_table=True),
)


class Turns:
    """One ring with its device and its driver in this thread, served as a worker serves it: with an
    in-flight record and counters, and requests that a death would have dropped.
    """

    def __init__(
        self,
        layout: Layout,
        depth: int,
        count: int,
        features: int = FEATURES,
        chain: Chain = ONE,
    ) -> None:
        self._depth = depth
        self._turns = max(1, count // depth)
        self._segments: list[tuple[int, int, bool]] = []
        at = BUFFERS
        for size, writable in chain.segments:
            self._segments.append((at, size, writable))
            at += size
        memory_fd, record_fd = (os.memfd_create(name, os.MFD_CLOEXEC) for name in ("ram", "record"))
        try:
            os.ftruncate(memory_fd, MEMORY)
            os.ftruncate(record_fd, layout.record_bytes(SIZE))
            memory = GuestMemory().with_region(0, MEMORY, USER, 0, memory_fd)
            areas = layout.areas(SIZE)[:3]
            whole = memory.view(0, MEMORY)
            self._tables = (TABLES, whole[TABLES:]) if chain.in_table else None
            self._driver = layout.driver(
                whole,
                SIZE,
                **dict(zip(layout.names, areas, strict=True)),
                event_idx=bool(features & Feature.EVENT_IDX),
            )
            self._ring = layout.ring(
                TX,
                SIZE,
                memory,
                *(USER + area for area in areas),
                None,
                features=features,
                chain_limit=SIZE,
                counters=QueueCounters(bytearray(block_bytes(TX + 1)), TX),
                record=layout.record(record_fd, 0, SIZE),
                fresh=True,
            )
        finally:
            os.close(memory_fd)
            os.close(record_fd)
        self._ring.resubmit = "drop"
        self._spin = Spin("off", None, 1)
        self._ring.serve_native(NativePair(RX, NULL_KIND, _refuse), _fail, SIZE)

    def run(self) -> float:
        """ns a request of the device's part."""
        seconds, _ = _native.run_turns(
            self._driver,
            self._ring,
            self._spin,
            self._segments,
            turns=self._turns,
            depth=self._depth,
            apart=APART,
            tables=self._tables,
        )
        return float(seconds) * 1e9 / (self._turns * self._depth)


def _refuse(queue: int) -> None:
    raise AssertionError(f"queue {queue} has no ring")


def _fail(request: object, error: BaseException) -> None:
    raise error


_native = extension.load(
    "turns",
    [
        path
        for room in ("shm", "testing")
        for path in (extension.ROOT / "vuproc" / room).glob("*.pxd")
    ],
)
