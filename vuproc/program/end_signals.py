"""The signals that end a daemon whose program does nothing else than serve it."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from vuproc.program.running import Running


class EndSignals:
    """SIGTERM and SIGINT of the main thread end a daemon that is served."""

    def __init__(self) -> None:
        self._running: Running | None = None
        self.came = 0
        """So many of them have come."""
        self._before: dict[signal.Signals, Any] = {}

    def tell(self, running: Running) -> None:
        """It is this one; what has come already is told."""
        self._running = running
        if self.came:
            running.ask_end()

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._caught)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self.came += 1
        running = self._running
        if running is not None and self.came == 1:
            running.ask_end()
        elif running is not None:
            running.urge()
