"""The master's end of the forkserver: starts it, has it fork workers, hears how they ended.

The forkserver is a fresh interpreter that has imported everything a worker needs; a worker is a
fork of it. It begins in `/` and finds modules where the master does, less the folder that `python
-m` or a script puts in front: nothing is imported from where somebody happened to be.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import multiprocess.util

import vuproc
from vuproc.control import Channel, ChannelError
from vuproc.errors import VuprocError
from vuproc.fd import Fd
from vuproc.workers.fork_loop import FOR_THE_MASTER
from vuproc.workers.fork_messages import (
    AnyForkReport,
    Fork,
    Forked,
    MasterForkChannel,
    NotForked,
)

FORK_DEADLINE = 10.0
"""Seconds in which a worker must be forked, beside the time for the imports before the first."""
END_DEADLINE = 5.0
"""Seconds in which the forkserver must end once its last worker has."""
CODES_MOST = 512
"""Ends that are remembered until somebody asks; most are asked for at once."""

_PROGRAM = """\
import sys
sys.path[:] = {path!r}
from importlib import util
spec = util.spec_from_file_location("vuproc", {package!r})
sys.modules["vuproc"] = package = util.module_from_spec(spec)
spec.loader.exec_module(package)
from vuproc.workers import fork_loop
fork_loop.run({channel}, {parent}, {preload!r})
"""
"""The package is named by its file: another of that name may be found first."""


class CannotStart(VuprocError):
    """The system has no process to give, or not what one needs; `reason` says which call failed.

    It says nothing against the device, and may be different in a moment.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class ForkedProcess(NamedTuple):
    """A worker's process: its id, and its pidfd, which is the caller's."""

    pid: int
    pidfd: Fd


class Forkserver:
    """Starts worker processes. `preload` are modules to import once, before the first worker.

    `import_s`: seconds that these imports may take.
    """

    def __init__(self, preload: Sequence[str] = (), import_s: float = 0.0) -> None:
        self.import_s = import_s
        self._preload = tuple(preload)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: MasterForkChannel | None = None
        self._codes: dict[int, int] = {}

    def start(self, control: socket.socket, stack: Fd) -> ForkedProcess:
        """Start a worker with these two descriptors, which stay the caller's. Raises CannotStart.

        `control` is the worker's end of its control channel; `stack` a file that it may write its
        stack to.
        """
        try:
            with Fd(os.dup(control.fileno())) as channel:
                # One that has died unseen is replaced, once.
                for again in (True, False):
                    try:
                        self._ensure().send(Fork(), (channel, stack))
                        return self._forked()
                    except ChannelError:
                        self._discard()
                        if not again:
                            raise
        except (OSError, ChannelError) as error:
            raise CannotStart(f"no worker process: {_words(error)}") from error
        raise AssertionError("unreachable")

    def exit_code(self, pid: int, timeout: float) -> int | None:
        """How a worker ended whose pidfd is readable, waiting up to `timeout` seconds to hear it.

        A negative code is minus the number of a signal. None if that cannot be known: it may have
        ended together with the forkserver.
        """
        deadline = time.monotonic() + timeout
        try:
            while pid not in self._codes and self._channel is not None:
                left = deadline - time.monotonic()
                if left <= 0 or not self._channel.wait(left):
                    break
                self._hear()
        except ChannelError:
            self._discard()
        return self._codes.pop(pid, None)

    def close(self) -> None:
        """End it, after its workers have ended. Idempotent."""
        self._discard()

    def _ensure(self) -> MasterForkChannel:
        if self._channel is not None:
            return self._channel
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._process = self._launched(theirs.fileno())
            except BaseException:
                ours.close()
                raise
        self._channel = Channel(ours, AnyForkReport, accepts_fds=True)
        return self._channel

    def _launched(self, channel: int) -> subprocess.Popen[bytes]:
        program = _PROGRAM.format(
            path=import_path(),
            package=vuproc.__file__,
            channel=channel,
            parent=os.getpid(),
            preload=self._preload,
        )
        flags = multiprocess.util._args_from_interpreter_flags()
        with _signals_wait():
            return subprocess.Popen(
                [sys.executable, *flags, "-P", "-c", program],
                stdin=subprocess.DEVNULL,
                pass_fds=(channel,),
                cwd="/",
            )

    def _forked(self) -> ForkedProcess:
        assert self._channel is not None
        deadline = time.monotonic() + self.import_s + FORK_DEADLINE
        while True:
            if not self._channel.wait(deadline - time.monotonic()):
                raise ChannelError("the forkserver does not answer")
            heard = self._hear()
            if isinstance(heard, ForkedProcess):
                return heard
            if isinstance(heard, NotForked):
                raise OSError(heard.errno, f"{heard.call}: {os.strerror(heard.errno)}")

    def _hear(self) -> ForkedProcess | NotForked | None:
        """Take one report. Raises ChannelError."""
        assert self._channel is not None
        received = self._channel.receive()
        if received is None:
            return None
        report, fds = received
        if isinstance(report, Forked) and len(fds) == 1:
            return ForkedProcess(report.pid, fds[0])
        for fd in fds:
            fd.close()
        if isinstance(report, Forked):
            raise ChannelError("the forkserver has sent no pidfd")
        if isinstance(report, NotForked):
            return report
        while len(self._codes) >= CODES_MOST:
            del self._codes[next(iter(self._codes))]
        self._codes[report.pid] = report.code
        return None

    def _discard(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.wait(END_DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def import_path() -> list[str]:
    """Where processes of ours look for modules: `sys.path` as the interpreter's user has set it.

    Less its first entry, the current folder or a script's, unless it was started without (-P).
    """
    given = sys.path if sys.flags.safe_path else sys.path[1:]
    return [entry for entry in given if entry]


def _words(error: OSError | ChannelError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """A child that is started meanwhile has signals wait until it has its handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_MASTER)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
