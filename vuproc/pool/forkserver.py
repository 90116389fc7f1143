"""The master's end of the forkserver: starts it, has it fork workers, hears how they ended.

The forkserver has imported everything a worker needs; a worker is a fork of it. It begins in `/`
and finds modules where the master does, less the folder that `python -m` or a script puts in front:
nothing is imported from where somebody happened to be.

A master that starts with a built-in device has it be a fork of itself, made once that is imported
which both need: the rest of the imports goes on in both at the same time. A master that is itself a
fork of a process with all imports (`vuproc/shared_forkserver.py`) has its forkserver forked before
it does anything else; all of them share that process's memory. Otherwise, as that of a standby
master and in place of one that has died, it is a fresh interpreter.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import vuproc
from vuproc.errors import ReasonedError
from vuproc.fd import Fd, HasFileno
from vuproc.handover.keeper.processes import OF_THE_SERVICE
from vuproc.workers import stack
from vuproc.workers.channel import Channel, ChannelClosed, ChannelError
from vuproc.workers.fork_messages import (
    FOR_THE_MASTER,
    AnyForkReport,
    Ended,
    Fork,
    Forked,
    Imported,
    MasterForkChannel,
    NotForked,
)

ATTENTIVE_S = 0.02
"""Seconds of waiting after which the master looks after other things meanwhile."""
FORK_DEADLINE = 10.0
"""Seconds in which a worker must be forked, beside the time for the imports before the first."""
END_DEADLINE = 5.0
"""Seconds in which the forkserver must end once its last worker has."""
ORDERS_MOST = 128
"""Workers that are ordered at once: their orders, and the answers, wait in a socket each."""
ORDERS_TOGETHER = 8
"""Of these so many are one message, and so are their answers: what the forkserver does between two
forks is written to memory that it shares with every worker, and copied each time.
"""
ORDERED_S = 10.0
"""Seconds for which such a worker is of use: less than it waits for its first command."""
STDERR = 2
"""The last of the descriptors that a forkserver has from its master, but its channel."""
CODES_MOST = 512
"""Ends that are remembered until somebody asks; most are asked for at once."""

COMMON = ("vuproc.workers.control",)
"""Modules that have, by their own imports, what a master and a forkserver both import, beside the
device's type.
"""

_PROGRAM = """\
import gc, sys
gc.disable()
sys.path[:] = {path!r}
from importlib import util
spec = util.spec_from_file_location("vuproc", {package!r})
sys.modules["vuproc"] = package = util.module_from_spec(spec)
spec.loader.exec_module(package)
from vuproc.workers import fork_loop
fork_loop.run({channel}, {parent}, {preload!r})
"""
"""The package is named by its file: another of that name may be found first. Imports make no
garbage that would be worth a search.
"""


def poll_until_readable(number: int, timeout: float) -> bool:
    """Wait up to `timeout` seconds until a descriptor is readable, and do nothing else."""
    poller = select.poll()
    poller.register(number, select.POLLIN)
    return bool(poller.poll(max(0.0, timeout) * 1000))


class CannotStart(ReasonedError):
    """The system has no process to give, or not what one needs; `reason` says which call failed.

    It says nothing against the device, and may be different in a moment.
    """


class ForkedProcess(NamedTuple):
    """A worker's process: its id, its pidfd, which is the caller's, and who forked it."""

    pid: int
    pidfd: Fd
    server: _Running

    def exit_code(self, timeout: float) -> int | None:
        """How it ended, once its pidfd is readable, waiting up to `timeout` seconds to hear it.

        A negative code is minus the number of a signal. None if that cannot be known: it may have
        ended together with the forkserver.
        """
        return self.server.exit_code(self.pid, timeout)


class StartedWorker(NamedTuple):
    """A worker's process, our end of its control channel, and the file that it may write its stack
    to: all of them the caller's.
    """

    process: ForkedProcess
    control: socket.socket
    stack: Fd


class _Ends(NamedTuple):
    """What a worker is to have, and our end of its control channel."""

    ours: socket.socket
    theirs: Fd
    stack: Fd

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()
        self.stack.close()


def _ends() -> _Ends:
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise CannotStart(f"no control channel: {error.strerror}") from error
    with theirs:
        try:
            file = stack.make_file()
        except OSError as error:
            ours.close()
            raise CannotStart(f"no file for a worker's stack: {error.strerror}") from error
        return _Ends(ours, Fd(theirs.detach()), file)


class Forkserver:
    """Starts worker processes. `preload` are device types, each as `module:Class`, to import once,
    before the first worker.

    `import_s`: seconds that these imports may take.
    """

    def __init__(self, preload: Sequence[str] = (), import_s: float = 0.0) -> None:
        self.import_s = import_s
        self.wait: Callable[[int, float], bool] = poll_until_readable
        """Waits until a descriptor is readable, or for so many seconds; whether it is."""
        self.locked = False
        """It is to give up what a master does that is in a sandbox."""
        self._preload = tuple(preload)
        self._running: _Running | None = None
        self._ordered: deque[_Ends] = deque()
        """Of workers that are not started yet for anybody, in their order."""
        self._ordered_at = 0.0

    @property
    def pid(self) -> int | None:
        """Its process, if it was started."""
        return None if self._running is None else self._running.pid

    def launch(self) -> None:
        """Start it ahead of its first worker, and wait for its imports; raises CannotStart.

        It is well if they take longer than they may; the first worker is waited for then.
        """
        try:
            self._running = _Running(self._preload)
        except OSError as error:
            raise CannotStart(f"no worker process: {error.strerror or error}") from error
        try:
            self._running.await_imports(self.import_s + FORK_DEADLINE)
        except ChannelError as error:
            self.close()
            raise CannotStart(f"no worker process: {error}") from error

    def begin(self) -> None:
        """Start it ahead of its first worker, and do not wait: it imports while this process does.

        It is a fork of this process, which has imported what both need, and has no thread; nothing
        that is open here stays so there. Raises CannotStart.
        """
        for name in (*COMMON, *(name.partition(":")[0] for name in self._preload)):
            with contextlib.suppress(Exception):  # whoever needs it says why it cannot be had
                importlib.import_module(name)
        gc.freeze()  # so that no search writes to what both share
        try:
            self._running = _Running(self._preload, partial(_begun, self._preload))
        except OSError as error:
            raise CannotStart(f"no worker process: {error.strerror or error}") from error

    def allow_files(self) -> None:
        """One that was started ahead may have as many open files as this process by now: so may the
        workers.
        """
        if self._running is not None:
            with contextlib.suppress(OSError):  # it has ended, which is noticed
                limits = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.prlimit(self._running.pid, resource.RLIMIT_NOFILE, limits)

    def fork_now(self, *ours: HasFileno) -> None:
        """Have it be a fork of this process, which has imported all and done nothing else; it
        closes `ours`. Raises CannotStart.
        """
        try:
            self._running = _Running((), partial(_forked, ours))
        except OSError as error:
            raise CannotStart(f"no worker process: {error.strerror or error}") from error

    def imports(self, preload: Sequence[str], import_s: float) -> None:
        """What one that is started from now on is to import first, and how long any may take."""
        self._preload, self.import_s = tuple(preload), import_s

    def order(self, count: int) -> None:
        """Have so many workers forked while this process does something else: the next that are
        started are these. What cannot be had is said then.
        """
        running = self._running
        if running is None:
            return
        self._ordered_at = time.monotonic()
        left = min(count, ORDERS_MOST)
        while left:
            together: list[_Ends] = []
            try:
                for _ in range(min(left, ORDERS_TOGETHER)):
                    together.append(_ends())
                running.order(*(Fork(each.theirs, each.stack, self.locked) for each in together))
            except (CannotStart, OSError, ChannelError):
                for ends in together:
                    ends.close()
                return
            for ends in together:
                ends.theirs.close()
            self._ordered.extend(together)
            left -= len(together)

    def start(self) -> StartedWorker:
        """Start a worker. Raises CannotStart. A forkserver that has died unseen is replaced."""
        try:
            started = self._take_ordered()
        except ChannelError:
            self.close()  # another one is asked
            started = None
        except OSError as error:
            raise CannotStart(f"no worker process: {error.strerror or error}") from error
        if started is not None:
            return started
        ends = _ends()
        try:
            with ends.theirs:
                return StartedWorker(self._fork(ends), ends.ours, ends.stack)
        except BaseException:
            ends.close()
            raise

    def _take_ordered(self) -> StartedWorker | None:
        """The first of those that were ordered. Raises ChannelError, or OSError if there is none.

        Whoever has waited long for its first command may be about to give up, and is left to.
        """
        while self._ordered:
            assert self._running is not None
            ends = self._ordered.popleft()
            try:
                process = self._running.forked(self._patience(), self.wait)
            except BaseException:
                ends.close()
                raise
            if time.monotonic() - self._ordered_at < ORDERED_S:
                return StartedWorker(process, ends.ours, ends.stack)
            process.pidfd.close()
            ends.close()
        return None

    def _fork(self, ends: _Ends) -> ForkedProcess:
        order = Fork(ends.theirs, ends.stack, self.locked)
        try:
            if self._running is not None and not self._running.closed:
                try:
                    return self._running.fork(order, self._patience(), self.wait)
                except ChannelClosed:
                    self.close()
            self._running = _Running(self._preload)
            return self._running.fork(order, self._patience(), self.wait)
        except OSError as error:
            raise CannotStart(f"no worker process: {error.strerror or error}") from error
        except ChannelClosed as error:
            self.close()
            raise CannotStart(f"no worker process: {error}") from error
        except ChannelError as error:
            # It is well, and so are its workers: the new one ends as its channel does.
            raise CannotStart(f"no worker process: {error}") from error

    def _patience(self) -> float:
        imported = self._running is not None and self._running.has_imported
        return FORK_DEADLINE if imported else self.import_s + FORK_DEADLINE

    def kill(self) -> None:
        """Have the kernel end it, and with it its workers; does not wait. May be called by a signal
        handler.
        """
        if self._running is not None:
            self._running.kill()

    def close(self) -> None:
        """End it, after its workers have ended. Idempotent."""
        while self._ordered:
            self._ordered.popleft().close()
        running, self._running = self._running, None
        if running is not None:
            running.close()


class _Running:
    """One forkserver process, and what it has told."""

    def __init__(
        self,
        preload: tuple[str, ...],
        launch: Callable[[socket.socket, socket.socket], _Child] | None = None,
    ) -> None:
        """`launch` starts the process in another way, with our end of a channel and its own.

        Raises OSError.
        """
        self._codes: dict[int, int] = {}
        self._answers: deque[ForkedProcess | NotForked] = deque()
        """To orders, in their order; nobody has asked for them yet."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                if launch is None:
                    self._process: _Child = _launched(theirs.fileno(), preload)
                else:
                    self._process = launch(ours, theirs)
            except BaseException:
                ours.close()
                raise
        self._channel: MasterForkChannel = Channel(ours, AnyForkReport)
        self.pid = self._process.pid
        self.has_imported = False
        self.closed = False
        """It was found to have gone, or was told to."""

    def fork(
        self, order: Fork, timeout: float, wait: Callable[[int, float], bool]
    ) -> ForkedProcess:
        """Raises ChannelError, or OSError if it tells of one."""
        self.order(order)
        return self.forked(timeout, wait)

    def order(self, *orders: Fork) -> None:
        """Send orders, which are answered by and by. Raises ChannelError."""
        self._channel.send(*orders)

    def forked(self, timeout: float, wait: Callable[[int, float], bool]) -> ForkedProcess:
        """What has come of the first order that was not answered yet. Raises as `fork`."""
        if not self._answers:
            self._await_answer(timeout, wait)
        answer = self._answers.popleft()
        if isinstance(answer, NotForked):
            raise OSError(answer.errno, _refusal(answer))
        return answer

    def _await_answer(self, timeout: float, wait: Callable[[int, float], bool]) -> None:
        number = self._channel.fileno()
        # So that there is room for the pidfd.
        with Fd(os.dup(number)) as spare:
            deadline = time.monotonic() + timeout
            while not self._answers:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise ChannelClosed("the forkserver does not answer")
                if poll_until_readable(number, min(left, ATTENTIVE_S)) or wait(number, left):
                    spare.close()
                    self._hear()

    def await_imports(self, timeout: float) -> None:
        """Raises ChannelError."""
        deadline = time.monotonic() + timeout
        while not self.has_imported and self._channel.wait(deadline - time.monotonic()):
            self._hear()

    def kill(self) -> None:
        """As that of Forkserver."""
        if self._process.returncode is None:
            os.kill(self._process.pid, signal.SIGKILL)

    def exit_code(self, pid: int, timeout: float) -> int | None:
        """As that of ForkedProcess."""
        deadline = time.monotonic() + timeout
        try:
            while pid not in self._codes and not self.closed:
                if not self._channel.wait(deadline - time.monotonic()):
                    break
                self._hear()
        except ChannelError:
            self.close()
        return self._codes.pop(pid, None)

    def close(self) -> None:
        """Have it end, and wait for that. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._channel.close()
        for answer in self._answers:
            if isinstance(answer, ForkedProcess):
                answer.pidfd.close()
        self._answers.clear()
        try:
            self._process.wait(END_DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _hear(self) -> None:
        """Take the reports of one datagram. Raises ChannelError."""
        while (received := self._channel.receive()) is not None:
            self._note(received[0])
            if not self._channel.has_unread:
                return

    def _note(self, report: AnyForkReport) -> None:
        match report:
            case Forked(pid=pid, pidfd=pidfd):
                self._answers.append(ForkedProcess(pid, pidfd, self))
            case NotForked():
                self._answers.append(report)
            case Imported():
                self.has_imported = True
            case Ended(pid=pid, code=code):
                while len(self._codes) >= CODES_MOST:
                    del self._codes[next(iter(self._codes))]
                self._codes[pid] = code


class _Child(Protocol):
    """A child process, as subprocess has it."""

    pid: int
    returncode: int | None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended. Raises subprocess.TimeoutExpired."""

    def kill(self) -> None:
        """SIGKILL it."""


