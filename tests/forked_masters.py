"""Masters of served devices that are forks of a process which has imported all that they need.

A daemon's master is a fresh interpreter, and so is its forkserver: a quarter of a second of a
processor goes into their imports, more than most tests need for all else. Here they begin as those
of a fleet do (`vuproc/shared_forkserver.py`). All else that a daemon is started with is the same:
its descriptors, its environment, where it finds modules, the command that it starts itself anew by.

Tests that are about a start, or play out what a user has, have fresh ones (`FRESH`). So has each
supervised daemon, each that writes where its program does, and each of a test that has gone to
other namespaces, limits or rights, or has something loaded ahead.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from vuproc.fd import Fd, HasFileno
from vuproc.handover.keeper.processes import OF_THE_SERVICE, PASSED_ON
from vuproc.program import launch
from vuproc.program.messages import START

ROOT = Path(__file__).parents[1]
FRESH = tuple(
    f"tests/{name}"
    for name in ("cli/", "field/", "guest/", "manual/", "sandbox/", "systemd/", "testing/", "test_")
)
"""How the paths of tests begin in which nothing is replaced."""
ORDER_BYTES = 1 << 20
ANSWER_BYTES = 64
FILES_MOST = 64
END_S = 20.0
"""Seconds in which the process must have ended once nobody has an order for it."""
_OURS = re.compile(rb"\btests(?:\.[a-z_0-9]+)*\.(?!test_)[a-z_0-9]+\b")
"""Modules with devices that are made for tests."""
_LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE)
_OF_THE_LOADER = ("LD_", "PYTHON")
"""Beginnings of what is in the environment for a program's start."""
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid_for_children", "user", "uts")

_PROGRAM = """\
import gc, sys
gc.disable()
sys.path[:] = {path!r}
from tests import forked_masters
forked_masters.live({channel})
"""
"""Imports make no garbage that would be worth a search."""


