"""A process that can start no other, and has the kernel start no thread for it."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

CONTROLLERS = (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))
"""Where the limit of a control group can be had: version 1, then version 2."""

BOUND_S, LOOK_S = 10.0, 0.01


@contextmanager
def no_forks(pid: int) -> Iterator[Callable[[], object]]:
    """Let a process start no other; what is given lifts that."""
    if os.geteuid() != 0:
        _, hard = resource.prlimit(pid, resource.RLIMIT_NPROC, (0, resource.RLIM_INFINITY))
        yield partial(resource.prlimit, pid, resource.RLIMIT_NPROC, (hard, hard))
        return
    group = _limited_group()
    (group / "pids.max").write_text("1")
    (group / "cgroup.procs").write_text(str(pid))
    try:
        yield partial((group / "pids.max").write_text, "max")
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    """Move who is left out of a control group, and end it once those have gone that were dying."""
    deadline = time.monotonic() + BOUND_S
    while True:
        for left in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (group.parent / "cgroup.procs").write_text(left)
        try:
            group.rmdir()
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() >= deadline:
                raise
        time.sleep(LOOK_S)


def _limited_group() -> Path:
    for root in CONTROLLERS:
        group = root / f"vuproc-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / "pids.max").exists():
            return group
        group.rmdir()
    pytest.skip("root is bound by no process limit here: there is no pids control group")