class _ForkedChild:
    """One that was forked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            with Fd(os.pidfd_open(self.pid)) as ending:
                if timeout is not None and not poll_until_readable(ending.fileno(), timeout):
                    raise subprocess.TimeoutExpired("the forkserver", timeout)
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)


def _forked(files: Sequence[HasFileno], ours: socket.socket, theirs: socket.socket) -> _Child:
    """A fork of this process, whose `files` and end of the channel are none of its business."""
    from vuproc.workers import fork_loop  # a master that starts an interpreter has no use for it

    parent = os.getpid()

    def live() -> None:
        for file in (*files, ours):
            os.close(file.fileno())
        _leave_surroundings()
        fork_loop.run_forked(theirs.detach(), parent)

    return _fork(live)


def _begun(preload: Sequence[str], ours: socket.socket, theirs: socket.socket) -> _Child:
    """A fork of this process, which does by itself what is left to do of a forkserver's imports."""
    parent = os.getpid()

    def live() -> None:
        ours.detach()
        channel = theirs.detach()
        for number in map(int, os.listdir("/proc/self/fd")):
            if number > STDERR and number != channel:
                with contextlib.suppress(OSError):  # that of the list
                    os.close(number)
        for name in OF_THE_SERVICE:
            os.environ.pop(name, None)
        _leave_surroundings()
        from vuproc.workers import fork_loop

        fork_loop.run(channel, parent, preload)

    return _fork(live)


