"""Processes of the keeper's: how they begin, are tied to it, and end."""

import ctypes
import os
import signal
from collections.abc import Container, Sequence

from .descriptors import Stored, become
from .error_output import ErrorOutput

PREFIX = "vuproc keeper: "
"""What each line of ours begins with."""
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
"""The signals that a master gets from us."""
OF_THE_SERVICE = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
    "VUPROC_KEEPER",
)
"""What a service manager, or a keeper, says to its service, and to none of that one's children."""
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Looked up before there are forks, each of which would.
_prctl_of_libc = ctypes.CDLL(None).prctl


def adopt_orphans() -> None:
    """Become the parent of what a dead child leaves behind."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent(number: int) -> None:
    """Have the kernel send this process a signal when its parent has ended."""
    _prctl(_PR_SET_PDEATHSIG, number)


def started(
    command: list[str],
    stored: Stored,
    environ: dict[str, str],
    *,
    at_our_end: int,
    ignoring: Sequence[signal.Signals] = (),
    group: bool = False,
) -> int:
    """Start a command with these descriptors; its process id. Raises OSError for no process.

    It is born with the signals of PASSED_ON blocked, and execve(2) keeps them so: what comes early
    waits. `at_our_end` is the signal that it gets then: it must not outlive us unkept. `group`: it
    leads a process group of its own.
    """
    keeper = os.getpid()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    try:
        pid = os.fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return pid
    try:
        if group:
            os.setpgid(0, 0)
        # We are single-threaded, so this is about our end alone.
        end_with_parent(at_our_end)
        for number in ignoring:
            signal.signal(number, signal.SIG_IGN)
        if os.getppid() == keeper:
            become(command, stored, environ)
    except BaseException as error:
        # Not through a descriptor of before: they may be mixed up.
        ErrorOutput(PREFIX).write(f"{PREFIX}cannot start {command[0]}: {error}")
    finally:
        os._exit(127)


def kill_children(spared: Container[int]) -> bool:
    """SIGKILL every child but those; whether there are any, zombies among them.

    They are what a dead master has left: those that it had started are ours now.
    """
    found = [child for child in children() if child not in spared]
    for child in found:
        try:
            os.kill(child, signal.SIGKILL)
        except PermissionError:
            pass  # a program of the device's that has become another user's
    return bool(found)


def children() -> list[int]:
    """Those of this process, zombies among them; none on a kernel without that list: workers end by
    themselves, and are fenced.
    """
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def described(code: int) -> str:
    """How a process has ended, by its exit code, or minus the number of a signal."""
    try:
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    except ValueError:  # a real-time one, which has no name
        return f"killed by signal {-code}"


def _prctl(option: int, value: int) -> None:
    # Both options are older than any kernel that Python 3.11 runs on.
    _prctl_of_libc(option, value, 0, 0, 0)
