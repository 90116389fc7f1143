"""Whether a sample was disturbed: what other processes ran meanwhile, and how long ours waited."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

FOREIGN_LIMIT = 0.05
"""Share of the machine's CPU time which others may take in a clean sample.

The kernel counts it in ticks of some ms, so a tick a CPU more is forgiven: in short samples waiting
alone tells.
"""
WAITED_LIMIT = 0.03
"""Share of a sample's time which a process of ours may wait for a CPU in a clean one."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
"""Before a disturbed sample is repeated; it doubles each time."""

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_CPUS = os.cpu_count() or 1
_PROCESS_CLOCK = 2  # CPUCLOCK_SCHED of a process's clock: see clock_getcpuclockid(3)
_BUSY = (0, 1, 2, 5, 6, 7)  # /proc/stat: user, nice, system, irq, softirq, steal

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Times:
    """What threads have done so far: ns on a CPU, ns waiting for one, times they were given one."""

    ran: int = 0
    waited: int = 0
    turns: int = 0

    def __add__(self, other: Times) -> Times:
        return Times(self.ran + other.ran, self.waited + other.waited, self.turns + other.turns)

    def __sub__(self, other: Times) -> Times:
        return Times(self.ran - other.ran, self.waited - other.waited, self.turns - other.turns)


@dataclass(frozen=True, slots=True)
class Measured:
    """A sample and its disturbance, as shares of 1."""

    foreign: float
    waited: float

    @property
    def clean(self) -> bool:
        return self.foreign <= FOREIGN_LIMIT and self.waited <= WAITED_LIMIT


def measure(
    sample: Callable[[], T], processes: Iterable[int], tries: int, *, crowded: bool = False
) -> tuple[T, Measured]:
    """Take the first clean one of up to `tries` samples, or else the least disturbed one.

    processes: the pids that work for the sample; this one and what it ran and reaped meanwhile
    count in, and one that ends meanwhile counts as others. crowded: they have more threads than
    there are CPUs, so that they wait for each other and only the time which others took tells of a
    disturbance.
    """
    pids = [*processes, os.getpid()]
    best: tuple[T, Measured] | None = None
    for attempt in range(tries):
        if attempt:
            time.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1)))
        began, busy, before = time.monotonic_ns(), _busy_ns(), _of_living(pids)
        reaped = _reaped_ns()
        value = sample()
        spent = [now - before[pid] for pid, now in _of_living(before).items()]
        wall, busy = time.monotonic_ns() - began, _busy_ns() - busy
        own_ns = sum(own.ran for own in spent) + _reaped_ns() - reaped
        foreign = (busy - own_ns) / (wall * _CPUS) - _TICK_NS / wall
        waited = 0.0 if crowded else max(own.waited for own in spent) / wall
        found = Measured(max(0.0, foreign), waited)
        if best is None or _worse(best[1], found):
            best = value, found
        if found.clean:
            break
    assert best is not None
    return best


def times(pid: int) -> Times:
    """All threads of a process together; `ran` counts those that have ended as well."""
    tasks = f"/proc/{pid}/task"
    living = sum((_of_task(f"{tasks}/{task}") for task in os.listdir(tasks)), Times())
    return replace(living, ran=time.clock_gettime_ns(~pid << 3 | _PROCESS_CLOCK))


def ticks(pid: int) -> int:
    """CPU time of a process in clock ticks, user and system, as the kernel accounts it."""
    with open(f"/proc/{pid}/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12])


def _of_living(pids: Iterable[int]) -> dict[int, Times]:
    found = {}
    for pid in pids:
        # A guest's own processes may end at any time: User-Mode Linux has one of the host for each.
        with suppress(OSError):
            found[pid] = times(pid)
    return found


def _of_task(path: str) -> Times:
    try:
        with open(f"{path}/schedstat", "rb") as schedstat:
            return Times(*(int(field) for field in schedstat.read().split()))
    except (FileNotFoundError, ProcessLookupError):
        # The thread has ended, before the file was opened or after that. Or the kernel counts no
        # waiting: then `foreign` has to do.
        return Times()


def _busy_ns() -> int:
    with open("/proc/stat", encoding="ascii") as stat:
        fields = stat.readline().split()[1:]
    return sum(int(fields[i]) for i in _BUSY) * _TICK_NS


def _reaped_ns() -> int:
    """CPU time of the children that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return int((used.ru_utime + used.ru_stime) * 1e9)


def _worse(one: Measured, other: Measured) -> bool:
    return one.foreign + one.waited > other.foreign + other.waited
