"""The program's end of one daemon that runs: its process, what it tells, and what it is asked.

A thread reads what the master tells, and another gives events to the program, whose code may take
its time. Whoever waits does so with descriptors and without locks, so that a signal handler may
stop a daemon whatever the thread that it interrupts is at.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import select
import signal
import socket
import subprocess
import threading
import time
import weakref
from typing import Any

import msgspec

from vuproc import device_object
from vuproc.errors import (
    ConfigErrors,
    DaemonRefused,
    DaemonSilent,
    NotRunning,
    StartRefused,
    StartTimeout,
)
from vuproc.events import AnyEvent, Ready, Stopped
from vuproc.fd import Fd
from vuproc.handover.sd_notify import HasFileno
from vuproc.program import start
from vuproc.program.delivery import Delivery, OnEvent
from vuproc.program.endings import ending_of, error_of
from vuproc.program.flag import Flag, wait_for
from vuproc.program.launch import launched
from vuproc.program.messages import (
    LIFE,
    PROGRAM,
    START,
    Answer,
    Ask,
    ProgramChannel,
    Refused,
    program_end,
)
from vuproc.workers.channel import ChannelClosed, ChannelError

log = logging.getLogger("vuproc.daemon")

START_TIMEOUT_S = 60.0
"""Seconds that a start may take, if the caller does not say: longer than one worker's imports."""
ASK_TIMEOUT_S = 10.0
"""Seconds in which the master must answer a request: longer than it may wait for a worker."""
URGENT_S = 3.0
"""Seconds that it has to end once it was asked not to wait for its workers."""
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
        """Launch it; does not wait. Raises OSError."""
        self.owner = os.getpid()
        self.ready, self.ended = Flag(), Flag()
        self._master_pid = 0
        self.stopped: Stopped | None = None
        self.refused: StartRefused | ConfigErrors | None = None
        self._stop_asked = False
        self._last_word = ""
        self._master: Fd | None = None
        self._serials = itertools.count(1)
        self._sending = threading.Lock()
        self._asked: dict[int, queue.SimpleQueue[Answer | None]] = {}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel: ProgramChannel = program_end(ours)
        with (
            theirs,
            Fd(os.pidfd_open(os.getpid())) as life,
            start.sealed(wanted) as file,
        ):
            files: dict[str, HasFileno] = {PROGRAM: theirs, LIFE: life, START: file, **given}
            self._process = launched(files, supervised=supervised, output=output)
        self._pidfd = Fd(os.pidfd_open(self._process.pid))
        _all.add(self)
        self._delivery = Delivery(on_event)
        threading.Thread(target=self._read, name="vuproc-daemon", daemon=True).start()

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
        steps = ((self.terminate, timeout), (self.terminate, URGENT_S), (self.kill, KILL_S))
        for step, patience in steps:
            if not self.ended.is_set:
                step()
            if wait_for((self.ended,), patience):
                break
        if self.stopped is None:
            raise DaemonSilent(f"process {self._process.pid} cannot be killed")
        if not self._delivery.is_caller:
            wait_for((self._delivery.done,), DELIVERY_S)
        return self.stopped

    def terminate(self) -> None:
        """Ask it to end in order, and for the second time, without waiting for its workers."""
        self._signal(self._pidfd, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL the master, and before it the keeper, which would start another."""
        self._signal(self._pidfd, signal.SIGKILL)
        if self._master is not None:
            self._signal(self._master, signal.SIGKILL)

    @staticmethod
    def _signal(pidfd: Fd, number: signal.Signals) -> None:
        # Closed once it has ended.
        with contextlib.suppress(ValueError, OSError):
            signal.pidfd_send_signal(pidfd.fileno(), number)

    # Requests.

    def ask(
        self,
        verb: str,
        number: int | None = None,
        file: Fd | None = None,
        timeout: float = ASK_TIMEOUT_S,
    ) -> Any:
        """Ask the master for a verb; what it gives. Raises DaemonRefused, DaemonSilent or
        NotRunning.
        """
        serial = next(self._serials)
        answers = self._asked[serial] = queue.SimpleQueue()
        deadline = time.monotonic() + timeout
        try:
            if self.ended.is_set:
                raise NotRunning("the daemon has ended")
            try:
                with self._sending:
                    self._channel.send(Ask(serial, verb, number, file))
                answer = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except ChannelClosed:
                raise NotRunning("the daemon is ending") from None
            except (ChannelError, queue.Empty):
                raise DaemonSilent(f"no answer to {verb} within {timeout:g} s") from None
        finally:
            del self._asked[serial]
        if answer is None:
            raise NotRunning("the daemon has ended")
        if answer.result is None:
            raise DaemonRefused(answer.error or "no answer that makes sense")
        with answer.result as result:
            return msgspec.msgpack.decode(device_object.content_of(result))

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
        poller.register(self._pidfd.fileno(), select.POLLIN)
        reading = True
        while True:
            ready = {number for number, _ in poller.poll()}
            if reading and self._channel.fileno() in ready:
                reading = self._hear()
                if not reading:
                    poller.unregister(self._channel.fileno())
            elif self._pidfd.fileno() in ready:
                return

    def _hear(self) -> bool:
        """Take one message; whether there may be more."""
        try:
            received = self._channel.receive()
        except ChannelError as error:
            if not isinstance(error, ChannelClosed):
                log.error("the master of a daemon says what is not understood: %s", error)
            return False
        if received is None:
            return True
        told, files = received
        if isinstance(told, Answer):
            answers = self._asked.get(told.serial)
            if answers is not None:
                answers.put(told)
                return True
        for file in files:
            file.close()
        if isinstance(told, Refused):
            self.refused = error_of(told)
        elif not isinstance(told, Answer):
            self._happened(told)
        return True

    def _happened(self, event: AnyEvent) -> None:
        if isinstance(event, Stopped):
            self._last_word = event.reason  # the process is there still
            return
        if isinstance(event, Ready):
            self._is_ready(event)
        self._delivery.put(event)

    def _is_ready(self, event: Ready) -> None:
        if event.pid != self._master_pid:
            before, self._master = self._master, None
            if before is not None:
                before.close()
            with contextlib.suppress(OSError):  # it may have ended since
                self._master = Fd(os.pidfd_open(event.pid))
        self._master_pid = event.pid
        self.ready.set()

    def _finish(self) -> None:
        """The process has ended."""
        while self._hear_rest():
            pass
        code = _reaped(self._process)
        reason = self._last_word or ending_of(code)
        if self.refused is not None:
            reason = str(self.refused)
        elif self._stop_asked and code == 0:
            reason = "it was asked to stop"
        stopped = Stopped(reason=reason, code=code)
        for file in (self._pidfd, self._master):
            if file is not None:
                file.close()
        self._channel.close()
        self.stopped = stopped
        self.ended.set()
        for answers in list(self._asked.values()):
            answers.put(None)
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


def _reaped(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(KILL_S)
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL


def _forget_all_in_child() -> None:
    for running in list(_all):
        running.forget_in_child()


os.register_at_fork(after_in_child=_forget_all_in_child)
