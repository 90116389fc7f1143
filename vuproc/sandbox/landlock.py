"""Landlock (landlock(7)): the files, TCP ports, signals and sockets that a process can reach.

What is open already stays usable. A file in memory, a pipe or a socket has no path, and is not
concerned.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from enum import IntFlag

from vuproc.fd import Fd
from vuproc.sandbox import kernel


class Access(IntFlag):
    """LANDLOCK_ACCESS_FS_*."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13  # ABI 2
    TRUNCATE = 1 << 14  # ABI 3
    IOCTL_DEV = 1 << 15  # ABI 5


# Numbers from here on: each worker would work out the names of combinations for itself.
_OF_FIRST = int(Access.REFER) - 1
_SINCE = {2: int(Access.REFER), 3: int(Access.TRUNCATE), 5: int(Access.IOCTL_DEV)}
_OF_A_FILE = int(
    Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
)
"""What a rule for anything but a folder can allow."""
READ = int(Access.READ_FILE | Access.READ_DIR)
WRITE = int(~(Access.EXECUTE | Access.IOCTL_DEV))
"""And read, and whatever else is done with files and folders."""
DEVICE = int(Access.READ_FILE | Access.WRITE_FILE | Access.IOCTL_DEV)

_TCP = 0b11
"""LANDLOCK_ACCESS_NET_BIND_TCP and _CONNECT_TCP."""
_TCP_ABI, _SCOPE_ABI = 4, 6
_ABSTRACT_SOCKETS, _SIGNALS = 1, 2
_FS_BYTES, _NET_BYTES, _SCOPE_BYTES = 8, 16, 24
"""Of struct landlock_ruleset_attr, by ABI."""


def abi() -> int:
    """The kernel's version of Landlock. Raises OSError if there is none."""
    return kernel.landlock_abi()


class Ruleset:
    """What will be allowed; `restrict` makes it so. `tcp` and `sockets` are not limited if True;
    `sockets` are abstract ones of others. Raises OSError where there is no Landlock.
    """

    def __init__(self, *, tcp: bool, sockets: bool) -> None:
        self.abi = abi()
        self._handled = _OF_FIRST
        for version, access in _SINCE.items():
            if self.abi >= version:
                self._handled |= access
        ports = 0 if tcp or self.abi < _TCP_ABI else _TCP
        scoped = 0 if self.abi < _SCOPE_ABI else _SIGNALS | (0 if sockets else _ABSTRACT_SOCKETS)
        size = _FS_BYTES
        if self.abi >= _TCP_ABI:
            size = _SCOPE_BYTES if self.abi >= _SCOPE_ABI else _NET_BYTES
        self._file = Fd(kernel.landlock_ruleset(self._handled, ports, scoped, size))

    def allow(self, paths: Iterable[str], access: int) -> list[str]:
        """Allow it at and beneath each of the paths; those that are not there, or not to be had."""
        return [path for path in paths if not self._allow(path, access)]

    def _allow(self, path: str, access: int) -> bool:
        try:
            with Fd(os.open(path, os.O_PATH | os.O_CLOEXEC)) as at:
                allowed = access & self._handled
                if not stat.S_ISDIR(os.fstat(at.fileno()).st_mode):
                    allowed &= _OF_A_FILE
                kernel.landlock_allow(self._file.fileno(), at.fileno(), allowed)
        except OSError:
            return False
        return True

    def restrict(self) -> None:
        """Bind this thread, and those that it starts, for good; there must be no new privileges."""
        kernel.landlock_restrict(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """Nothing is bound. Idempotent."""
        self._file.close()
