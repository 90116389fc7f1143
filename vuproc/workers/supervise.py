"""The master's view of one worker process: start it, command it, see it die, replace it.

A worker that does not answer in time, or answers what it should not, is killed; `WorkerLost` says
so to the caller, who replaces it. No second worker is started for the same queues before the pidfd
of the first is readable.
"""

from __future__ import annotations

import logging
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import multiprocess
import multiprocess.context
import multiprocess.forkserver
import multiprocess.popen_forkserver
import multiprocess.process
import multiprocess.reduction

from vuproc import control
from vuproc.control import (
    AnyCommand,
    ChannelError,
    Done,
    Failed,
    Logged,
    MasterChannel,
    RingBroken,
    master_end,
)
from vuproc.errors import VuprocError
from vuproc.fd import Fd
from vuproc.traffic import CommandLog
from vuproc.workers import main, nursery

log = logging.getLogger("vuproc.worker")

SETUP_DEADLINE = 30.0
"""Seconds a new worker has to import its device, and then to set up its queues."""
COMMAND_DEADLINE = 2.0
"""Seconds a worker has to carry out a command before it is killed and replaced."""
KILL_DEADLINE = 5.0
"""Seconds after SIGKILL by which the process must be gone; one stuck in the kernel is given up."""


class WorkerLost(VuprocError):
    """The worker died, fell silent or broke the channel's rules; `cause` says which."""

    def __init__(self, queues: tuple[int, ...], pid: int, cause: str) -> None:
        super().__init__(f"worker {pid} of {name_queues(queues)}: {cause}")
        self.cause = cause


class WorkerSetupError(VuprocError):
    """The device could not be set up in its worker: the author's or the operator's mistake."""


class WorkerRefused(VuprocError):
    """The worker refused a command and changed nothing."""


class Forkserver:
    """Starts worker processes from one process that has imported everything a worker needs."""

    def __init__(self, preload: Sequence[str] = ()) -> None:
        self._context = multiprocess.get_context("forkserver")
        self._context.set_forkserver_preload([nursery.__name__, main.__name__, *preload])
        self._place: Fd | None = None

    def start(self, sock: socket.socket, name: str) -> Any:
        """Start a process whose control channel is `sock`; returns the multiprocess Process."""
        self._ensure()
        process = self._context.Process(
            target=main.run,
            args=(_Handle(sock.fileno()),),
            name=name,
            daemon=True,
        )
        with _bare_main_module():
            process.start()
        return process

    def _ensure(self) -> None:
        """Have the server running, with nothing of it in the file system.

        multiprocess makes a folder with a socket, which a master that is killed would leave behind.
        So both go as soon as the server listens: a descriptor of the socket's place is enough to
        connect to it.
        """
        server = multiprocess.forkserver._forkserver
        config = multiprocess.process.current_process()._config
        folder = tempfile.mkdtemp(prefix="vuproc-")
        before = config.get("tempdir")
        config["tempdir"] = folder
        try:
            server.ensure_running()
            address = server._forkserver_address
            if os.path.dirname(address) == folder:
                if self._place is not None:
                    self._place.close()
                self._place = Fd(os.open(address, os.O_PATH | os.O_CLOEXEC))
                server._forkserver_address = f"/proc/self/fd/{self._place.fileno()}"
        finally:
            config["tempdir"] = before
            shutil.rmtree(folder, ignore_errors=True)