def _fork(live: Callable[[], None]) -> _Child:
    """A child process that does this, and nothing else."""
    with _signals_wait():
        pid = os.fork()
        if pid:
            return _ForkedChild(pid)
        try:
            live()
        finally:
            os._exit(1)


def _leave_surroundings() -> None:
    """Be where a forkserver is, and find modules as it does."""
    with open(os.devnull, "rb") as null:
        os.dup2(null.fileno(), 0)
    sys.path[:] = import_path()
    os.chdir("/")


def _launched(channel: int, preload: tuple[str, ...]) -> subprocess.Popen[bytes]:
    program = _PROGRAM.format(
        path=import_path(),
        package=vuproc.__file__,
        channel=channel,
        parent=os.getpid(),
        preload=preload,
    )
    # As multiprocess.util has it, which the master imports for nothing else.
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    with _signals_wait():
        return subprocess.Popen(
            [sys.executable, *flags, "-P", "-c", program],
            stdin=subprocess.DEVNULL,
            pass_fds=(channel,),
            cwd="/",
            env={key: value for key, value in os.environ.items() if key not in OF_THE_SERVICE},
        )


def _refusal(told: NotForked) -> str:
    limit = " (limits: pids.max, ulimit -u)" if told.errno == errno.EAGAIN else ""
    return f"{told.call}: {os.strerror(told.errno)}{limit}"


def import_path() -> list[str]:
    """Where processes of ours look for modules: `sys.path` as the interpreter's user has set it.

    Less its first entry, the current folder or a script's, unless it was started without (-P).
    """
    given = sys.path if sys.flags.safe_path else sys.path[1:]
    return [entry for entry in given if entry]


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """A child that is started meanwhile has signals wait until it has its handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_MASTER)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
