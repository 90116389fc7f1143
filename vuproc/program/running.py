"""The program's end of one daemon that runs: its process, what it tells, and what it is asked.

A thread reads what the master tells, and another gives events to the program, whose code may take
its time. Whoever waits does so with descriptors and without locks, so that a signal handler may
stop a daemon whatever the thread that it interrupts is at.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from vuproc.errors import (
    ConfigErrors,
    DaemonSilent,
    NotRunning,
    StartRefused,
    StartTimeout,
)
from vuproc.events import AnyEvent, Ready, Stopped
from vuproc.fd import Fd, HasFileno
from vuproc.program import start
from vuproc.program.delivery import Delivery, OnEvent
from vuproc.program.endings import end_of, error_of
from vuproc.program.flag import Flag, wait_for
from vuproc.program.launch import launched
from vuproc.program.messages import (
    LIFE,
    PROGRAM,
    START,
    Answer,
    Began,
    ProgramChannel,
    Refused,
    program_end,
)
from vuproc.program.process_handle import ProcessHandle
from vuproc.program.requests import ASK_TIMEOUT_S, Requests
from vuproc.signals import ECHO_S
from vuproc.workers.channel import ChannelClosed, ChannelError

log = logging.getLogger("vuproc.daemon")

START_TIMEOUT_S = 60.0
"""Seconds that a start may take, if the caller does not say: longer than one worker's imports."""
URGENT_S = 3.0
"""Seconds that it has to end once it was asked not to wait for its workers."""
AGAIN_S = ECHO_S + 0.1
"""Seconds after which one more SIGTERM cannot be taken for an echo of the one before."""
KILL_S = 5.0
"""Seconds in which what was killed must be gone."""
DELIVERY_S = 1.0
"""Seconds that the program's `on_event` has to take the last events before a stop returns."""
_all: weakref.WeakSet[Running] = weakref.WeakSet()


