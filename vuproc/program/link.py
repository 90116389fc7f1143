"""The master's end of the channel to the program that has started it.

The program may be busy for as long as it likes: nothing here waits for it.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec

from vuproc import device_object, events, texts
from vuproc.chores import Meanwhile
from vuproc.errors import VuprocError
from vuproc.events import AnyEvent, EventsLost, Ready
from vuproc.fd import Fd, HasFileno
from vuproc.ops.admin import AdminError, Later, Request, Verb
from vuproc.program import start
from vuproc.program.messages import (
    LIFE,
    PROGRAM,
    START,
    Answer,
    AnyTold,
    Ask,
    Began,
    LinkChannel,
    Refused,
    link_end,
)
from vuproc.program.start import AnyStart, ObjectStart
from vuproc.workers.channel import ChannelClosed, ChannelError, TooLarge

log = logging.getLogger("vuproc.master")

WAITING_MOST = 256
"""Messages that wait until the program takes them. Further events are counted, and no further
request is read.
"""
RETRY_S = 0.05
"""Seconds between two attempts to get rid of those that wait."""


class ProgramLink:
    """One program: it hears of events, and its requests are carried out. A chore of the master.

    `wanted` is what it wants served by now.
    """

    def __init__(self, channel: Fd, life: Fd, wanted: AnyStart, content: bytes) -> None:
        """`life`: the program's pidfd. `content`: `wanted` as it came."""
        self.wanted = wanted
        self._content = content
        self._life = life
        self._channel: LinkChannel | None = link_end(socket.socket(fileno=channel.take()))
        self._waiting: deque[AnyTold] = deque()
        self._lost = 0
        self.ready = False
        """The device accepts connections: its end is no failed start any more."""
        self._selector: selectors.BaseSelector | None = None
        self._verbs: Mapping[str, Verb] = {}
        self._kept: dict[str, Fd] = {}
        events.listen(self._on_event)
        self._post(Began(os.getpid()))

    def described(self) -> Any:
        """What the program wants served by now, as a device file. Raises DeviceWrong."""
        assert isinstance(self.wanted, ObjectStart)
        return self.wanted.described(self._content)

    def attach(self, selector: selectors.BaseSelector, verbs: Mapping[str, Verb]) -> None:
        """Be polled, and carry out what the program asks by these verbs."""
        assert self._channel is not None
        self._selector, self._verbs = selector, verbs
        selector.register(self._channel.fileno(), selectors.EVENT_READ, Meanwhile(self._readable))

    def held(self) -> dict[str, HasFileno]:
        """What another master needs to go on for the same program, by name."""
        if self._channel is None:
            return {LIFE: self._life}
        self._kept[START] = device_object.sealed(self._content, "vuproc-start")
        return {PROGRAM: self._channel, LIFE: self._life, START: self._kept[START]}

    def refuse(self, refused: Refused) -> None:
        """Tell why the device cannot be served."""
        self._post(refused)

    # The chore.

    def due(self) -> float | None:
        """Seconds until the next attempt, if something waits."""
        return RETRY_S if self._waiting or self._lost else None

    def tend(self) -> None:
        """Try to get rid of what waits."""
        while self._waiting and self._send(self._waiting[0]):
            self._drop_first()
        if self._lost and not self._waiting and self._send(EventsLost(count=self._lost)):
            self._lost = 0

    def close(self) -> None:
        """The loop is over. What is said from now on is sent if there is room."""
        self._unregister()

    def end(self) -> None:
        """Close the channel: the program knows then that there is nothing more to come."""
        self.tend()
        self._hang_up()
        self._life.close()
        for file in self._kept.values():
            file.close()

    # What goes out.

    def _on_event(self, event: AnyEvent) -> None:
        self.ready = self.ready or isinstance(event, Ready)
        if len(self._waiting) >= WAITING_MOST:
            self._lost += 1
        else:
            self._post(event)

    def _post(self, message: AnyTold) -> None:
        self._waiting.append(message)
        self.tend()

    def _send(self, message: AnyTold) -> bool:
        """Whether it has gone, or nobody is there who would want it."""
        if self._channel is None:
            return True
        try:
            self._channel.send(message, timeout=0.0)
        except ChannelClosed:
            return True  # the program is gone, which ends us
        except TooLarge as error:
            log.error("the program is not told of a %s: %s", type(message).__name__, error)
            return True
        except ChannelError:
            return False
        return True

    def _drop_first(self) -> None:
        message = self._waiting.popleft()
        if isinstance(message, Answer) and message.result is not None:
            message.result.close()

    # What comes in.

    def _readable(self) -> None:
        if self._channel is None or len(self._waiting) >= WAITING_MOST:
            return
        try:
            received = self._channel.receive()
        except ChannelClosed:
            self._hang_up()
            return
        except ChannelError as error:
            log.error("what the program says is not understood: %s", error)
            return
        if received is None:
            return
        ask, files = received
        try:
            self._answer(ask)
        finally:
            for file in files:
                file.close()

    def _answer(self, ask: Ask) -> None:
        try:
            if ask.wanted is not None:
                result = self._reload(ask.wanted)
            elif ask.verb in self._verbs:
                result = self._verbs[ask.verb](Request(ask.verb, ask.queue))
            else:
                raise AdminError(f"unknown verb {ask.verb!r}")
        except (VuprocError, OSError, msgspec.MsgspecError) as error:
            self._tell(ask.serial, error)
        else:
            if isinstance(result, Later):
                result.then(partial(self._tell, ask.serial))
            else:
                self._tell(ask.serial, result)

    def _tell(self, serial: int, result: dict[str, Any] | Exception) -> None:
        if isinstance(result, dict):
            try:
                file = device_object.sealed(msgspec.msgpack.encode(result), "vuproc-answer")
            except (VuprocError, OSError, msgspec.MsgspecError) as error:
                result = error
            else:
                self._post(Answer(serial, result=file))
                return
        self._post(Answer(serial, texts.block(str(result))))

    def _reload(self, file: Fd) -> dict[str, Any] | Later:
        """What is wanted counts from now on, unless it is refused, be it later."""
        before = self.wanted, self._content

        def told(result: dict[str, Any] | AdminError) -> None:
            if isinstance(result, AdminError):
                self.wanted, self._content = before
            answer.tell(result)

        self.wanted, self._content = start.read(file)
        answer = Later()
        try:
            result = self._verbs["reload"](Request("reload"))
        except BaseException:
            self.wanted, self._content = before
            raise
        if isinstance(result, Later):
            result.then(told)
            return answer
        return result

    # The end.

    def _hang_up(self) -> None:
        self._unregister()
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        while self._waiting:
            self._drop_first()

    def _unregister(self) -> None:
        selector, self._selector = self._selector, None
        if selector is not None and self._channel is not None:
            selector.unregister(self._channel.fileno())
