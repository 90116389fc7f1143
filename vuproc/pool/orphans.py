"""The workers of the master before us: made sure of before ours touch a ring.

After a death they are gone already, or about to go, since their control channels have closed. A
master that has become its successor itself has handed their channels on: they serve until now, and
are asked to finish what is in flight.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
from collections.abc import Iterable, Sequence

from vuproc.errors import VuprocError
from vuproc.fd import Fd
from vuproc.pool.ending_process import KILL_DEADLINE
from vuproc.pool.process import STOP_DEADLINE
from vuproc.vhost_user.effects import StopRing
from vuproc.workers.channel import ChannelError
from vuproc.workers.control import Command, Done, Failed, MasterChannel, master_end

log = logging.getLogger("vuproc.master")

LOOK_S = 1.0
"""Seconds between two looks at children that have not ended."""
FIRST_SERIAL = 1 << 32
"""Above any serial that our predecessor can have used."""


class OldWorkerAlive(VuprocError):
    """A worker of the last master cannot be killed: nobody else may touch its rings."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} of the last master cannot be killed")


def channel_name(pid: int, queues: Sequence[int]) -> str:
    """What to call a worker's control channel, so that `retire` knows its queues."""
    return f"{pid}.{'-'.join(map(str, queues))}"


def retire(workers: Sequence[tuple[str, Fd]], channels: Sequence[tuple[str, Fd]]) -> None:
    """End the predecessor's workers; raises OldWorkerAlive if one does not end.

    `workers` are pidfds, `channels` control channels with names of `channel_name`; both by name,
    and closed in here.
    """
    try:
        _drain([_Veteran(name, fd) for name, fd in channels])
        for _, pidfd in workers:
            try:
                signal.pidfd_send_signal(pidfd.fileno(), signal.SIGKILL)
            except ProcessLookupError:
                pass
        deadline = time.monotonic() + KILL_DEADLINE
        for name, pidfd in workers:
            if not _readable(pidfd, deadline):
                raise OldWorkerAlive(name)
    finally:
        for _, fd in workers:
            fd.close()


class ZombieReaper:
    """The children that this process has from the program that it was before.

    They end by themselves, as the channels to them close; nobody else waits for them. A chore of
    the master's loop. To be made before any child of our own, but for those that are named.
    """

    def __init__(self, ours: Iterable[int] = ()) -> None:
        self._children = set(_children()).difference(ours)

    def due(self) -> float | None:
        """Seconds until the next look, None if there are none left."""
        return LOOK_S if self._children else None

    def tend(self) -> None:
        """Take note of those that have ended."""
        for pid in list(self._children):
            try:
                ended = os.waitpid(pid, os.WNOHANG)[0] != 0
            except ChildProcessError:
                ended = True
            if ended:
                self._children.remove(pid)

    def close(self) -> None:
        """The loop is over; whoever is left is our parent's now."""
        self.tend()


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []  # a kernel without that list


class _Veteran:
    """A worker of the predecessor that still serves its rings."""

    def __init__(self, name: str, fd: Fd) -> None:
        self.name = name
        self.waiting: set[int] = set()
        self.channel: MasterChannel | None = None
        queues = name.rpartition(".")[2].split("-")
        try:
            self.channel = master_end(socket.socket(fileno=fd.fileno()))
            fd.take()
            for number, queue in enumerate(map(int, filter(None, queues)), FIRST_SERIAL):
                self.channel.send(Command(number, StopRing(queue, keeps_record=True)))
                self.waiting.add(number)
        except (OSError, ValueError, ChannelError) as error:
            self.give_up(str(error))
            fd.close()

    def hear(self) -> None:
        """Take its answers; whatever else it says is of no interest any more."""
        assert self.channel is not None
        try:
            while (received := self.channel.receive()) is not None:
                report, fds = received
                for fd in fds:
                    fd.close()
                if isinstance(report, Done | Failed):
                    # A ring that is not started is refused: just as well.
                    self.waiting.discard(report.serial)
        except ChannelError as error:
            self.give_up(str(error))

    def give_up(self, reason: str) -> None:
        """It will be killed with requests in flight, which the record holds."""
        log.warning("%s of the last master did not stop in order: %s", self.name, reason)
        self.waiting.clear()


def _drain(old_workers: Sequence[_Veteran]) -> None:
    """Wait until every ring has stopped, within the deadline of a stop."""
    deadline = time.monotonic() + STOP_DEADLINE
    poller = select.poll()
    busy = {}
    for old_worker in old_workers:
        if old_worker.channel is not None:
            busy[old_worker.channel.fileno()] = old_worker
            poller.register(old_worker.channel.fileno(), select.POLLIN)
    while any(old_worker.waiting for old_worker in busy.values()):
        ready = poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
        for number, _ in ready:
            busy[number].hear()
            if not busy[number].waiting:
                poller.unregister(number)
                del busy[number]
        if not ready:
            for old_worker in busy.values():
                old_worker.give_up(f"no answer for {STOP_DEADLINE:g} s")
    for old_worker in old_workers:
        if old_worker.channel is not None:
            old_worker.channel.close()


def _readable(pidfd: Fd, deadline: float) -> bool:
    poller = select.poll()
    poller.register(pidfd.fileno(), select.POLLIN)
    return bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))
