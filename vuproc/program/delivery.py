"""Events on their way to the program's `on_event`, whose code may take its time."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from vuproc.events import AnyEvent, EventsLost
from vuproc.program.flag import Flag

log = logging.getLogger("vuproc.daemon")

EVENTS_MOST = 4096
"""Events that wait for `on_event`; further ones are counted."""

OnEvent = Callable[[AnyEvent], None]


class Delivery:
    """Gives events to `on_event` in a thread of its own, one after the other, in their order."""

    def __init__(self, on_event: OnEvent | None) -> None:
        self.done = Flag()
        """Nothing more is to be delivered."""
        self._on_event = on_event
        self._events: queue.SimpleQueue[AnyEvent | None] = queue.SimpleQueue()
        self._lost = 0
        self._thread: threading.Thread | None = None
        if on_event is not None:
            self._thread = threading.Thread(target=self._run, name="vuproc-events", daemon=True)
            try:
                self._thread.start()
            except BaseException:
                self.done.close()
                raise

    @property
    def is_caller(self) -> bool:
        """Whether it is `on_event` that asks."""
        return threading.current_thread() is self._thread

    def put(self, event: AnyEvent) -> None:
        """Deliver an event, unless too many wait: then it is counted."""
        if self._on_event is None:
            return
        if self._events.qsize() >= EVENTS_MOST:
            self._lost += 1
            return
        self._tell_lost()
        self._events.put(event)

    def finish(self, last: AnyEvent | None) -> None:
        """Deliver the last event, if there is one, whatever waits."""
        if self._on_event is None:
            self._finish()
            return
        self._tell_lost()
        if last is not None:
            self._events.put(last)
        self._events.put(None)

    def _tell_lost(self) -> None:
        if self._lost:
            self._events.put(EventsLost(count=self._lost))
            self._lost = 0

    def _run(self) -> None:
        assert self._on_event is not None
        while (event := self._events.get()) is not None:
            try:
                self._on_event(event)
            except BaseException:
                log.exception("on_event raised at: %s", event)
        self._finish()

    def _finish(self) -> None:
        self.done.set()
        self.done.close()
