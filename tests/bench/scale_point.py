"""One point of a scale: devices of some size, served and driven, and what that takes."""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

from tests.bench import quiet
from tests.bench.disks import Nothing
from vuproc.fd import Fd
from vuproc.ops.admin import Request, ask
from vuproc.testing.bell import Bell
from vuproc.testing.guest import Guest
from vuproc.testing.job import Job, Stats
from vuproc.testing.memory import Ram, RamRegion
from vuproc.testing.serve import Served, serve
from vuproc.vhost_user.memory_table import TABLE_REGIONS_MAX

KIB, MIB = 1 << 10, 1 << 20
FIRST = 16 * MIB
"""Bytes of the region that the rings lie in, at least."""
SPAN = 8 * MIB
"""Bytes of a disk that requests go to."""
BOUND_S = 60.0
DEPTH = 32
BARRIERS = 5
MESSAGES = 200
"""Messages about one ring, while all of them run."""
BLOCK = 4 * KIB

DEVICES: dict[str, type[Nothing] | dict[str, str]] = {
    "null": Nothing,
    "blk": {"type": "blk", "ram": "64MiB"},
}
"""What can be served: a null device in Python, and a disk in memory with native code."""

T = TypeVar("T")

_HEADER = struct.Struct("<IIQ")


@dataclass(frozen=True, slots=True)
class Shape:
    """How big it is: devices, each with so many queues and so much memory in so many regions; and
    of what type, by a name of `DEVICES`.
    """

    devices: int = 1
    queues: int = 1
    regions: int = 1
    memory: int = 64 * MIB
    device: str = "null"


@dataclass(frozen=True, slots=True)
class Point:
    """What one shape took."""

    start_ms: float
    """From the start of a `Daemon`, or of `vuproc run FOLDER`, to its socket, a device."""
    rings_ms: float
    """From the connection to the last ring running, a device."""
    message_ns: float
    """SET_VRING_CALL of the first ring until it is acknowledged, with all rings running."""
    message_cpu_ns: float
    """CPU time of the master for it."""
    idle_kib: float
    """Private memory of the largest worker whose ring runs and has served nothing."""
    worker_kib: float
    """Private memory of the largest worker, after its work."""
    others_kib: float
    """The same of all other processes of a device together."""
    table_ms: float
    """SET_MEM_TABLE until every worker has confirmed, with as many regions as fit one message."""
    region_ms: float
    """ADD_MEM_REG of the last region, if there are more than fit SET_MEM_TABLE; else 0."""
    rate: float
    """Requests a second, all queues of all devices at once."""
    cpu_ns: float
    """CPU time of a worker a request, buffers all over the memory."""
    idle_ns: float
    """CPU time a second of the busiest worker with nothing to do."""


def measure(shape: Shape, *, requests: int, idle_s: float) -> Point:
    """Serve and drive it. requests: of each of the two runs, all queues together."""
    with ExitStack() as stack:
        starts, connects, tables, adds = [], [], [], []
        served: list[Served] = []
        guests: list[Guest] = []
        for _ in range(shape.devices):
            began = time.monotonic()
            device = serve(DEVICES[shape.device], queues=shape.queues, queue_size=256)
            served.append(stack.enter_context(device))
            starts.append(time.monotonic() - began)
        regions = _regions(shape)
        for each in served:
            every = regions()
            first, rest = every[:TABLE_REGIONS_MAX], every[TABLE_REGIONS_MAX:]
            began = time.monotonic()
            guest = stack.enter_context(
                Guest(each.socket, queues=shape.queues, memory=Ram(first), timeout_s=BOUND_S)
            )
            connects.append(time.monotonic() - began)
            guests.append(guest)
            tables += [_timed(guest.front_end.set_memory, first) for _ in range(BARRIERS)]
            adds += [_timed(guest.add_memory, region) for region in rest]
        serving = [workers(each) for each in served]
        idle = _idle([pid for pids in serving for pid in pids], idle_s)
        before_work = max(private_kib(pid) for pids in serving for pid in pids)
        message, message_cpu = message_of(served[0].pid, guests[0])
        rate = rate_of(guests, shape.queues, requests)
        cpu = _spread(guests[0], serving[0][0], requests)
        family = [served[0].pid, *descendants(served[0].pid)]
        others = sum(private_kib(pid) for pid in family if pid not in serving[0])
        return Point(
            median(starts) * 1e3,
            median(connects) * 1e3,
            message,
            message_cpu,
            before_work,
            max(private_kib(pid) for pids in serving for pid in pids),
            others,
            median(tables) * 1e3,
            median(adds[-8:]) * 1e3 if adds else 0.0,
            rate,
            cpu,
            idle,
        )


