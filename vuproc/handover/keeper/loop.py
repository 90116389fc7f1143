"""What the loop of a keeper waits for beside its masters' messages: signals, and dead children."""

import os
import resource
import signal
from collections.abc import Callable

from .descriptors import MAX_STORED
from .inbox import MAX_FDS
from .processes import PASSED_ON, adopt_orphans


class Wake:
    """Signals as something to poll for; whose parent we become beside our children's."""

    def __init__(self, files: int = MAX_STORED + MAX_FDS + 64) -> None:
        """`files`: descriptors that may be open at a time."""
        adopt_orphans()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < files:
            most = files if hard == resource.RLIM_INFINITY else min(files, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        self._read, written = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        for number in (*PASSED_ON, signal.SIGCHLD):
            signal.signal(number, lambda _number, _frame: None)
        # Whoever has started us may have had them wait until now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)

    def fileno(self) -> int:
        """Readable once a signal has come."""
        return self._read

    def take(self) -> list[int]:
        """The signals of PASSED_ON that have come, oldest first."""
        try:
            return [number for number in os.read(self._read, 64) if number in PASSED_ON]
        except BlockingIOError:
            return []


def reap(hear: Callable[[int], None], ended: Callable[[int, int], None]) -> None:
    """Take note of every child that has ended, and of orphans of theirs.

    `hear` comes before the child is reaped: its last words are in a queue still, and with its
    number they can be told from a stranger's.
    """
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None:
            return
        hear(found.si_pid)
        _, status = os.waitpid(found.si_pid, 0)
        ended(found.si_pid, os.waitstatus_to_exitcode(status))


def ignore_end() -> None:
    """The end that these signals ask for has come."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def milliseconds(waits: list[float]) -> float | None:
    """For poll(2): the least of so many seconds, and a bit; None for ever."""
    return max(0.0, min(waits)) * 1000 + 1 if waits else None
