"""What a program asks the master of its daemon, and who waits for which answer."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from vuproc import device_object
from vuproc.errors import DaemonRefused, DaemonSilent, NotRunning
from vuproc.fd import Fd
from vuproc.program.messages import Answer, Ask, ProgramChannel
from vuproc.workers.channel import ChannelClosed, ChannelError

ASK_TIMEOUT_S = 10.0
"""Seconds in which the master must answer a request: longer than it may wait for a worker."""


class Requests:
    """Those of any number of threads at one channel, whose reader hands in the answers."""

    def __init__(self, channel: ProgramChannel) -> None:
        self._channel = channel
        self._serials = itertools.count(1)
        self._sending = threading.Lock()
        self._answering = threading.Lock()
        """For the two that follow: an answer goes either to who waits or to who gave up."""
        self._asked: dict[int, queue.SimpleQueue[Answer | None]] = {}
        self._late: dict[int, Callable[[], None]] = {}
        self._over = False

    def ask(
        self,
        verb: str,
        number: int | None,
        file: Fd | None,
        timeout: float,
        late: Callable[[], None] | None = None,
    ) -> Any:
        """Ask the master for a verb; what it gives. Raises DaemonRefused, DaemonSilent or
        NotRunning.

        `late` is called by the reading thread should it turn out after a DaemonSilent that the
        request was carried out.
        """
        serial = next(self._serials)
        self._asked[serial] = queue.SimpleQueue()
        deadline = time.monotonic() + timeout
        try:
            if self._over:
                raise NotRunning("the daemon has ended")
            with self._sending:
                self._channel.send(Ask(serial, verb, number, file))
            answer = self._answer_to(serial, max(0.0, deadline - time.monotonic()), late)
        except ChannelClosed:
            raise NotRunning("the daemon is ending") from None
        except (ChannelError, queue.Empty):
            raise DaemonSilent(f"no answer to {verb} within {timeout:g} s") from None
        finally:
            self._asked.pop(serial, None)
        if answer is None:
            raise NotRunning("the daemon has ended")
        if answer.result is None:
            raise DaemonRefused(answer.error or "no answer that makes sense")
        with answer.result as result:
            return msgspec.msgpack.decode(device_object.content_of(result))

    def _answer_to(
        self, serial: int, timeout: float, late: Callable[[], None] | None
    ) -> Answer | None:
        """Wait for it; queue.Empty if none comes in time."""
        answers = self._asked[serial]
        try:
            return answers.get(timeout=timeout)
        except queue.Empty:
            with self._answering:
                del self._asked[serial]
                if late is not None and answers.empty():
                    self._late[serial] = late
            # It may have come just now.
            return answers.get_nowait()

    def answered(self, answer: Answer) -> bool:
        """Hand in an answer; whether somebody waits for it, who owns its file then."""
        with self._answering:
            answers = self._asked.get(answer.serial)
            if answers is not None:
                answers.put(answer)
                return True
            late = self._late.pop(answer.serial, None)
        if late is not None and answer.result is not None:
            late()
        return False

    def end(self) -> None:
        """Nobody answers any more."""
        self._over = True
        with self._answering:
            self._late.clear()
        for answers in list(self._asked.values()):
            answers.put(None)
