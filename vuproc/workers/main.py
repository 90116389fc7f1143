"""The entry of a worker process, and all that it imports.

The forkserver imports this module once; each worker is a fork of it and needs only its device's own
code on top.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Protocol

from vuproc import control
from vuproc.control import ChannelError, Done, Failed, Logged, WorkerChannel, worker_end
from vuproc.fd import Fd
from vuproc.loader import build
from vuproc.shm.counters import QueueCounters
from vuproc.shm.segment import Segment
from vuproc.workers.loop import Worker

EXIT_SETUP = 3
"""Exit code: the device could not be set up; the reason went to the master."""
EXIT_BUG = 70
"""Exit code: an exception of our own ended the loop."""
SETUP_DEADLINE = 30.0
"""Seconds the master has for the first command."""
_PR_SET_DUMPABLE = 4


class _Duplicate(Protocol):
    """multiprocess.reduction.DupFd as the child sees it."""

    def detach(self) -> int: ...


def run(control_end: _Duplicate) -> None:
    """Serve the queues that the first message names, then end the process."""
    _harden()
    channel = worker_end(socket.socket(fileno=control_end.detach()))
    try:
        code = _serve(channel)
    except ChannelError as error:
        print(f"vuproc worker {os.getpid()}: {error}", file=sys.stderr)
        code = EXIT_BUG
    except Exception:
        logging.getLogger("vuproc.worker").exception("worker %d failed", os.getpid())
        code = EXIT_BUG
    # No atexit handler or finaliser may touch guest memory or the device once the loop is over.
    sys.stderr.flush()
    os._exit(code)


def _serve(channel: WorkerChannel) -> int:
    if not channel.wait(SETUP_DEADLINE):
        return EXIT_SETUP
    received = channel.receive()
    setup, fds = received or (None, ())
    if not isinstance(setup, control.Setup):
        raise ChannelError("the first command is not Setup")
    try:
        worker = _build(channel, setup, fds)
        worker.setup()
    except Exception as error:
        channel.send(Failed(setup.serial, f"{setup.type_ref}: {type(error).__name__}: {error}"))
        return EXIT_SETUP
    channel.send(Done(setup.serial))
    return worker.run()


def _build(channel: WorkerChannel, setup: control.Setup, fds: tuple[Fd, ...]) -> Worker:
    logger = logging.getLogger("vuproc")
    logger.setLevel(setup.log_level)
    logger.addHandler(_ToMaster(channel))
    logger.propagate = False
    device = build(setup.type_ref, Path(setup.base_dir), setup.options)
    device.shared = dict(zip(setup.shared, fds, strict=True))
    counters: dict[int, QueueCounters] = {}
    if setup.counters is not None:
        segment = Segment.attach(setup.counters)
        counters = {queue: QueueCounters(segment.buffer, queue) for queue in setup.queues}
    return Worker(channel, device, setup.queues, counters, setup.chain_limit)


def _harden() -> None:
    """Leave signals to the master, and keep guest memory out of core dumps and other processes'
    reach.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


class _ToMaster(logging.Handler):
    """Log records of the device's code become lines of the master's log."""

    def __init__(self, channel: WorkerChannel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._channel.send(Logged(record.levelno, self.format(record)))
        except ChannelError:
            pass  # the loop notices by itself that the master has gone
