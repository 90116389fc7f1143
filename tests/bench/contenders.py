"""The sides of a comparison, each a back-end with its client, or the work with no ring at all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.bench import quiet
from tests.bench.backends import Backend, Missing, Unfit
from tests.bench.clients import Client, Connection
from tests.bench.clients.compiled import program
from tests.bench.images import Images
from tests.bench.quiet import Measured
from tests.bench.work import Case, Store

LIMIT = "limit"


@dataclass(frozen=True, slots=True)
class Taken:
    """One sample. cpu: of the side that does the work. foreign: a share of the machine's time."""

    rate: float
    """Requests a second."""
    p50_ns: float
    p99_ns: float
    cpu_ns: float
    """A request."""
    foreign: float
    clean: bool


class Side(Protocol):
    """What takes its turn in a comparison."""

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> str: ...

    @property
    def queues(self) -> int: ...

    @property
    def depth(self) -> int:
        """Requests that are under way at a time."""

    def take(self, count: int, tries: int) -> Taken:
        """A sample. Raises Missing."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A back-end for disks with its client, ready to run."""

    name: str
    family: str
    case: Case
    connection: Connection
    workers: Callable[[], list[int]]
    """The processes that do the work."""

    @property
    def queues(self) -> int:
        return self.case.queues

    @property
    def depth(self) -> int:
        return self.case.depth

    def take(self, count: int, tries: int) -> Taken:
        """A sample of `count` requests on each queue. Raises Missing if requests fail."""
        workers = self.workers()

        def sample() -> tuple[float, float, float, float]:
            before = [quiet.times(pid).ran for pid in workers]
            found = self.connection.run(count)
            spent = sum(quiet.times(pid).ran for pid in workers) - sum(before)
            if found.failed or not found.completed:
                raise Missing(f"{found.failed} of {found.completed} requests failed")
            rate = found.completed / found.seconds
            return rate, found.p50_ns, found.p99_ns, spent / found.completed

        pids = {*workers, *self.connection.pids()}
        value, measured = quiet.measure(sample, pids, tries, crowded=True)
        return Taken(*value, measured.foreign, _clean(measured))


@contextmanager
def open_contender(
    backend: Backend, client: Client, case: Case, images: Images, label: str = ""
) -> Iterator[Contender]:
    """Start a back-end and connect. Raises Missing."""
    backend.check(case)
    image = images.path(case.store)
    with tempfile.TemporaryDirectory(prefix="vuproc-bench-") as directory:
        with backend.start(case, image, Path(directory)) as running:
            with client.connect(running, case) as connection:
                name = backend.name + label
                yield Contender(name, backend.family, case, connection, running.pids)


@contextmanager
def open_limit(how: str, case: Case, images: Images, label: str = "") -> Iterator[Contender]:
    """The same work over the same kind of buffers by a loop in C: `call`, or `copy` of a mapping.

    With O_DIRECT `call` is io_uring at the case's depth. Raises Missing.
    """
    image = images.path(case.store)
    if image is None:
        raise Unfit("there is no work in a null device")
    direct = case.store is Store.DIRECT
    if direct and how == "copy":
        raise Unfit("a mapping has no O_DIRECT")
    call = "pwritev" if case.work.writes else "preadv"
    name = "memcpy" if how == "copy" else "io_uring" if direct else call
    arguments: list[str | Path] = [image, "direct" if direct else how, *case.words]
    with program("limit", arguments) as connection:
        yield Contender(f"{LIMIT}: {name}{label}", LIMIT, case, connection, connection.pids)


def _clean(measured: Measured) -> bool:
    return measured.foreign <= quiet.FOREIGN_LIMIT
