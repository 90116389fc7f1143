"""What a packed ring gains on a split one: `python -m tests.bench.layouts`.

A network device that drops every frame serves rings of both in turn: in one thread with its driver,
of which the device's part alone is timed; as a process, with the load generator as the driver,
which polls; and with DPDK's virtio-user, where that is installed. Run it from the root of the
checkout.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from tests.bench import extension, quiet
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
from vuproc.testing import Guest, Served, serve
from vuproc.testing.job import Job, Kind
from vuproc.testing.packed_ring import PackedDriverRing, packed_layout
from vuproc.testing.ring import DriverRing
from vuproc.testing.split_ring import SplitDriverRing, split_layout
from vuproc.testing.vms import ClientMissing, Dpdk

RX, TX = 0, 1
SIZE = 256
FRAME = HEADER.size + 60
MEMORY, USER, BUFFERS, APART = 1 << 22, 1 << 32, 1 << 20, 256
"""Of a ring in this thread: its memory, the front-end's address of it, and where its frames lie."""
FEATURES = Feature.INDIRECT_DESC | Feature.EVENT_IDX
DEPTHS = (1, 8, 32, 256)
SPLIT, PACKED = "split", "packed"
BAR = 1.15
"""What the packed ring is to be, of the split one's rate, with a full ring in one thread."""
SETTLE_S = 0.2
WARM_UP = 20_000

Sample = Callable[[], float]
"""Measures once: ns a request."""


