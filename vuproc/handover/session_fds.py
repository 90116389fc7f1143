"""What the service manager keeps of ours: a name for each open file, in step with the state file.

The order makes a death at any instant harmless: descriptors are stored before the state file speaks
of them and removed after it has ceased to. What is stored beyond the state file's word, the
successor removes.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping

from vuproc.fd import Fd
from vuproc.handover.sd_notify import Notifier


class SessionFds:
    """Names the open files of one purpose, and has the service manager keep them.

    systemd keeps no second copy of an open file, under whatever name, and a front-end may send the
    same memory or the same eventfd several times. So a name stands for a file here and not for a
    descriptor.
    """

    def __init__(self, notifier: Notifier, prefix: str, stored: Iterable[str] = ()) -> None:
        """`prefix` begins every name; `stored` are names that a predecessor left in the store."""
        self._notifier = notifier
        self._prefix = prefix
        self._names: dict[Hashable, str] = {}
        self._fds: dict[str, Fd] = {}
        numbers = (name[len(prefix) :] for name in stored if name.startswith(prefix))
        self._serial = max((int(n) for n in numbers if n.isascii() and n.isdecimal()), default=0)

    def keep(self, fds: Iterable[Fd]) -> tuple[str, ...]:
        """Have each of these kept from now on; the name for each, in their order."""
        return tuple(self._keep(fd) for fd in fds)

    def adopt(self, name: str, fd: Fd) -> None:
        """`fd` is in the store under `name` already: a predecessor put it there."""
        self._names[fd.file] = name
        self._fds[name] = fd

    def remove_others(self, names: Collection[str]) -> None:
        """Have everything else forgotten."""
        gone = self._fds.keys() - set(names)
        if not gone:
            return
        self._names = {key: name for key, name in self._names.items() if name not in gone}
        for name in sorted(gone):
            del self._fds[name]
            self._notifier.remove(name)

    def held(self) -> Mapping[str, Fd]:
        """One descriptor for each name, as long as its owner has it open."""
        return {name: fd for name, fd in self._fds.items() if not fd.closed}

    def _keep(self, fd: Fd) -> str:
        key = fd.file
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
