"""A process that can start no other, and has the kernel start no thread for it."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

CONTROLLERS = (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))
"""Where the limit of a control group can be had: version 1, then version 2."""


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
        for left in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(left)
        group.rmdir()


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