@dataclass(frozen=True)
class Finding:
    """ns a request of each layout, a round each, and the rounds that others did not disturb."""

    title: str
    times: dict[str, list[float]] = field(default_factory=lambda: {SPLIT: [], PACKED: []})
    clean: list[bool] = field(default_factory=list)

    def ratio(self) -> float:
        """The packed ring's rate to the split one's, in the median."""
        return median(self._ratios())

    def line(self) -> str:
        """A row of the table."""
        ratios = sorted(self._ratios())
        split, packed = (median(self.times[name]) for name in (SPLIT, PACKED))
        low, high = ratios[len(ratios) // 4], ratios[len(ratios) * 3 // 4]
        return (
            f"{self.title:<42} {split:7.1f} {packed:7.1f}   "
            f"{self.ratio():.2f} ({low:.2f}-{high:.2f})   "
            f"{self.clean.count(False)} of {len(self.clean)}"
        )

    def _ratios(self) -> list[float]:
        every = [a / b for a, b in zip(self.times[SPLIT], self.times[PACKED], strict=True)]
        return [one for one, clean in zip(every, self.clean, strict=True) if clean] or every


def compare(
    title: str, sides: Mapping[str, Sample], pids: Sequence[int], rounds: int, *, crowded: bool
) -> Finding:
    """Each side once a round, forth and back. crowded: more threads than there are CPUs."""
    found = Finding(title)
    for number in range(rounds):
        clean = True
        for name in (SPLIT, PACKED) if number % 2 == 0 else (PACKED, SPLIT):
            value, measured = quiet.measure(sides[name], pids, 1, crowded=crowded)
            found.times[name].append(value)
            clean = clean and measured.clean
        found.clean.append(clean)
    return found


class Turns:
    """One ring with its device and its driver in this thread, served as a worker serves it: with an
    in-flight record and counters, and requests that a death would have dropped.
    """

    def __init__(self, packed: bool, depth: int, count: int, features: int = FEATURES) -> None:
        self._depth = depth
        self._turns = max(1, count // depth)
        size = (packed_record_bytes if packed else split_record_bytes)(SIZE)
        memory_fd, record_fd = (os.memfd_create(name, os.MFD_CLOEXEC) for name in ("ram", "record"))
        try:
            os.ftruncate(memory_fd, MEMORY)
            os.ftruncate(record_fd, size)
            memory = GuestMemory().with_region(0, MEMORY, USER, 0, memory_fd)
            counters = QueueCounters(bytearray(block_bytes(TX + 1)), TX)
            make = self._packed if packed else self._split
            self._driver, self._ring = make(memory, record_fd, counters, features)
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
            [(BUFFERS, FRAME, False)],
            turns=self._turns,
            depth=self._depth,
            apart=APART,
        )
        return float(seconds) * 1e9 / (self._turns * self._depth)

    @staticmethod
    def _packed(
        memory: GuestMemory, record_fd: int, counters: QueueCounters, features: int
    ) -> tuple[DriverRing, Ring]:
        desc, driver_event, device_event, _ = packed_layout(SIZE)
        driver = PackedDriverRing(
            memory.view(0, MEMORY),
            SIZE,
            desc=desc,
            driver_event=driver_event,
            device_event=device_event,
            event_idx=bool(features & Feature.EVENT_IDX),
        )
        ring = PackedRing(
            TX,
            SIZE,
            memory,
            USER + desc,
            USER + driver_event,
            USER + device_event,
            None,
            features=features,
            chain_limit=SIZE,
            counters=counters,
            record=PackedRecord(record_fd, 0, SIZE),
            fresh=True,
        )
        return driver, ring

    @staticmethod
    def _split(
        memory: GuestMemory, record_fd: int, counters: QueueCounters, features: int
    ) -> tuple[DriverRing, Ring]:
        desc, avail, used, _ = split_layout(SIZE)
        driver = SplitDriverRing(
            memory.view(0, MEMORY),
            SIZE,
            desc=desc,
            avail=avail,
            used=used,
            event_idx=bool(features & Feature.EVENT_IDX),
        )
        ring = SplitRing(
            TX,
            SIZE,
            memory,
            USER + desc,
            USER + avail,
            USER + used,
            None,
            features=features,
            chain_limit=SIZE,
            counters=counters,
            record=SplitRecord(record_fd, 0, SIZE),
            fresh=True,
        )
        return driver, ring


def in_one_thread(rounds: int, count: int) -> list[Finding]:
    """The device's part alone, `count` requests a sample."""
    found = []
    for features, order in ((FEATURES, ""), (FEATURES | Feature.IN_ORDER, ", in order")):
        for depth in DEPTHS:
            sides = {
                name: Turns(name == PACKED, depth, count, features).run for name in (SPLIT, PACKED)
            }
            for run in sides.values():
                run()
            title = f"one thread, {depth} at a time{order}"
            found.append(compare(title, sides, [], rounds, crowded=False))
    return found


def over_processes(rounds: int, seconds: float) -> Finding:
    """A worker, and the load generator in this process."""
    with ExitStack() as stack:
        sides: dict[str, Sample] = {}
        pids: list[int] = []
        for name in (SPLIT, PACKED):
            served = stack.enter_context(serve({"type": "net"}, queue_size=SIZE))
            guest = stack.enter_context(
                served.guest(queues=2, queue_size=SIZE, packed=name == PACKED)
            )
            pids.append(served.wait_worker(TX))

            count = int(seconds * 1e9 / _loaded(guest, WARM_UP))
            sides[name] = partial(_loaded, guest, count)
        return compare("two processes, a driver that polls", sides, pids, rounds, crowded=False)


def with_dpdk(rounds: int, seconds: float) -> Finding:
    """A worker, and testpmd that sends all it can. ClientMissing without it."""
    with ExitStack() as stack:
        sides: dict[str, Sample] = {}
        pids: list[int] = []
        for name in (SPLIT, PACKED):
            served = stack.enter_context(serve({"type": "net"}, queue_size=SIZE))
            port = stack.enter_context(Dpdk(served.socket, packed=name == PACKED, size=SIZE))
            pids += [served.wait_worker(TX), port.process.pid]
            sides[name] = partial(_sent, served, port, seconds)
        return compare("DPDK's testpmd, txonly", sides, pids, rounds, crowded=True)


def _loaded(guest: Guest, count: int) -> float:
    """ns a frame, so many of them."""
    return 1e9 / guest.load(TX, _frames(count)).rate


def _sent(served: Served, port: Dpdk, seconds: float) -> float:
    """ns a frame while testpmd sends."""
    port.start("txonly")
    try:
        time.sleep(SETTLE_S)
        began, before = time.monotonic_ns(), served.status().queues[TX].requests
        time.sleep(seconds)
        took, frames = time.monotonic_ns() - began, served.status().queues[TX].requests - before
    finally:
        port.stop()
    if not frames:
        raise RuntimeError("testpmd sent nothing")
    return took / frames


def _frames(count: int) -> Job:
    return Job(
        count=count,
        depth=SIZE,
        kind=Kind.PLAIN,
        out_size=FRAME,
        in_size=0,
        header=bytes(HEADER.size),
        indirect=False,
        poll=True,
    )


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if the bar is not met."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.layouts", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="of each side (15, or 4 times that)")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a sample (0.3)")
    parser.add_argument("--count", type=int, default=30_000, help="requests in one thread (30000)")
    parser.add_argument("--only", choices=["thread", "processes", "dpdk"], help="one of the three")
    options = parser.parse_args(arguments)
    print(f"ns a frame of {FRAME} bytes; medians of the rounds, in which both take turns")
    print(f"{'':<42}   split  packed   packed's rate x split's (quartiles)   disturbed")
    found = []
    if options.only in (None, "thread"):
        found = in_one_thread(4 * options.rounds, options.count)
        print("\n".join(one.line() for one in found), flush=True)
    if options.only in (None, "processes"):
        print(over_processes(options.rounds, options.seconds).line(), flush=True)
    if options.only in (None, "dpdk"):
        try:
            print(with_dpdk(options.rounds, options.seconds).line())
        except ClientMissing as error:
            print(f"DPDK's testpmd is not here: {error}")
    if not found:
        return 0
    ratio = found[len(DEPTHS) - 1].ratio()
    met = ratio >= BAR
    print(f"a full ring: {ratio:.2f}; the bar of {BAR:g} is {'met' if met else 'NOT met'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