def private_kib(pid: int) -> int:
    """Memory that only this process has, guest memory and other shared mappings left out.

    0 if it has ended.
    """
    total, shared = 0, False
    with suppress(FileNotFoundError, ProcessLookupError):
        with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as maps:
            for line in maps:
                name, *values = line.split()
                if not name.endswith(":"):
                    shared = values[0].endswith("s")
                elif name in ("Private_Clean:", "Private_Dirty:") and not shared:
                    total += int(values[0])
    return total


def descendants(pid: int) -> list[int]:
    """The living processes below one: workers are children of what forks them."""
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for each in map(int, (task / "children").read_text().split()):
                found += [each, *descendants(each)]
    return found


def workers(served: Served) -> list[int]:
    """The processes that serve queues, not those in waiting."""
    queues = ask(served.socket, Request("status"))["queues"]
    return sorted({int(queue["pid"]) for queue in queues if queue["pid"] is not None})


def _regions(shape: Shape) -> Callable[[], list[RamRegion]]:
    """Makes the regions of a guest: equal ones, apart from the first, with gaps between them."""
    size = max(4 * MIB, shape.memory // shape.regions)
    first = max(FIRST, size)

    def make() -> list[RamRegion]:
        found = [RamRegion(MIB, first)]
        for number in range(1, shape.regions):
            found.append(RamRegion(MIB + first + number * (size + MIB), size))
        return found

    return make


def _timed(action: Callable[[T], object], argument: T) -> float:
    began = time.monotonic()
    action(argument)
    return time.monotonic() - began


def message_of(master: int, guest: Guest) -> tuple[float, float]:
    """What one message takes, in ns, and the master's CPU time of it: it changes a ring that runs,
    and brings a descriptor, which is one more of the session's each time.
    """
    spent, before = [], quiet.times(master).ran
    for _ in range(MESSAGES):
        with Fd(os.eventfd(0)) as call:
            began = time.monotonic_ns()
            guest.front_end.request("SET_VRING_CALL", [call], value=0)
            spent.append(time.monotonic_ns() - began)
    cpu = (quiet.times(master).ran - before) / MESSAGES
    bell = guest.queues[0].call_bell
    assert isinstance(bell, Bell)
    guest.front_end.request("SET_VRING_CALL", [bell.theirs], value=0)
    return median(spent), cpu


def _idle(pids: Sequence[int], seconds: float) -> float:
    before = [quiet.times(pid).ran for pid in pids]
    time.sleep(seconds)
    after = [quiet.times(pid).ran for pid in pids]
    return max(end - start for end, start in zip(after, before, strict=True)) / seconds


def rate_of(guests: Sequence[Guest], queues: int, requests: int) -> float:
    """Requests a second, all queues at once."""
    rings = [(guest, queue) for guest in guests for queue in range(queues)]
    job = Job(count=max(1, requests // len(rings)), depth=DEPTH, span=SPAN, stall_s=BOUND_S)
    with ThreadPoolExecutor(len(rings)) as threads:
        began = time.monotonic()
        done: list[Stats] = list(threads.map(lambda ring: ring[0].load(ring[1], job), rings))
        spent = time.monotonic() - began
    if any(stats.failed for stats in done):
        raise RuntimeError("requests failed")
    return sum(stats.completed for stats in done) / spent


def _spread(guest: Guest, worker: int, requests: int) -> float:
    """CPU time of the worker of queue 0 for a request whose buffers lie anywhere."""
    queue = guest.queues[0]
    assert queue.kick_bell is not None
    slots = list(_slots(guest.ram.regions, 4 * DEPTH))
    choose = random.Random(1)
    before = quiet.times(worker).ran
    rounds = max(1, requests // DEPTH)
    for _ in range(rounds):
        for slot in choose.sample(slots, DEPTH):
            queue.ring.add(slot)
        if queue.ring.publish():
            queue.kick_bell.ring()
        done = 0
        while done < DEPTH:
            done += len(queue.ring.reap())
            if done < DEPTH and not queue.ring.arm() and not queue.call_bell.wait(BOUND_S):
                raise RuntimeError(f"no completion for {BOUND_S:g} s")
    return (quiet.times(worker).ran - before) / (rounds * DEPTH)


def _slots(regions: Sequence[RamRegion], count: int) -> Iterator[list[tuple[int, int, bool]]]:
    """Requests whose three parts are in regions of their own, in the halves that nothing uses."""
    choose = random.Random(2)
    taken: set[tuple[int, int]] = set()

    def place() -> int:
        while True:
            number = choose.randrange(len(regions))
            region = regions[number]
            block = choose.randrange(region.size // 2 // BLOCK, region.size // BLOCK)
            if (number, block) not in taken:
                taken.add((number, block))
                return region.guest_addr + block * BLOCK

    for _ in range(count):
        # Nothing looks at the header: what lies there is zeros.
        yield [(place(), _HEADER.size, False), (place(), BLOCK, True), (place(), 1, True)]
