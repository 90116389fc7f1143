"""What the workers of a device share for its limits: a memfd, as long as these stay the same."""

from __future__ import annotations

import os

from vuproc.fd import Fd
from vuproc.options import Limits, Options
from vuproc.workers.throttle import words


class LimitsFile:
    """Owns the file. Full buckets are zeros, so a new one is a new beginning."""

    def __init__(self) -> None:
        self._file: Fd | None = None
        self._limits: tuple[Limits | None, Limits | None] = None, None

    def of(self, options: Options, num_queues: int) -> Fd | None:
        """The file, which stays ours; None without limits. Raises OSError.

        Other limits have another file: what was owed by the old ones is not to be waited for.
        """
        limits = options.limits, options.queue_limits
        if limits != self._limits:
            self.close()
            if any(limits):
                self._file = _made(words(num_queues))
            self._limits = limits
        return self._file

    def close(self) -> None:
        """Close it; workers have it mapped."""
        file, self._file = self._file, None
        self._limits = None, None
        if file is not None:
            file.close()


def _made(size: int) -> Fd:
    file = Fd(os.memfd_create("vuproc-limits", os.MFD_CLOEXEC))
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except BaseException:
        file.close()
        raise
    return file
