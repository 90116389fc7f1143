"""The loops of alone.pyx: what the load generator's requests cost without a ring."""

from __future__ import annotations

from typing import Protocol

from typing_extensions import Buffer

from tests.bench import extension
from vuproc.testing.job import Job


class Handle(Protocol):
    """A device's `handle`."""

    def __call__(self, request: object) -> None: ...


def read_blocks(fd: int, memory: Buffer, *, arena: int, job: Job) -> float:
    """Read `job.count` blocks of the file into guest memory from byte `arena` on; the seconds."""
    return float(_native.read_blocks(fd, memory, arena=arena, job=job))


def ring_and_wait(ours: int, theirs: int, count: int) -> float:
    """Write the eventfd `ours` and sleep until `theirs` is written, `count` times; the seconds."""
    return float(_native.ring_and_wait(ours, theirs, count))


def answer(ours: int, theirs: int, life: int) -> None:
    """The other side of `ring_and_wait`, until `life` is readable or closed by its other end."""
    _native.answer(ours, theirs, life)


_native = extension.load("alone", [extension.ROOT / "vuproc" / "shm" / "clock.pxd"])
ignore: Handle = _native.ignore
"""A device's `handle` in native code that does nothing."""