class _Handle:
    """A descriptor for the child, duplicated only while the process is being started."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        return _received, (multiprocess.reduction.DupFd(self._number),)


def _received(handle: Any) -> Any:
    return handle


@contextmanager
def _bare_main_module() -> Iterator[None]:
    """Hide `__main__` while a process is started.

    multiprocess would otherwise import the parent's main module in the child, and with it the
    command line.
    """
    main_module = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main_module


class WorkerProcess:
    """One worker process and its control channel: a standby until `assign` gives it its queues.

    `on_report` gets what it says unasked: `RingBroken` and `Logged`. `on_command(queue)` follows
    each command to the worker of that queue, which may be busy with requests.
    """

    def __init__(
        self,
        forkserver: Forkserver,
        prepare: control.Prepare,
        shared: Sequence[Fd],
        on_report: Callable[[RingBroken | Logged], None],
        on_command: Callable[[int], None],
    ) -> None:
        """Start the process and have it prepare; does not wait for that."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.queues: tuple[int, ...] = ()
        self._on_report = on_report
        self._on_command = on_command
        self._channel: MasterChannel = master_end(ours)
        self._serial = 0
        self._log = CommandLog()
        self._assigned: int | None = None
        with theirs:
            self._process = forkserver.start(theirs, "vuproc-worker")
        self.pid: int = self._process.pid
        # The process cannot be gone and its number reused unnoticed: its parent, the forkserver,
        # reports its end on the sentinel, and only the process that holds the channel answers.
        self.pidfd: Fd | None = None
        try:
            self.pidfd = Fd(os.pidfd_open(self.pid))
            self._prepared: int | None = self.post(prepare, shared)
        except (ProcessLookupError, WorkerLost) as error:
            self.kill()
            self.close()
            raise WorkerSetupError(f"worker {self.pid}: died at once") from error

    def assign(self, queues: tuple[int, ...]) -> None:
        """Give the standby its queues, once; `assigned` tells what came of it.

        Commands may be posted in between. Raises `WorkerSetupError`, and then it is gone.
        """
        self.queues = queues
        try:
            self.prepared(SETUP_DEADLINE)
            self._assigned = self.post(control.Assign(queues=queues))
        except (WorkerRefused, WorkerLost) as error:
            raise self._useless(error) from error

    def assigned(self) -> None:
        """Wait until it has set up its queues, unless it was seen to have. Raises
        `WorkerSetupError`, and then it is gone.
        """
        if self._assigned is None:
            return
        serial, self._assigned = self._assigned, None
        try:
            self.wait(serial, timeout=SETUP_DEADLINE)
        except (WorkerRefused, WorkerLost) as error:
            raise self._useless(error) from error

    def _useless(self, error: VuprocError) -> WorkerSetupError:
        self.kill()
        self.close()
        return WorkerSetupError(str(error))

    @property
    def is_prepared(self) -> bool:
        """Whether the standby has made its device."""
        return self._prepared is None

    def prepared(self, timeout: float) -> None:
        """Wait until the standby has made its device. Raises `WorkerRefused` or `WorkerLost`."""
        if self._prepared is not None:
            serial, self._prepared = self._prepared, None
            self.wait(serial, timeout=timeout)

    def fileno(self) -> int:
        """The control channel's descriptor, for the master's poll set."""
        return self._channel.fileno()

    def call(
        self, command: AnyCommand, fds: Sequence[Fd] = (), *, timeout: float = COMMAND_DEADLINE
    ) -> int:
        """Give one command and wait for its answer; returns the answer's value.

        Raises `WorkerRefused`, or `WorkerLost` when there is no answer within `timeout` seconds.
        """
        serial = self.post(command, fds)
        return self.wait(serial, timeout=timeout)

    def post(self, command: AnyCommand, fds: Sequence[Fd] = ()) -> int:
        """Send one command and return its serial for `wait`. Raises `WorkerLost`."""
        self._serial += 1
        numbered = control.numbered(command, self._serial)
        self._log.posted(self._serial, command, fds)
        try:
            self._channel.send(numbered, fds)
        except ChannelError as error:
            raise self._lost(str(error)) from error
        for queue in self.queues:
            self._on_command(queue)
        return self._serial

    def wait(self, serial: int, *, timeout: float = COMMAND_DEADLINE) -> int:
        """Wait for the answer to `serial`, passing on what else the worker says."""
        deadline = time.monotonic() + timeout
        poller = select.poll()
        poller.register(self._channel.fileno(), select.POLLIN)
        while True:
            answer = self._next()
            if answer is None:
                left = deadline - time.monotonic()
                if left <= 0 or not poller.poll(left * 1000):
                    raise self._lost(f"no answer for {timeout} s")
                continue
            if answer.serial != serial:
                raise self._lost(f"answered command {answer.serial} instead of {serial}")
            if isinstance(answer, Failed):
                raise WorkerRefused(answer.reason)
            return answer.value

    def read(self) -> None:
        """Take what the worker says between commands. Raises `WorkerLost`."""
        answer = self._next()
        if answer is None:
            return
        if answer.serial == self._prepared:
            self._prepared = None
            if isinstance(answer, Failed):
                raise self._lost(answer.reason)
            return
        raise self._lost(f"answered command {answer.serial}, which was not given")

    def _next(self) -> Done | Failed | None:
        while True:
            try:
                received = self._channel.receive()
            except ChannelError as error:
                raise self._lost(str(error)) from error
            if received is None:
                return None
            report, _ = received
            if isinstance(report, Done | Failed):
                answer = report.reason if isinstance(report, Failed) else report.value
                self._log.answered(self._name, report.serial, answer)
                return report
            if isinstance(report, RingBroken) and report.queue not in self.queues:
                raise self._lost(f"reported queue {report.queue}, which is not its own")
            self._on_report(report)

    @property
    def _name(self) -> str:
        return f"worker {self.pid} of {name_queues(self.queues)}"

    def _lost(self, cause: str) -> WorkerLost:
        self._log.lost(self._name, cause)
        return WorkerLost(self.queues, self.pid, cause)

    def kill(self) -> bool:
        """SIGKILL the process and wait until it is gone; False if the kernel will not."""
        self.kill_at_once()
        return self.wait_end(KILL_DEADLINE)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.pidfd is None or self.pidfd.closed

    def kill_at_once(self) -> None:
        """SIGKILL the process, if it is there; does not wait."""
        if self.closed:
            return
        try:
            assert self.pidfd is not None
            signal.pidfd_send_signal(self.pidfd.fileno(), signal.SIGKILL)
        except ProcessLookupError:
            pass

    def wait_end(self, timeout: float) -> bool:
        """Wait until the process has ended; False after `timeout` seconds."""
        if self.pidfd is None:
            return True
        poller = select.poll()
        poller.register(self.pidfd.fileno(), select.POLLIN)
        return bool(poller.poll(timeout * 1000))

    def ending(self) -> str:
        """How the process ended, in words: the signal's name or the exit code."""
        self._process.join(KILL_DEADLINE)
        return describe_exit(self._process.exitcode)

    def ended_by_signal(self) -> signal.Signals | None:
        """The signal that ended the process, or None."""
        self._process.join(KILL_DEADLINE)
        code = self._process.exitcode
        try:
            return None if code is None or code >= 0 else signal.Signals(-code)
        except ValueError:  # a real-time one, which has no name
            return None

    def exit(self, timeout: float) -> bool:
        """Ask the process to end, and kill it if it has not after `timeout` seconds; False if it
        lives even so.
        """
        try:
            self.call(control.Exit(), timeout=timeout)
        except (WorkerLost, WorkerRefused):
            pass
        gone = self.wait_end(timeout) or self.kill()
        self._process.join(KILL_DEADLINE)
        self.close()
        return gone

    def close(self) -> None:
        """Release the channel and the pidfd."""
        self._channel.close()
        if self.pidfd is not None:
            self.pidfd.close()
        if self._process.exitcode is not None:
            self._process.close()


def describe_exit(code: int | None) -> str:
    """An exit code of multiprocess in words; negative ones are signals."""
    if code is None:
        return "still running"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def name_queues(queues: tuple[int, ...]) -> str:
    """ "queue 3" or "queues 0, 1", for messages; a standby has "no queue"."""
    if not queues:
        return "no queue"
    plural = "s" if len(queues) > 1 else ""
    return f"queue{plural} {', '.join(map(str, queues))}"
