"""A served device seen by its operator: its status, a worker's death, and who comes after it."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from vuproc.ops.admin import RELOAD_S, AdminError, Request, ask
from vuproc.ops.status import QueueStatus, Status

LOOK_S = 0.02
"""Seconds between two looks at the status, if no log line comes meanwhile."""
GONE_TIMEOUT = 30.0
"""Seconds that the kernel has to end a process after SIGKILL. One whose system call waits for a
disk takes its time.
"""


def status_of(socket: Path) -> Status:
    """The status of the device at `socket`. Raises AdminError."""
    return msgspec.convert(ask(socket, Request("status")), Status)


def reload(socket: Path) -> list[str]:
    """Have the device at `socket` read its file anew; a line for each change. Raises AdminError."""
    return msgspec.convert(ask(socket, Request("reload"), RELOAD_S)["lines"], list[str])


def kill_worker(socket: Path, queue: int, pid: int) -> bool:
    """SIGKILL the process `pid` if it is the worker of `queue`, and wait until it is gone.

    False if it was not, or not any more: nobody was killed. Raises AdminError, TimeoutError.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # The number may have become another process's before it was opened. If the master says now
        # that its worker has this number, that is the process which is open.
        if _queue(status_of(socket), queue).pid != pid:
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if not poller.poll(GONE_TIMEOUT * 1000):
            raise TimeoutError(f"worker {pid} was not gone {GONE_TIMEOUT:g} s after SIGKILL")
        return True
    finally:
        os.close(pidfd)


def wait_worker(
    socket: Path,
    queue: int,
    other_than: int | None,
    deadline: float,
    pause: Callable[[float], object],
) -> int:
    """Wait until `queue` has a worker, and another one than `other_than`; its pid.

    deadline: on the monotonic clock, in seconds. pause: waits up to so many seconds for anything
    that may have changed the status. Raises AdminError, also if the queue is broken, and
    TimeoutError, both with the queue's cause.
    """
    while True:
        found = _queue(status_of(socket), queue)
        if found.state == "broken":
            raise AdminError(f"queue {queue} is broken: {found.cause}")
        if found.pid is not None and found.pid != other_than:
            return found.pid
        left = deadline - time.monotonic()
        if left <= 0:
            but = "" if other_than is None else f" but {other_than}"
            cause = f": {found.cause}" if found.cause else ""
            raise TimeoutError(f"queue {queue} has no worker{but}, in time{cause}")
        pause(min(left, LOOK_S))


def _queue(status: Status, queue: int) -> QueueStatus:
    for found in status.queues:
        if found.queue == queue:
            return found
    raise ValueError(f"no queue {queue}: there are {len(status.queues)}")
