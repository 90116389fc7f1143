"""One port of a console: two queues of the driver's, and an end on the host."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from vuproc.device import Device, Timer
from vuproc.devices.console_ends import End
from vuproc.devices.console_patience import Patience
from vuproc.devices.console_spool import SpoolState
from vuproc.devices.console_streams import MOST_BYTES, Inward, Outward, inside
from vuproc.devices.console_watches import Watches
from vuproc.spec.console import receive_queue

if TYPE_CHECKING:
    from vuproc.shm.request import Request

MOST_AT_ONCE = 64
"""Requests, or parts of one, before the worker looks at its other queues again: a driver may make
more of them without an end."""
FULL = (errno.ENOSPC, errno.EDQUOT)
RETRY_S = 5.0
"""Seconds until a disk that was full is tried again."""


class PortState(ctypes.Structure):
    """What of a port outlives workers."""

    _fields_: ClassVar = [
        ("outward", SpoolState),
        ("inward", SpoolState),
        ("told", ctypes.c_uint32),
        ("told_size", ctypes.c_uint32),
        ("ready", ctypes.c_uint32),
        ("open", ctypes.c_uint32),
    ]


class Port:
    """Port `number` of `device`, in its worker.

    `pipes` are the ends of two pipes, one for each way, the one to read from first; `changed` is
    called when somebody comes to the other end or goes.
    """

    def __init__(
        self,
        device: Device,
        number: int,
        name: str,
        state: PortState,
        end: End,
        pipes: tuple[tuple[int, int], tuple[int, int]],
        changed: Callable[[], None],
        *,
        console: bool,
    ) -> None:
        self.number = number
        self.name = name
        self.state = state
        self.console = console
        self.listens = True
        """Whether the guest takes input now."""
        self.receive_queue = receive_queue(number)
        self.transmit_queue = self.receive_queue + 1
        self._device = device
        self._end = end
        self._changed = changed
        self._outward = Outward(
            state.outward, pipes[0], lambda: device.publish(self.transmit_queue)
        )
        self._inward = Inward(state.inward, pipes[1], lambda: device.publish(self.receive_queue))
        self._unsettled = {self.receive_queue, self.transmit_queue}
        self._held: Request | None = None
        """A request that there was no room for."""
        self._patience = Patience(device, number, self._stands_still, self.transmit)
        self._retry: Timer | None = None
        self._watches = Watches(device)
        self._look_out()
        self._pass_on()  # what a worker that died has left

    @property
    def connected(self) -> bool:
        """Whether there is somebody at the other end, as far as one can tell."""
        return self._end.connected

    def close(self) -> None:
        """Pass on what is taken at once, and close what is this worker's own."""
        self._pass_on()
        self._watches.close()
        self._end.close()

    # Rings.

    def ring_started(self, queue: int) -> None:
        """There is another ring: it is to be seen first what of the last one's counts. At once, if
        that is known: this one may stop before there is anything to take, and the next does not
        say it any more.
        """
        self._unsettled.add(queue)
        if queue == self.transmit_queue:
            self._held = None  # of a ring that went without a word
        if self._settled(queue) and queue == self.transmit_queue:
            self._pass_on()

    def ring_stopping(self, queue: int) -> None:
        """Give back what is held."""
        self._settled(queue)
        if queue == self.transmit_queue and self._held is not None:
            if not self._held.finished:
                self._held.release()
            self._held = None

    def _settled(self, queue: int) -> bool:
        if queue in self._unsettled:
            unfinished = self._device.unfinished(queue)
            if unfinished is None:
                return False
            (self._inward if queue == self.receive_queue else self._outward).settle(unfinished)
            self._unsettled.discard(queue)
        return True

    # From the guest to the host.

    def transmit(self) -> None:
        """Take what the guest has sent, as far as there is room for it."""
        if not self._settled(self.transmit_queue):
            return
        for _ in range(MOST_AT_ONCE):
            request = self._held or self._device.take(self.transmit_queue)
            self._held = None
            if request is None:
                break
            if request.finished:
                continue
            if self._end.sink is None or self._patience.lost or request.readable_total > MOST_BYTES:
                self._drop(request)
            elif not self._outward.take_in(request):
                self._held = request
                if not self._pass_on():
                    if self.console:
                        self._patience.begin()
                    return
        else:
            self._watches.call_soon(self.transmit)
        self._pass_on()

    def _pass_on(self) -> bool:
        """Pass on what has come; whether that was all of it."""
        sink = self._end.sink
        if sink is None:
            self._outward.discard()
            return True
        try:
            done = self._outward.pass_on(sink.fileno())
        except OSError as error:
            if error.errno in FULL:
                self._try_later(error)
                return False
            self._gone(f"its output: {error.strerror}")
            return True
        if done:
            self._watches.unwatch(sink)
            self._patience.taken()
        else:
            self._watches.watch(sink, self._writable, write=True)
        return done

    def _writable(self) -> None:
        self._patience.taken()
        self._pass_on()
        self.transmit()

    def _try_later(self, error: OSError) -> None:
        if self._retry is None:
            self._device.log.warning("port %d: its output: %s", self.number, error.strerror)
            self._retry = self._device.call_later(RETRY_S, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        if self._pass_on():
            self.transmit()

    def shout(self, text: bytes) -> None:
        """Pass text on past all that waits, if the other end takes it at once."""
        if self._end.sink is not None:
            with suppress(OSError):
                os.write(self._end.sink.fileno(), text)

    def _drop(self, request: Request) -> None:
        if self._end.sink is not None:
            self._device.count_dropped(self.transmit_queue)
        request.finish(0)
        if self._outward.partly_in:
            self._device.publish(self.transmit_queue)
            self._outward.forget_part()

    def _stands_still(self) -> bool:
        return self._held is not None and not self._pass_on()

    # From the host to the guest.

    def receive(self) -> None:
        """Give the guest what has come, as far as it has buffers for it."""
        if not self.listens or not self._settled(self.receive_queue):
            self._unwatch_source()
            return
        for _ in range(MOST_AT_ONCE):
            if not self._inward.waiting and not self._read():
                return
            buffer = self._device.take(self.receive_queue)
            if buffer is None:
                # What is to come stays where it is until there are buffers.
                self._unwatch_source()
                return
            self._inward.give(buffer)
        self._watches.call_soon(self.receive)

    def _read(self) -> bool:
        """Have more input; False: there is none for now."""
        source = self._end.source
        if source is None:
            return False
        try:
            more = self._inward.take_in(source.fileno())
        except OSError as error:
            self._gone(f"its input: {error.strerror}")
            return False
        if not more:
            self._gone(None)
            return False
        self._watches.watch(source, self.receive)
        return self._inward.waiting

    # The other end.

    def _look_out(self) -> None:
        """For whoever may come, and for what may come of it."""
        listener = self._end.listener
        if listener is not None:
            self._watches.watch(listener, self._accept)
        elif self._end.source is not None:
            self._watches.watch(self._end.source, self.receive)
            if self._end.hangup is not None:
                self._watches.watch(self._end.hangup, self._hung_up)

    def _accept(self) -> None:
        listener = self._end.listener
        if listener is not None and self._end.accept():
            self._watches.unwatch(listener)
            self._look_out()
            self._changed()
            self.receive()

    def _hung_up(self) -> None:
        """The client has gone, which nobody else notices while the guest does not read."""
        source = self._end.source
        if source is None or inside(source.fileno()) or self._inward.half_way:
            # What it has sent waits for the guest, and its end behind that.
            self._watches.unwatch(self._end.hangup)
        else:
            self._gone(None)

    def _gone(self, why: str | None) -> None:
        """Its end, or (with a reason) what it did not want."""
        if why is not None:
            self._device.log.info("port %d: %s", self.number, why)
        for file in (self._end.source, self._end.sink, self._end.hangup):
            self._watches.unwatch(file)
        if why is None:
            self._end.end_input()
        else:
            self._end.end_input()
            self._end.disconnect()
        if self._end.sink is None:
            self._outward.discard()
            self._patience.renew()
        self._look_out()
        self._changed()
        self.transmit()

    def _unwatch_source(self) -> None:
        self._watches.unwatch(self._end.source)
