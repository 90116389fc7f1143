"""What a device wants to be called at a time, or as soon as possible, also from other threads."""

from __future__ import annotations

import heapq
import os
import time
from collections import deque
from collections.abc import Callable

from vuproc.fd import Fd

TIDY_FROM = 64
"""Timers from which on it is looked for cancelled ones."""

Run = Callable[[Callable[[], None]], None]
"""Calls the device's code, whatever that raises."""


class Timer:
    """A call that is to come, once or again and again. Made by `Device.call_later`."""

    def __init__(
        self, at: float, number: int, callback: Callable[[], None], period: float | None
    ) -> None:
        self.at = at
        self.number = number
        self.callback = callback
        self.period = period
        self._cancelled = False

    def cancel(self) -> None:
        """Do not call any more; nothing happens if it was called, or cancelled, already."""
        self._cancelled = True

    @property
    def active(self) -> bool:
        """Whether a call is to come."""
        return not self._cancelled

    def __lt__(self, other: Timer) -> bool:
        return (self.at, self.number) < (other.at, other.number)


class Timers:
    """The timers of one worker, soonest first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heap: list[Timer] = []
        self._made = 0
        self._tidy_at = TIDY_FROM

    def __len__(self) -> int:
        """The timers that are kept, some of which may have been cancelled."""
        return len(self._heap)

    def add(self, seconds: float, callback: Callable[[], None], *, again: bool) -> Timer:
        """Call back in so many seconds; `again`: and each time so many seconds later.

        Raises ValueError if that is no time, or a period of none.
        """
        if not 0 <= seconds < float("inf") or (again and seconds == 0):
            raise ValueError(f"{seconds} seconds")
        if len(self._heap) >= self._tidy_at:
            self._tidy()
        self._made += 1
        period = seconds if again else None
        timer = Timer(self._clock() + seconds, self._made, callback, period)
        heapq.heappush(self._heap, timer)
        return timer

    def _tidy(self) -> None:
        """Forget the cancelled ones: a device may make and cancel a timeout for each request."""
        self._heap = [timer for timer in self._heap if timer.active]
        heapq.heapify(self._heap)
        self._tidy_at = max(TIDY_FROM, 2 * len(self._heap))

    def due(self) -> float | None:
        """Seconds until the next call, or None if there is none to come."""
        while self._heap and not self._heap[0].active:
            heapq.heappop(self._heap)
        return max(0.0, self._heap[0].at - self._clock()) if self._heap else None

    def run(self, call: Run) -> None:
        """Make the calls that are due now. One that is late by periods is called once for them."""
        now = self._clock()
        ready: list[Timer] = []
        while self._heap and self._heap[0].at <= now:
            ready.append(heapq.heappop(self._heap))
        for timer in ready:
            if not timer.active:
                continue
            if timer.period is None:
                timer.cancel()
            else:
                missed = int((now - timer.at) / timer.period)
                timer.at += (missed + 1) * timer.period
                heapq.heappush(self._heap, timer)
            call(timer.callback)


class Soon:
    """Calls for the next turn of the loop; `add` may be called by any thread.

    `fileno` is readable while there are some.
    """

    def __init__(self) -> None:
        self._event = Fd(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        self._calls: deque[Callable[[], None]] = deque()

    def fileno(self) -> int:
        """The eventfd."""
        return self._event.fileno()

    def add(self, callback: Callable[[], None]) -> None:
        """Have the loop's thread call this."""
        self._calls.append(callback)
        os.eventfd_write(self._event.fileno(), 1)

    def run(self, call: Run) -> None:
        """Make the calls that there are by now."""
        try:
            os.eventfd_read(self._event.fileno())
        except BlockingIOError:
            pass
        for _ in range(len(self._calls)):
            call(self._calls.popleft())

    def close(self) -> None:
        """Close the eventfd."""
        self._event.close()