class ForkedMaster:
    """A master's process, with what is used of `subprocess.Popen`.

    It is a child of ours: who forked it has ended, and we adopt orphans (`tests/leaks.py`).
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None if it has not ended."""
        return self._reap(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        """The same once it has ended. Raises subprocess.TimeoutExpired."""
        if self.returncode is None and timeout is not None:
            with Fd(os.pidfd_open(self.pid)) as ending:
                poller = select.poll()
                poller.register(ending.fileno(), select.POLLIN)
                if not poller.poll(timeout * 1000):
                    raise subprocess.TimeoutExpired("a master", timeout)
        code = self._reap(0)
        assert code is not None
        return code

    def kill(self) -> None:
        """SIGKILL it, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:  # somebody else was told how, as Popen has it
                self.returncode = 0
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


class Template:
    """The process of which masters are forks, at our end of its channel."""

    def __init__(self) -> None:
        self._surroundings = _surroundings()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = _PROGRAM.format(path=[str(ROOT), *launch.import_path()], channel=theirs.fileno())
        with theirs:
            self._process = subprocess.Popen(
                [*launch.interpreter(), "-c", program],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd="/",
            )

    def launched(
        self, given: Mapping[str, HasFileno], *, supervised: bool, output: HasFileno | None
    ) -> subprocess.Popen[bytes]:
        """As `launch.launched`."""
        if supervised or output is None or self._surroundings != _surroundings():
            return launch.launched(given, supervised=supervised, output=output)
        order = {
            "names": list(given),
            "environ": {k: v for k, v in os.environ.items() if k not in OF_THE_SERVICE},
            "path": launch.import_path(),
            "command": launch.master_command(),
        }
        files = [output.fileno(), *(file.fileno() for file in given.values())]
        socket.send_fds(self._channel, [json.dumps(order).encode()], files)
        answer = int(self._channel.recv(ANSWER_BYTES))
        if answer < 0:
            raise OSError(-answer, os.strerror(-answer))
        return cast("subprocess.Popen[bytes]", ForkedMaster(answer))

    def close(self) -> None:
        """End it."""
        self._channel.close()
        self._process.wait(END_S)


def _surroundings() -> tuple[Any, ...]:
    """What a process has from its parent, and a test may change for itself and its children."""
    status = Path("/proc/thread-self/status").read_text(encoding="utf-8")
    return (
        [line for line in status.splitlines() if line.startswith("Umask:")],
        *(resource.getrlimit(limit) for limit in _LIMITS),
        *(os.readlink(f"/proc/thread-self/ns/{name}") for name in _NAMESPACES),
        (os.getresuid(), os.getresgid(), os.getgroups()),
        {key: value for key, value in os.environ.items() if key.startswith(_OF_THE_LOADER)},
        os.stat("/").st_ino,
        os.sched_getaffinity(0),
    )


# The process itself. It alone imports what a master does.


def live(number: int) -> None:
    """Fork masters for as long as they are ordered; each of them serves, and ends the process."""
    from vuproc.program import entry
    from vuproc.shared_forkserver import WORKER_IMPORTS, warm_up
    from vuproc.warm_start import IMPORTS

    for name in (*IMPORTS, *WORKER_IMPORTS):
        importlib.import_module(name)
    warm_up()
    channel = socket.socket(fileno=number)
    while True:
        data, numbers, _, _ = socket.recv_fds(
            channel, ORDER_BYTES, FILES_MOST, socket.MSG_CMSG_CLOEXEC
        )
        if not data:
            os._exit(0)
        order = json.loads(data)
        output, *given = map(Fd, numbers)
        files = dict(zip(order["names"], given, strict=True))
        _import_for(files[START])
        pid = _forked()
        if pid == 0:
            channel.close()
            _begin(order, output)
            sys.exit(entry.run(_warm(files)))
        for file in (output, *given):
            file.close()
        channel.send(b"%d" % pid)


def _import_for(start: Fd) -> None:
    """The modules of a device, once for all that are to come."""
    from vuproc.devices import BUILTIN, named_in
    from vuproc.program.start import FileStart, decode
    from vuproc.workers import fork_loop

    content = os.pread(start.fileno(), os.fstat(start.fileno()).st_size, 0)
    wanted = decode(content)
    if isinstance(wanted, FileStart):
        try:
            content = Path(wanted.path).read_bytes()
        except OSError:
            return  # the master says so
        for name in named_in(content):
            fork_loop.prepare_for(BUILTIN[name])
    for module in _OURS.findall(content):
        with suppress(Exception):  # the master says so
            importlib.import_module(module.decode())


def _forked() -> int:
    """Fork a process whose parent ends at once: its process id, or minus the number of an error.

    0: this is it.
    """
    told, tell = os.pipe()
    try:
        child = os.fork()
        if child == 0:
            try:
                pid = os.fork()
            except OSError as error:
                pid = -(error.errno or 1)
            if pid == 0:
                return 0
            os.write(tell, b"%d" % pid)
            os._exit(0)
        os.waitpid(child, 0)
        return int(os.read(told, ANSWER_BYTES))
    except OSError as error:
        return -(error.errno or 1)
    finally:
        os.close(told)
        os.close(tell)


def _begin(order: dict[str, Any], output: Fd) -> None:
    """Be what a fresh process would be."""
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    os.environ.clear()
    os.environ.update(order["environ"])
    sys.path[:] = order["path"]
    sys.argv[1:] = []
    sys.orig_argv[:] = order["command"]
    with output:
        for number in (1, 2):
            os.dup2(output.fileno(), number)


def _warm(files: dict[str, Fd]) -> Any:
    """The start of a master with these descriptors: its forkserver is forked before all else."""
    from vuproc.pool.forkserver import CannotStart, Forkserver
    from vuproc.warm_start import WarmStart

    forkserver = Forkserver()
    with suppress(CannotStart):  # it is tried again for the first worker, and said then
        forkserver.fork_now(*files.values())
    left: dict[str, tuple[Fd, ...]] = {name: (file,) for name, file in files.items()}
    return WarmStart(left, forkserver)
