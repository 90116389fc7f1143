"""DPDK's virtio-user driver on our network device, and on DPDK's own back-end."""

from __future__ import annotations

import enum
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import quiet
from tests.bench.backends import Missing
from tests.bench.bars import Bar
from tests.bench.contenders import Taken
from tests.bench.net.devices import Sink, Source
from tests.bench.rounds import Entry
from tests.bench.scale_point import workers
from vuproc.device import Device
from vuproc.testing import serve
from vuproc.testing.vms import Dpdk, DpdkBackend
from vuproc.testing.vms.dpdk import PortRates, Testpmd

SIZE = 256
"""Entries of a ring: our default, and that of the tests with DPDK."""
BURSTS = 4
"""Of 32 frames, which go round where frames come back."""
WARM_UP_S = 0.15
PEER = "DPDK's net_vhost"
LEAST = 0.5


class Way(enum.StrEnum):
    """Where the frames go, as the driver sees it."""

    SENT = "tx"
    RECEIVED = "rx"
    BACK = "back"


@dataclass(frozen=True, slots=True)
class Work:
    """What the driver does, what DPDK's back-end does, in testpmd's words, and who of ours."""

    title: str
    driver: str
    backend: str
    ours: Mapping[str, dict[str, Any] | type[Device]]
    rate: Callable[[PortRates], float]


NULL, SINK, SOURCE, BACK = (
    "vuproc null",
    "vuproc frames, a sink in Python",
    "vuproc frames, a source in Python",
    "vuproc loopback",
)
WORKS = {
    Way.SENT: Work(
        "the driver sends",
        "txonly",
        "rxonly",
        {NULL: {"type": "net"}, SINK: Sink},
        lambda rates: rates.sent,
    ),
    Way.RECEIVED: Work(
        "the driver receives",
        "rxonly",
        "txonly",
        {SOURCE: Source},
        lambda rates: rates.received,
    ),
    Way.BACK: Work(
        "what it sends comes back",
        "io",
        "io",
        {BACK: {"type": "net", "backend": "loopback"}},
        lambda rates: rates.received,
    ),
}
JUDGED = {Way.SENT: NULL, Way.RECEIVED: SOURCE}
"""Who has to meet the bar."""


def name(way: Way, packed: bool) -> str:
    """Of a comparison."""
    return f"{way}, {'packed' if packed else 'split'}"


def bars() -> list[Bar]:
    """Of all comparisons."""
    return [
        Bar(f"64 B frames, {name(way, packed)}, of {PEER}", name(way, packed), ours, (PEER,), LEAST)
        for way, ours in JUDGED.items()
        for packed in (False, True)
    ]


@dataclass(frozen=True, slots=True)
class Ports:
    """A driver on a back-end, which forwards too if it is DPDK's."""

    name: str
    family: str
    work: Work
    driver: Testpmd
    backend: Testpmd | None
    workers: Callable[[], list[int]]
    queues: int = 1
    depth: int = SIZE

    def take(self, count: int, tries: int) -> Taken:
        """Of so many milliseconds. Raises Missing if nothing passes."""
        pids = self.workers()
        seconds = count / 1000

        def sample() -> tuple[float, float]:
            if self.backend is not None:
                self.backend.start(self.work.backend)
            self.driver.start(self.work.driver, bursts=BURSTS if self.work.driver == "io" else 0)
            time.sleep(WARM_UP_S)
            before = sum(quiet.times(pid).ran for pid in pids)
            rate = self.work.rate(self.driver.rates(seconds))
            spent = sum(quiet.times(pid).ran for pid in pids) - before
            self.driver.stop()
            if self.backend is not None:
                self.backend.stop()
            if not rate:
                raise Missing("no frames passed")
            return rate, spent / (rate * seconds)

        (rate, cpu_ns), found = quiet.measure(sample, [*pids, self.driver.process.pid], tries)
        clean = found.foreign <= quiet.FOREIGN_LIMIT
        return Taken(rate, 0.0, 0.0, cpu_ns, found.foreign, clean)


def entries(way: Way, packed: bool) -> list[Entry[Ports]]:
    """Our sides and the peer, each with a driver of its own."""
    work = WORKS[way]
    found = [Entry(each, _ours(each, work, packed)) for each in work.ours]
    return [*found, Entry(PEER, _peer(work, packed))]


@contextmanager
def _ours(name: str, work: Work, packed: bool) -> Iterator[Ports]:
    with ExitStack() as stack:
        first, last = _cpus()
        served = stack.enter_context(serve(work.ours[name], queue_size=SIZE, cpus=[last]))
        driver = Dpdk(served.socket, packed=packed, size=SIZE, cpu=first)
        stack.enter_context(driver)
        yield Ports(name, "vuproc", work, driver, None, lambda: workers(served))


@contextmanager
def _peer(work: Work, packed: bool) -> Iterator[Ports]:
    with ExitStack() as stack:
        first, last = _cpus()
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vuproc-bench-"))
        socket = Path(folder, "vhost.sock")
        backend = stack.enter_context(DpdkBackend(socket, size=SIZE, cpu=last))
        driver = stack.enter_context(Dpdk(socket, packed=packed, size=SIZE, cpu=first))
        yield Ports(PEER, "dpdk", work, driver, backend, lambda: [backend.process.pid])


def _cpus() -> tuple[int, int]:
    """For the driver, and for the back-end. Raises Missing: two that poll on one CPU only wait for
    each other.
    """
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        raise Missing("driver and back-end both poll, and need a CPU each")
    return cpus[0], cpus[-1]
