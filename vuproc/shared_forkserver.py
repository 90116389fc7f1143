"""The process of which a fleet's masters are forks: it has imported all that a master needs, and
all that a forkserver and its workers do.

A master, its forkserver and its workers share its memory until they write to it, and no time goes
into imports. Nothing of a device is in it: what the keeper has stored of one goes to its masters by
sockets of their own. It serves until the keeper ends.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import importlib
import json
import os
import signal
import socket
from collections.abc import MutableMapping
from pathlib import Path

from vuproc.device_file import check
from vuproc.device_file.yaml_text import MAX_BYTES
from vuproc.devices import BUILTIN, named_in
from vuproc.errors import ConfigErrors
from vuproc.fd import Fd
from vuproc.handover.keeper.keeper import NOT_FOR_A_STANDBY
from vuproc.handover.keeper.processes import end_with_parent
from vuproc.handover.keeper.shared_forkserver import ANSWER_BYTES, NAME, READY
from vuproc.handover.sd_notify import inherit
from vuproc.handover.standby_master import PROCESS_NAME, received, renamed
from vuproc.pool.forkserver import CannotStart, Forkserver
from vuproc.sandbox import make
from vuproc.warm_start import IMPORTS, WarmStart
from vuproc.workers import fork_loop, fork_messages

WORKER_IMPORTS = ("vuproc.device_object", "pickle")
"""Modules that have all that a forkserver and a worker import, and by which a master has its device
file from the process that reads it.
"""
ORDER_BYTES = 1 << 16
_SAMPLE = b"socket: {path: /s, permissions: 0600}\ndevice: {type: rng, queues: 1}\n"
COMM_BYTES = 15
"""Bytes of a process's name (proc(5))."""


def from_environment(environ: MutableMapping[str, str] = os.environ) -> SharedForkserver | None:
    """If this process was started as one. Raises InheritError."""
    if NAME not in environ.get("LISTEN_FDNAMES", "").split(":"):
        return None
    return SharedForkserver(socket.socket(fileno=inherit(environ)[NAME][0].take()))


class SharedForkserver:
    """This process, at its end of the keeper's socket."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._imported: set[str] = set()

    def wait_for_order(self) -> WarmStart:
        """Fork masters for as long as they are ordered. Comes back in each of them."""
        for name in (*IMPORTS, *WORKER_IMPORTS):
            importlib.import_module(name)
        warm_up()
        renamed(PROCESS_NAME)
        self._channel.send(READY)
        while True:
            order, numbers, _, _ = socket.recv_fds(
                self._channel, ORDER_BYTES, 1, socket.MSG_CMSG_CLOEXEC
            )
            if not order or not numbers:
                os._exit(0)
            with Fd(numbers[0]) as channel:
                wanted = json.loads(order)
                self._import_for(wanted["file"])
                if self._fork(wanted["parent"]):
                    self._channel.close()
                    return _begun(wanted, socket.socket(fileno=channel.take()))

    def _import_for(self, path: str) -> None:
        """The device types that a file names, if they are ours: once, for all that are to come."""
        try:
            with open(path, "rb") as file:
                content = file.read(MAX_BYTES)
        except OSError:
            return  # the master says so
        new = [name for name in named_in(content) if name not in self._imported]
        for name in new:
            fork_loop.prepare_for(BUILTIN[name])
        if new:
            self._imported.update(new)
            fork_loop.warm_up()

    def _fork(self, keeper: int) -> bool:
        """Fork a master, whose parent is the keeper: by way of a process that ends at once. The
        answer is its process id. Whether this is the master.
        """
        pipes: list[int] = []
        try:
            pipes += os.pipe()
            pipes += os.pipe()
            child = os.fork()
        except OSError as error:
            for number in pipes:
                os.close(number)
            self._answer(-(error.errno or errno.EAGAIN))
            return False
        told, tell, go, start = pipes
        if child == 0:
            try:
                os.close(told)
                os.close(start)
                pid = os.fork()
            except OSError as error:
                os.write(tell, b"%d" % -(error.errno or errno.EAGAIN))
                os._exit(1)
            if pid:
                os.write(tell, b"%d" % pid)
                os._exit(0)
            os.close(tell)
            # Once it has gone that was between us and the keeper.
            begun = os.read(go, 1)
            os.close(go)
            if not begun:
                os._exit(1)
            os.setpgid(0, 0)
            end_with_parent(signal.SIGTERM)
            if os.getppid() != keeper:
                os._exit(1)
            return True
        os.close(tell)
        os.close(go)
        answer = os.read(told, ANSWER_BYTES)
        os.waitpid(child, 0)
        with contextlib.suppress(OSError):  # it is no more
            os.write(start, b"!")
        os.close(told)
        os.close(start)
        self._answer(int(answer) if answer else -errno.EAGAIN)
        return False

    def _answer(self, number: int) -> None:
        self._channel.send(b"%d" % number)


def _begun(order: dict[str, object], channel: socket.socket) -> WarmStart:
    """This is a master: its forkserver is forked before it has anything of the device's."""
    for number in NOT_FOR_A_STANDBY:
        signal.signal(number, signal.SIG_DFL)
    environ, file = order["environ"], order["file"]
    assert isinstance(environ, dict) and isinstance(file, str)
    renamed(f"vuproc {Path(file).stem}"[:COMM_BYTES])
    forkserver = Forkserver()
    try:
        forkserver.fork_now(channel)
    except CannotStart:
        pass  # it is tried again for the first worker, and said then
    with channel:
        left = received(channel)
    for name, value in environ.items():
        os.environ[name] = value  # `update` asks what kinds of mappings there are
    os.environ["WATCHDOG_PID"] = str(os.getpid())
    return WarmStart(left, forkserver, file)


def warm_up() -> None:
    """What is worked out at the first use, before there are processes that would each do so."""
    with contextlib.suppress(ConfigErrors):
        check.load("-", _SAMPLE, look=False)
    codecs.lookup("ascii")
    fork_messages.warm_up()
    make.warm_up()
    fork_loop.warm_up()
