"""A device that waits for the clock, and for threads of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from vuproc import Device, Request
from vuproc.device import Timer


class Clockwork(Device):
    """Does what the request says, later, and finishes it then."""

    device_id = 42

    def setup(self, queue: int) -> None:
        self.ticks = 0
        self.ticking: Timer | None = None
        self.main = threading.get_ident()

    def handle(self, request: Request) -> None:
        word, _, rest = request.read().partition(b" ")
        match word:
            case b"later":
                request.defer()
                began = time.monotonic()
                self.call_later(float(rest), lambda: self.answer(request, began))
            case b"thread":
                request.defer()
                threading.Thread(target=self.work, args=(request, int(rest))).start()
            case b"every":
                request.defer()
                self.ticks = 0
                self.every(request, float(rest))
            case b"cancel":
                request.write(str(self.cancelled()).encode())
            case b"raise":
                self.call_later(0.0, self.fault)
                self.call_soon(self.fault)
                self.faults = self.call_every(0.01, self.fault)
            case b"calm":
                self.faults.cancel()
            case b"wrong":
                request.write(self.refused(float(rest)))

    def answer(self, request: Request, began: float) -> None:
        request.write(b"%d" % round((time.monotonic() - began) * 1e6))
        request.finish()

    def work(self, request: Request, count: int) -> None:
        """In a thread: all that it may do is to have the worker's own called."""
        for _ in range(count):
            self.call_soon(self.tick)
        self.call_soon(lambda: self.done(request))

    def tick(self) -> None:
        assert threading.get_ident() == self.main
        self.ticks += 1

    def done(self, request: Request) -> None:
        request.write(b"%d" % self.ticks)
        request.finish()

    def every(self, request: Request, seconds: float) -> None:
        began = time.monotonic()

        def tick() -> None:
            self.ticks += 1
            if self.ticks == 5:
                timer.cancel()
                assert not timer.active
                self.answer(request, began)

        timer = self.call_every(seconds, tick)

    def cancelled(self) -> bool:
        """Whether one that was cancelled is not active, and one that was not is."""
        timers = [self.call_later(60.0, self.tick), self.call_every(60.0, self.tick)]
        active = [timer.active for timer in timers]
        for timer in timers:
            timer.cancel()
        return active == [True, True] and not any(timer.active for timer in timers)

    def fault(self) -> None:
        raise LookupError("on demand")

    def refused(self, seconds: float) -> bytes:
        calls: list[Callable[..., Timer]] = [self.call_later, self.call_every]
        for call in calls:
            try:
                call(seconds, self.tick)
            except ValueError:
                continue
            return b"taken"
        return b"refused"