class Running:
    """One run of a daemon, from its launch to its end."""

    def __init__(
        self,
        wanted: start.AnyStart,
        given: dict[str, HasFileno],
        *,
        supervised: bool,
        output: HasFileno | None,
        on_event: OnEvent | None,
    ) -> None:
        """Launch it; does not wait. Raises OSError, and then nothing is left of it."""
        self.owner = os.getpid()
        self.ready, self.ended = Flag(), Flag()
        self._master_pid = 0
        self.stopped: Stopped | None = None
        self.refused: StartRefused | ConfigErrors | None = None
        self._stop_asked = False
        self._end_asked_at: float | None = None
        self._last_word: Stopped | None = None
        self._master: ProcessHandle | None = None
        with contextlib.ExitStack() as undo:
            undo.callback(self.ready.close)
            undo.callback(self.ended.close)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._channel: ProgramChannel = program_end(ours)
            undo.callback(self._channel.close)
            self._requests = Requests(self._channel)
            with (
                theirs,
                Fd(os.pidfd_open(os.getpid())) as life,
                start.sealed(wanted) as file,
            ):
                files: dict[str, HasFileno] = {PROGRAM: theirs, LIFE: life, START: file, **given}
                self._process = launched(files, supervised=supervised, output=output)
            undo.callback(self._process.wait, KILL_S)
            undo.callback(self._process.kill)
            self._handle = ProcessHandle(self._process.pid)
            undo.callback(self._handle.close)
            try:
                self._delivery = Delivery(on_event)
                undo.callback(self._delivery.finish, None)
                threading.Thread(target=self._read, name="vuproc-daemon", daemon=True).start()
            except RuntimeError as error:
                raise OSError(errno.EAGAIN, "no thread can be started") from error
            undo.pop_all()
        _all.add(self)

    # The start and the end.

    @property
    def pid(self) -> int:
        """Of the process that was launched."""
        return self._process.pid

    def wait_ready(self, timeout: float) -> None:
        """Wait until it accepts connections. Raises StartRefused or ConfigErrors, and then it has
        ended.
        """
        if not wait_for((self.ready, self.ended), timeout):
            self.stop(0.0)
            raise StartTimeout(f"it was not ready within {timeout:g} s, and was ended")
        if self.ready.is_set:
            return
        wait_for((self.ended,), KILL_S)
        if self.refused is not None:
            raise self.refused
        how = "in an unknown way" if self.stopped is None else self.stopped.reason
        raise StartRefused(f"it ended before it was ready: {how}")

    def wait(self, timeout: float | None) -> Stopped | None:
        """Wait for its end; None if it has not ended after so many seconds."""
        wait_for((self.ended,), timeout)
        return self.stopped

    def stop(self, timeout: float) -> Stopped:
        """As `Daemon.stop`. Takes no lock."""
        self._stop_asked = True
        self.ask_end()
        if not wait_for((self.ended,), timeout) and not self._urged():
            self.kill()
            wait_for((self.ended,), KILL_S)
        if self.stopped is None:
            raise DaemonSilent(f"process {self._process.pid} cannot be killed")
        if not self._delivery.is_caller:
            wait_for((self._delivery.done,), DELIVERY_S)
        return self.stopped

    def end_at_once(self) -> None:
        """Have it end without waiting for anything, since its start was given up."""
        try:
            if not self.ended.is_set:
                self.stop(0.0)
        finally:
            if not self.ended.is_set:
                self.kill()

    def ask_end(self) -> None:
        """Ask it to end in order. Idempotent: a second SIGTERM would cut that short.

        Two threads at once may both send it, which the master takes for one (`ECHO_S`).
        """
        if self._end_asked_at is None:
            self._end_asked_at = time.monotonic()
            self._terminate()

    def urge(self) -> None:
        """Ask it not to wait for its workers, unless it was asked to end just now."""
        self.ask_end()
        self._terminate()

    def _urged(self) -> bool:
        """Ask it not to wait for its workers; whether it has ended soon after."""
        asked_at = time.monotonic() if self._end_asked_at is None else self._end_asked_at
        if wait_for((self.ended,), max(0.0, asked_at + AGAIN_S - time.monotonic())):
            return True
        until = time.monotonic() + URGENT_S
        # More than once: a master that was late to see the first may take the next for its echo.
        while (left := until - time.monotonic()) > 0:
            self._terminate()
            if wait_for((self.ended,), min(left, AGAIN_S)):
                return True
        return False

    def _terminate(self) -> None:
        self._handle.signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL the master, and before it the keeper, which would start another."""
        self._handle.signal(signal.SIGKILL)
        master = self._master  # the reading thread may replace it
        if master is not None:
            master.signal(signal.SIGKILL)

    # Requests.

    def ask(
        self,
        verb: str,
        number: int | None = None,
        file: Fd | None = None,
        timeout: float = ASK_TIMEOUT_S,
        late: Callable[[], None] | None = None,
    ) -> Any:
        """As `Requests.ask`; raises NotRunning too."""
        if self.ended.is_set:
            raise NotRunning("the daemon has ended")
        return self._requests.ask(verb, number, file, timeout, late)

    # What the master tells: the reading thread.

    def _read(self) -> None:
        try:
            self._listen()
        except BaseException:
            self.kill()  # nobody would hear of it any more
            raise
        finally:
            self._finish()

    def _listen(self) -> None:
        poller = select.poll()
        poller.register(self._channel.fileno(), select.POLLIN)
        poller.register(self._handle.fileno(), select.POLLIN)
        reading = True
        while True:
            ready = {number for number, _ in poller.poll()}
            if reading and self._channel.fileno() in ready:
                reading = self._hear()
                if not reading:
                    poller.unregister(self._channel.fileno())
            elif self._handle.fileno() in ready:
                return

    def _hear(self) -> bool:
        """Take one message; whether there may be more."""
        try:
            received = self._channel.receive()
        except ChannelClosed:
            return False
        except ChannelError as error:
            # One datagram is lost, as if no descriptor was free for what came with it.
            log.error("a message of a daemon's master is lost: %s", error)
            return True
        if received is None:
            return True
        told, files = received
        if isinstance(told, Answer) and self._requests.answered(told):
            return True
        for file in files:
            file.close()
        if isinstance(told, Refused):
            self.refused = error_of(told)
        elif isinstance(told, Began):
            self._master_is(told.pid)
        elif not isinstance(told, Answer):
            self._happened(told)
        return True

    def _happened(self, event: AnyEvent) -> None:
        if isinstance(event, Stopped):
            self._last_word = event  # the process is there still
            return
        if isinstance(event, Ready):
            self._master_is(event.pid)
            self.ready.set()
        self._delivery.put(event)

    def _master_is(self, pid: int) -> None:
        if pid == self._master_pid:
            return
        self._last_word = None
        before, self._master = self._master, None
        if before is not None:
            before.close()
        with contextlib.suppress(OSError):  # it may have ended since
            self._master = ProcessHandle(pid)
        self._master_pid = pid

    def _finish(self) -> None:
        """The process has ended."""
        while self._hear_rest():
            pass
        code, reason = end_of(self._process, self._handle, self._last_word, KILL_S)
        if self.refused is not None:
            reason = str(self.refused)
        elif code == 0 and (self._stop_asked or not reason):
            reason = "it was asked to stop"
        stopped = Stopped(reason=reason, code=code)
        for handle in (self._handle, self._master):
            if handle is not None:
                handle.close()
        self._channel.close()
        self.stopped = stopped
        self.ended.set()
        self._requests.end()
        self._delivery.finish(stopped if self.ready.is_set else None)
        self.ready.close()
        self.ended.close()

    def _hear_rest(self) -> bool:
        poller = select.poll()
        poller.register(self._channel.fileno(), select.POLLIN)
        return bool(poller.poll(0)) and self._hear()

    def forget_in_child(self) -> None:
        """This is a fork of the program: nothing of the daemon is its business."""
        self._channel.close()


def _forget_all_in_child() -> None:
    for running in list(_all):
        running.forget_in_child()


os.register_at_fork(after_in_child=_forget_all_in_child)
