"""Descriptors by number and name: what was inherited, what a program is given by execve(2)."""

import array
import fcntl
import os
import socket

MAX_STORED = 4096
"""Descriptors that are kept, as many as a master takes over."""
FDS_A_MESSAGE = 253
"""The kernel's SCM_MAX_FD."""
FIRST_FD = 3
"""Where a master's descriptors begin (SD_LISTEN_FDS_START)."""

Stored = list[tuple[str, int]]
"""Names and numbers; several descriptors may share a name."""


class Store:
    """Descriptors under their names, at most so many."""

    def __init__(self, entries: Stored, most: int) -> None:
        self.entries = entries
        self.most = most

    def keep(self, name: str, numbers: list[int]) -> bool:
        """Keep these, which are ours from now on; False if that would be too many."""
        if len(self.entries) + len(numbers) > self.most:
            return False
        self.entries += [(name, number) for number in numbers]
        return True

    def drop(self, name: str, *, prefix: bool = False) -> bool:
        """Close what is kept under the name, or under every name that begins so."""
        dropped = [
            entry
            for entry in self.entries
            if entry[0] == name or (prefix and entry[0].startswith(name))
        ]
        self.entries = [entry for entry in self.entries if entry not in dropped]
        close_all([number for _, number in dropped])
        return bool(dropped)

    def clear(self) -> None:
        """Close all."""
        close_all([number for _, number in self.entries])
        self.entries.clear()


def become(command: list[str], stored: Stored, environ: dict[str, str]) -> None:
    """Replace this process by `command`, with the descriptors from 3 on and their names announced.

    Raises OSError if that cannot be done, and then this process's descriptors may be mixed up.
    """
    arrange([number for _, number in stored])
    for key in ("LISTEN_PIDFDID", "LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_PID"):
        environ.pop(key, None)
    if "WATCHDOG_USEC" in environ:
        environ["WATCHDOG_PID"] = str(os.getpid())
    if stored:
        environ["LISTEN_PID"] = str(os.getpid())
        environ["LISTEN_FDS"] = str(len(stored))
        environ["LISTEN_FDNAMES"] = ":".join(name for name, _ in stored)
    os.execvpe(command[0], command, environ)


def arrange(numbers: list[int]) -> None:
    """Move these descriptors to the numbers from FIRST_FD on, in their order, for execve(2).

    One number more than they have is enough for that. A number may be there several times.
    """
    left: dict[int, list[int]] = {}  # number: the places for which it is still wanted
    for place, number in enumerate(numbers, FIRST_FD):
        left.setdefault(number, []).append(place)
    for place in range(FIRST_FD, FIRST_FD + len(numbers)):
        number = numbers[place - FIRST_FD]
        left[number].remove(place)
        if number == place:
            os.set_inheritable(place, True)
            continue
        if left.get(place):  # out of the way
            moved = fcntl.fcntl(place, fcntl.F_DUPFD_CLOEXEC, place)
            left[moved] = left.pop(place)
            for later in left[moved]:
                numbers[later - FIRST_FD] = moved
        os.dup2(number, place, inheritable=True)
        if not left[number] and number > place:
            os.close(number)


def hand_over(channel: socket.socket, stored: Stored) -> None:
    """Send descriptors with their names; each message says how many come after it. Raises OSError.

    `vuproc/handover/standby_master.py` takes them.
    """
    for begin in range(0, max(1, len(stored)), FDS_A_MESSAGE):
        part = stored[begin : begin + FDS_A_MESSAGE]
        left = max(0, len(stored) - begin - FDS_A_MESSAGE)
        text = ":".join([str(left), *(name for name, _ in part)])
        numbers = array.array("i", [number for _, number in part])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if part else []
        channel.sendmsg([text.encode()], rights, socket.MSG_NOSIGNAL)


def inherited() -> Stored:
    """What we were started with ourselves, by socket activation: it goes to every master."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal() or int(count) > MAX_STORED:
        return []
    numbers = range(FIRST_FD, FIRST_FD + int(count))
    for number in numbers:
        os.set_inheritable(number, False)
    names += ["unknown"] * (len(numbers) - len(names))
    return list(zip([name or "unknown" for name in names], numbers, strict=False))


def close_all(numbers: list[int]) -> None:
    """Close what is open of these."""
    for number in numbers:
        try:
            os.close(number)
        except OSError:
            pass


def open_closed() -> None:
    """Let /dev/null be standard input, output and error where one of them is closed.

    Their numbers would be given to files of ours, and masters would print into those.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
