"""What the service manager keeps of ours: a name for each open file, in step with the journal.

The order makes a death at any instant harmless: descriptors are stored before the journal speaks of
them and removed after it has ceased to. What is stored beyond the journal's word, the successor
removes.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping

from vuproc.fd import Fd, FdKind
from vuproc.systemd import Notifier

Key = tuple[object, ...]


class FdStore:
    """Names the open files of one purpose, and has the service manager keep them.

    systemd keeps no second copy of an open file, under whatever name, and a front-end may send the
    same memory or the same eventfd several times. So a name stands for a file here and not for a
    descriptor.
    """

    def __init__(self, notifier: Notifier, prefix: str, stored: Iterable[str] = ()) -> None:
        """`prefix` begins every name; `stored` are names that a predecessor left in the store."""
        self._notifier = notifier
        self._prefix = prefix
        self._names: dict[Key, str] = {}
        self._fds: dict[str, Fd] = {}
        numbers = (name[len(prefix) :] for name in stored if name.startswith(prefix))
        self._serial = max((int(n) for n in numbers if n.isascii() and n.isdecimal()), default=0)

    def keep(self, fds: Iterable[Fd]) -> tuple[str, ...]:
        """Have each of these kept from now on; the name for each, in their order."""
        return tuple(self._keep(fd) for fd in fds)

    def adopt(self, name: str, fd: Fd) -> None:
        """`fd` is in the store under `name` already: a predecessor put it there."""
        self._names[identity(fd)] = name
        self._fds[name] = fd

    def remove_others(self, names: Collection[str]) -> None:
        """Have everything else forgotten."""
        gone = {name for name in self._fds if name not in names}
        self._names = {key: name for key, name in self._names.items() if name not in gone}
        for name in sorted(gone):
            del self._fds[name]
            self._notifier.remove(name)

    def held(self) -> Mapping[str, Fd]:
        """One descriptor for each name, as long as its owner has it open."""
        return {name: fd for name, fd in self._fds.items() if not fd.closed}

    def _keep(self, fd: Fd) -> str:
        key = identity(fd)
        name = self._names.get(key)
        if name is None:
            self._serial += 1
            name = self._names[key] = f"{self._prefix}{self._serial}"
            self._notifier.store(name, fd)
            self._fds[name] = fd
        elif self._fds[name].closed:
            # Another descriptor of the same file is the one that is left.
            self._fds[name] = fd
        return name


def identity(fd: Fd) -> Key:
    """Equal for descriptors of the same open file, as far as that makes a difference to us.

    Files, pipes and sockets are told by their inode; two openings of the same file may count as
    one, for nothing of ours depends on a file's position. All eventfds share an inode.
    """
    if fd.kind is FdKind.OTHER:
        return ("other", fd)
    if fd.kind is FdKind.EVENTFD:
        with open(f"/proc/self/fdinfo/{fd.fileno()}", encoding="ascii") as info:
            for line in info:
                if line.startswith("eventfd-id:"):
                    return ("eventfd", int(line.split()[1]))
        return ("eventfd", fd)
    status = os.fstat(fd.fileno())
    return (fd.kind, status.st_dev, status.st_ino, fd.readable, fd.writable)
