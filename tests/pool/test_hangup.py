"""The listener of a worker's filter tells that no thread runs any more, and nothing else does."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import pytest

from vuproc.fd import Fd
from vuproc.pool.ending_process import EndingProcess
from vuproc.pool.forkserver import ForkedProcess, poll_until_readable
from vuproc.pool.hangup import has_hung_up, is_listener
from vuproc.sandbox import kernel
from vuproc.sandbox.make import make_policy
from vuproc.sandbox.needs import NOTHING

BOUND_S = 20.0
NO_NEW_PRIVS = 38
RELEASE = tuple(map(int, os.uname().release.split(".")[:2]))
# ptrace(2) and wait(2), as Linux numbers them.
PTRACE_DETACH, PTRACE_SEIZE = 17, 0x4206
PTRACE_O_TRACEEXIT, PTRACE_EVENT_EXIT = 1 << 6, 6
WALL = 0x40000000


def _allowing_all() -> bytes:
    """A filter that lets everything through: BPF_RET, SECCOMP_RET_ALLOW."""
    return (0x06).to_bytes(2, "little") + bytes(2) + (0x7FFF0000).to_bytes(4, "little")


@contextmanager
def filtered(threads: int) -> Iterator[tuple[int, Fd, Fd]]:
    """A process with so many more threads: its id, its pidfd and its filter's listener."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        for _ in range(threads):
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        kernel.prctl(NO_NEW_PRIVS, 1)
        listener = kernel.seccomp_listener(_allowing_all())
        socket.send_fds(theirs, [b"x"], [listener])
        os.close(listener)
        signal.pause()
        os._exit(0)
    with ExitStack() as stack:
        stack.callback(os.waitpid, pid, 0)
        stack.callback(os.kill, pid, signal.SIGKILL)
        stack.enter_context(ours)
        theirs.close()
        ours.settimeout(BOUND_S)
        _, (number,), _, _ = socket.recv_fds(ours, 1, 1)
        listener_fd = stack.enter_context(Fd(number))
        yield pid, stack.enter_context(Fd(os.pidfd_open(pid))), listener_fd


@pytest.mark.parametrize("threads", [0, 2])
def test_it_hangs_up_with_the_last_thread_and_not_before(threads: int) -> None:
    with filtered(threads) as (pid, pidfd, listener):
        assert is_listener(listener) and not has_hung_up(listener)
        if threads:
            # All but the main thread stop, one by one; the filter is that of all of them.
            assert len(os.listdir(f"/proc/{pid}/task")) == 1 + threads
        os.kill(pid, signal.SIGSTOP)
        assert not has_hung_up(listener)
        os.kill(pid, signal.SIGKILL)
        assert poll_until_readable(pidfd.fileno(), BOUND_S)
        if RELEASE >= (6, 11):
            assert has_hung_up(listener)


def trace(request: int, thread: int, data: int = 0) -> None:
    """ptrace(2) of this thread over another. Raises OSError."""
    arguments = (ctypes.c_long(each) for each in (request, thread, 0, data))
    if ctypes.CDLL(None, use_errno=True).ptrace(*arguments) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def test_it_does_not_while_one_thread_of_a_killed_process_is_on_its_way_out() -> None:
    """All others have gone, the main thread among them; one is held at the beginning of its end."""
    with filtered(2) as (pid, pidfd, listener):
        *_, last = sorted(map(int, os.listdir(f"/proc/{pid}/task")))
        trace(PTRACE_SEIZE, last, PTRACE_O_TRACEEXIT)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(last, WALL)
        assert status >> 8 == signal.SIGTRAP | PTRACE_EVENT_EXIT << 8
        held = Process()
        held.take_listener(listener.dup())
        assert held.listener is not None
        wait_for_threads(pid, [pid, last])
        assert not has_hung_up(listener) and not held.stopped
        assert not poll_until_readable(pidfd.fileno(), 0)
        trace(PTRACE_DETACH, last)
        assert poll_until_readable(pidfd.fileno(), BOUND_S)
        if RELEASE >= (6, 11):
            assert held.stopped
        held.close()


def wait_for_threads(pid: int, left: list[int]) -> None:
    """Until just these are left; the first of a process is one of them, as a zombie."""
    until = time.monotonic() + BOUND_S
    while sorted(map(int, os.listdir(f"/proc/{pid}/task"))) != left:
        assert time.monotonic() < until
        time.sleep(0.001)


def test_other_descriptors_are_no_listeners() -> None:
    reader, writer = map(Fd, os.pipe())
    with reader:
        writer.close()  # it hangs up
        assert not is_listener(reader)


class Process(EndingProcess):
    def __init__(self) -> None:
        super().__init__(ForkedProcess(17, Fd(os.eventfd(0)), cast(Any, None)), Fd(os.eventfd(0)))

    def close(self) -> None:
        self._close_listener()
        self._stack.close()
        self.pidfd.close()


def test_what_is_no_listener_is_not_taken_and_the_first_one_stays() -> None:
    process = Process()
    reader, writer = map(Fd, os.pipe())
    writer.close()
    process.take_listener(reader)
    assert reader.closed and process.listener is None and not process.stopped
    with filtered(0) as (_, _, first), filtered(0) as (other, pidfd, second):
        process.take_listener(first.dup())
        process.take_listener(second.dup())
        os.kill(other, signal.SIGKILL)
        assert poll_until_readable(pidfd.fileno(), BOUND_S)
        assert not process.stopped
    process.close()


def test_a_policy_without_anything_to_open_is_closed_early() -> None:
    for mode, early, expected in (
        ("standard", False, False),
        ("standard", True, True),
        ("strict", False, True),
    ):
        policy = make_policy(cast(Any, mode), NOTHING, early=early)
        assert policy is not None and policy.early is expected
