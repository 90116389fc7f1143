"""The program of the forkserver: it has imported all that a worker needs, and forks workers.

It serves one master until that closes the channel, and then stays for as long as a worker of its
own lives: a master that becomes another program hands its workers on. A fork that fails is told and
ends nothing. Signals that come to the whole process group, or to all processes of a service, are
meant for the master, which ends its workers in order.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence

import msgspec
import multiprocess.context
import multiprocess.popen_fork

from vuproc.fd import Fd
from vuproc.sandbox.master_lock import lock_master
from vuproc.workers import control, main
from vuproc.workers.channel import Channel, ChannelError
from vuproc.workers.fork_messages import (
    FOR_THE_MASTER,
    AnyForkReport,
    Ended,
    Fork,
    Forked,
    Imported,
    NotForked,
    ServerForkChannel,
)
from vuproc.workers.parent_death import die_with_parent


def run(channel: int, parent: int, preload: Sequence[str]) -> None:
    """Serve the master `parent` at the other end of the socket `channel`, then end the process.

    `preload` names device types, each as `module:Class`. The master has blocked the signals
    `FOR_THE_MASTER` for us.
    """
    _begin(parent)
    for name in preload:
        prepare_for(name)
    warm_up()
    _serve(channel)


def run_forked(channel: int, parent: int) -> None:
    """As `run`, in a fork of a process that has prepared for all that is to come, and is warm."""
    _begin(parent)
    _serve(channel)


def warm_up() -> None:
    """Have worked out what is at the first use; what is there by now is there for good.

    A collection in a child would write to all of it, and make copies of pages that it shares.
    """
    control.warm_up()
    gc.collect()
    gc.freeze()
    gc.enable()


def _begin(parent: int) -> None:
    for number in FOR_THE_MASTER:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FOR_THE_MASTER)
    die_with_parent(parent)


def _serve(channel: int) -> None:
    _Loop(Channel(socket.socket(fileno=channel), Fork)).run()
    os._exit(0)


def prepare_for(name: str) -> None:
    """Import a device's module, `module:Class`, and have what its options are worked out once."""
    module, _, attribute = name.partition(":")
    try:
        device_type = getattr(importlib.import_module(module), attribute)
        msgspec.msgpack.Decoder(device_type.options_type)
    except Exception:
        pass  # each worker tries for itself, and says why it cannot


class _NoPidfd(OSError):
    """The process was there, and is not any more."""


class _Fork(multiprocess.popen_fork.Popen):  # type: ignore[misc]
    """How a worker's process is forked: one that cannot be had leaves no descriptor behind.

    `sentinel` is its pidfd.
    """

    def _launch(self, process_obj: multiprocess.context.ForkProcess) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                code = process_obj._bootstrap()
            finally:
                os._exit(code)
        try:
            self.sentinel = os.pidfd_open(self.pid)
        except OSError as error:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise _NoPidfd(error.errno, error.strerror) from error


class _Process(multiprocess.context.ForkProcess):  # type: ignore[misc]
    _Popen = staticmethod(_Fork)

    def start(self) -> None:
        """As multiprocess has it, which asks of every process before whether it has ended, and
        keeps a list of them: here each has its pidfd. Less is written to what all of them share.
        """
        self._popen = self._Popen(self)
        self._sentinel = self._popen.sentinel


class _Loop:
    """Forks, and tells how each of the workers has ended."""

    def __init__(self, channel: ServerForkChannel) -> None:
        self._channel: ServerForkChannel | None = channel
        self._workers: dict[int, tuple[Fd, _Process]] = {}
        """By the number of the pidfd, which is open."""
        self._pid = os.getpid()
        # multiprocess would open another one in each process: ours is empty, too.
        self._stdin, sys.stdin = sys.stdin, None
        self._locked = False

    def run(self) -> None:
        """Until the master has gone and every worker has ended."""
        self._say(Imported())
        while self._channel is not None or self._workers:
            poller = select.poll()
            channel = -1 if self._channel is None else self._channel.fileno()
            for number in (channel, *self._workers):
                if number >= 0:
                    poller.register(number, select.POLLIN)
            for number, _ in poller.poll():
                if number == channel:
                    self._serve()
                else:
                    self._ended(number)

    def _serve(self) -> None:
        """Carry out the orders of one datagram, and answer all of them in another."""
        assert self._channel is not None
        answers = []
        try:
            while (received := self._channel.receive()) is not None:
                answers.append(self._carry_out(*received))
                if not self._channel.has_unread:
                    break
        except ChannelError:
            self._channel.close()
            self._channel = None
        else:
            self._say(*answers)

    def _carry_out(self, order: Fork, fds: Sequence[Fd]) -> Forked | NotForked:
        if order.locked and not self._locked:
            # The master says what could not be had; it is the same here.
            lock_master()
            self._locked = True
        try:
            return self._fork(order)
        except OSError as error:
            call = "pidfd_open" if isinstance(error, _NoPidfd) else "fork"
            return NotForked(call, error.errno or 0)
        finally:
            for fd in fds:
                fd.close()

    def _fork(self, order: Fork) -> Forked:
        process = _Process(target=self._live, args=(order,), name="vuproc-worker", daemon=True)
        process.start()
        pidfd = Fd(process.sentinel)
        self._workers[pidfd.fileno()] = pidfd, process
        return Forked(process.pid, pidfd)

    def _live(self, order: Fork) -> None:
        """The worker's own life, in its process; nothing of ours is its business."""
        assert self._channel is not None
        sys.stdin = self._stdin
        self._channel.close()
        # By their numbers: their owners, which stay until this process ends, lie in memory that is
        # shared with the forkserver, and are not written to.
        for number in self._workers:
            os.close(number)
        main.run(order.control, order.stack, self._pid)

    def _ended(self, number: int) -> None:
        pidfd, process = self._workers.pop(number)
        process.join()
        self._say(Ended(process.pid, process.exitcode))
        process.close()
        pidfd.close()

    def _say(self, *reports: AnyForkReport) -> None:
        if self._channel is None or not reports:
            return
        try:
            self._channel.send(*reports)
        except ChannelError:
            pass  # the next receive finds out whether it has gone
