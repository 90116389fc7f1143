"""The ring that a worker in waiting serves once before its turn."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Any, cast

import pytest

from vuproc.testing.serve import serve
from vuproc.workers import command_queue, main
from vuproc.workers.loop import Worker
from vuproc.workers.rehearsal import rehearse


def left_open() -> tuple[list[str], int]:
    """Our descriptors, and how many mappings there are of what a rehearsal makes."""
    maps = Path("/proc/self/maps").read_text()
    return sorted(os.listdir("/proc/self/fd")), maps.count("vuproc-rehearsal")


def test_it_serves_its_request_and_leaves_nothing() -> None:
    before = left_open()
    assert rehearse()
    assert left_open() == before
    assert before[1] == 0


def test_it_serves_its_request_on_a_machine_that_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring's start is carried out in another turn than what came with it."""
    monkeypatch.setattr(command_queue, "TOGETHER_S", -1.0)
    assert rehearse()


@pytest.mark.parametrize("call", ["eventfd", "memfd_create", "posix_fallocate", "epoll"])
def test_without_means_it_says_so_and_leaves_nothing(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    module = "select" if call == "epoll" else "os"
    before = left_open()
    with monkeypatch.context() as patched:
        patched.setattr(f"{module}.{call}", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            rehearse()
        main._rehearse(cast(Any, None), Worker)  # a worker goes on without it
    assert left_open() == before


def test_what_comes_after_it_meets_few_page_faults() -> None:
    """Counted in a fork, as a worker is one."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        counts = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt]
        for _ in range(2):
            rehearse()
            counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        os.write(theirs, f"{counts[1] - counts[0]} {counts[2] - counts[1]}".encode())
        os._exit(0)
    os.close(theirs)
    first, second = map(int, os.read(ours, 64).split())
    os.close(ours)
    assert os.waitpid(pid, 0)[1] == 0
    assert second < first / 3, (first, second)


def test_a_standby_rehearses() -> None:
    with serve({"type": "blk", "ram": 4096}, file={"log_level": "debug"}) as served:
        served.wait_for_line("rehearsed in")
