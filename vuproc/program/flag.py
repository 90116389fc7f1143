"""What is set once, for ever, and can be waited for without a lock."""

from __future__ import annotations

import contextlib
import os
import select
import time

from vuproc.fd import Fd

LOOK_S = 1.0
"""Seconds of the longest wait in one piece."""


class Flag:
    """Set once, for ever; whoever waits for it may be a signal handler."""

    def __init__(self) -> None:
        self._file = Fd(os.eventfd(0, os.EFD_CLOEXEC))
        self.is_set = False

    def set(self) -> None:
        """Wake up everybody. Idempotent."""
        self.is_set = True
        with contextlib.suppress(ValueError):
            os.eventfd_write(self._file.fileno(), 1)

    @property
    def number(self) -> int | None:
        """The descriptor's, of no use once the flag is closed; None: it is."""
        with contextlib.suppress(ValueError):
            return self._file.fileno()
        return None

    def copy(self) -> Fd | None:
        """A descriptor, the caller's, which is readable once it is set; None: it is, or closed, or
        no descriptor is free.
        """
        with contextlib.suppress(ValueError, OSError):
            return None if self.is_set else self._file.dup()
        return None

    def close(self) -> None:
        """Nobody needs to wait for it any more."""
        self._file.close()


def wait_for(flags: tuple[Flag, ...], timeout: float | None) -> bool:
    """Wait until one of `flags` is set; False after `timeout` seconds."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while not any(flag.is_set for flag in flags):
        left = LOOK_S if deadline is None else min(LOOK_S, deadline - time.monotonic())
        if left <= 0:
            return False
        poller = select.poll()
        # No copies, for which a descriptor may be lacking. A flag is set before it is closed, and
        # a number that is another file's by then costs no more than `LOOK_S`.
        for number in [flag.number for flag in flags]:
            if number is not None:
                poller.register(number, select.POLLIN)
        if any(flag.is_set for flag in flags):
            break
        poller.poll(left * 1000)
    return True
