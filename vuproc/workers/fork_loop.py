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
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

import msgspec

from vuproc.fd import Fd
from vuproc.sandbox.master_lock import lock_master
from vuproc.workers import control, main
from vuproc.workers.channel import ChannelError
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
    _Loop(ServerForkChannel(socket.socket(fileno=channel), Fork)).run()
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


def _forked(live: Callable[[], None]) -> tuple[int, Fd]:
    """A child process that lives, and then ends; its process id and its pidfd. Raises OSError, and
    then there is none.
    """
    pid = os.fork()
    if pid == 0:
        _live_and_end(live)
    try:
        return pid, Fd(os.pidfd_open(pid))
    except OSError as error:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise _NoPidfd(error.errno, error.strerror) from error


def _live_and_end(live: Callable[[], None]) -> NoReturn:
    """Nothing that is raised may come back to what was forked: there is another who goes on."""
    code = 1
    try:
        live()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        finally:
            os._exit(code & 0xFF)


class _Loop:
    """Forks, and tells how each of the workers has ended."""

    def __init__(self, channel: ServerForkChannel) -> None:
        self._channel: ServerForkChannel | None = channel
        self._workers: dict[int, tuple[Fd, int]] = {}
        """The pidfd, which is open, and the process id, by the pidfd's number."""
        self._pid = os.getpid()
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
        assert self._channel is not None
        try:
            received = self._channel.receive()
        except ChannelError:
            self._channel.close()
            self._channel = None
            return
        if received is None:
            return
        order, fds = received
        if order.locked and not self._locked:
            # The master says what could not be had; it is the same here.
            lock_master()
            self._locked = True
        try:
            forked = self._fork(order)
        except OSError as error:
            call = "pidfd_open" if isinstance(error, _NoPidfd) else "fork"
            self._say(NotForked(call, error.errno or 0))
        else:
            self._say(forked)
        finally:
            for fd in fds:
                fd.close()

    def _fork(self, order: Fork) -> Forked:
        pid, pidfd = _forked(lambda: self._live(order))
        self._workers[pidfd.fileno()] = pidfd, pid
        return Forked(pid, pidfd)

    def _live(self, order: Fork) -> None:
        """The worker's own life, in its process; nothing of ours is its business."""
        assert self._channel is not None
        self._channel.close()
        for pidfd, _ in self._workers.values():
            pidfd.close()
        main.run(order.control, order.stack, self._pid)

    def _ended(self, number: int) -> None:
        pidfd, pid = self._workers.pop(number)
        _, status = os.waitpid(pid, 0)
        self._say(Ended(pid, os.waitstatus_to_exitcode(status)))
        pidfd.close()

    def _say(self, report: AnyForkReport) -> None:
        if self._channel is None:
            return
        try:
            self._channel.send(report)
        except ChannelError:
            pass  # the next receive finds out whether it has gone
