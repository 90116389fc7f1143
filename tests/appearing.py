"""Waiting for a path that somebody else makes: the kernel tells when its folder changes."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vuproc.handover.keeper.folder import Watch


class Ended(AssertionError):
    """Whoever was to make it has ended before."""


def await_path(path: Path, bound_s: float, maker: int | None = None) -> None:
    """Until there is something at the path, whose folder is there. AssertionError after `bound_s`,
    and Ended if the process `maker` ends without having made it.
    """
    deadline = time.monotonic() + bound_s
    with _changes(path.parent) as changes, _pidfd(maker) as end:
        poller = select.poll()
        for file in (changes.fileno(), end):
            if file is not None:
                poller.register(file, select.POLLIN)
        # Looked at after the watch was set: what comes later is told.
        while not path.exists():
            left = deadline - time.monotonic()
            assert left > 0, f"there is no {path} after {bound_s:g} s"
            told = {file for file, _ in poller.poll(left * 1000)}
            changes.take()
            if end in told and not path.exists():
                raise Ended(f"process {maker} has ended, and there is no {path}")


@contextmanager
def _changes(folder: Path) -> Iterator[Watch]:
    watch = Watch([str(folder)])
    assert watch.works, f"the kernel does not tell of changes of {folder}"
    try:
        yield watch
    finally:
        os.close(watch.fileno())


@contextmanager
def _pidfd(pid: int | None) -> Iterator[int | None]:
    if pid is None:
        yield None
        return
    file = os.pidfd_open(pid)
    try:
        yield file
    finally:
        os.close(file)
