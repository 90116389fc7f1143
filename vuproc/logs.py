"""The log: one line an event on standard error, and no more of one kind than are worth reading."""

from __future__ import annotations

import logging
import sys
import time

BURST = 20
"""Lines from one place in the code that are printed within `PERIOD_S` seconds."""
PERIOD_S = 5.0


class RateLimit(logging.Filter):
    """Lets `BURST` records from one line of code through each `PERIOD_S`, then says how many it
    held back.

    A hostile front-end or driver decides how often a line is logged, so every line is limited.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG:
            return True  # whoever asks for these wants all of them
        where = (record.pathname, record.lineno)
        now = time.monotonic()
        begun, count = self._seen.get(where, (now, 0))
        if now - begun > PERIOD_S:
            if count > BURST:
                record.msg = f"{record.getMessage()} ({count - BURST} more like it were not shown)"
                record.args = ()
            begun, count = now, 0
        self._seen[where] = (begun, count + 1)
        return count < BURST


def set_up(level: int, name: str) -> None:
    """Send the log of all of vuproc to standard error, each line starting with `name`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"vuproc {name}: %(levelname)s: %(message)s"))
    handler.addFilter(RateLimit())
    logger = logging.getLogger("vuproc")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
