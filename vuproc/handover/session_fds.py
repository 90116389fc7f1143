"""What the service manager keeps of ours: a name for each open file, in step with the state file.

The order makes a death at any instant harmless: descriptors are stored before the state file speaks
of them and removed after it has ceased to. What is stored beyond the state file's word, the
successor removes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

from msgspec import Struct, field

from vuproc.fd import Fd
from vuproc.handover.sd_notify import Notifier
from vuproc.vhost_user.fd_uses import FdUses


class _Stored(Struct):
    """A file in the store: what tells it from others, and its descriptors that are in use."""

    file: Hashable
    fds: dict[Fd, None] = field(default_factory=dict)


class SessionFds:
    """Names the open files of one purpose, and has the service manager keep them.

    systemd keeps no second copy of an open file, under whatever name, and a front-end may send the
    same memory or the same eventfd several times. So a name stands for a file here and not for a
    descriptor. What is to be kept has parts, each of which uses some of them.
    """

    def __init__(self, notifier: Notifier, prefix: str, stored: Iterable[str] = ()) -> None:
        """`prefix` begins every name; `stored` are names that a predecessor left in the store."""
        self._notifier = notifier
        self._prefix = prefix
        self._names: dict[Hashable, str] = {}
        self._stored: dict[str, _Stored] = {}
        self._unused: set[str] = set()
        self._uses = FdUses()
        numbers = (name[len(prefix) :] for name in stored if name.startswith(prefix))
        self._serial = max((int(n) for n in numbers if n.isascii() and n.isdecimal()), default=0)

    def keep(self, fds: Iterable[Fd]) -> tuple[str, ...]:
        """Have each of these kept from now on; the name for each, in their order. What no part uses
        is kept until `remove_unused`.
        """
        return tuple(self._keep(fd) for fd in fds)

    def adopt(self, name: str, fd: Fd) -> None:
        """`fd` is in the store under `name` already: a predecessor put it there."""
        self._names[fd.file] = name
        self._stored[name] = _Stored(fd.file)
        self._unused.add(name)

    def use(self, parts: Mapping[int, Iterable[Fd]]) -> None:
        """The parts of these numbers use these from now on, and nothing else; all are kept."""
        uses = {number: tuple(fds) for number, fds in parts.items()}
        for fds in uses.values():
            for fd in fds:
                name = self._names[fd.file]
                self._stored[name].fds[fd] = None
                self._unused.discard(name)
        for fd in self._uses.change(uses):
            name = self._names[fd.file]
            del self._stored[name].fds[fd]
            if not self._stored[name].fds:
                self._unused.add(name)

    def remove_unused(self) -> None:
        """Have everything forgotten that no part uses."""
        for name in sorted(self._unused):
            del self._names[self._stored.pop(name).file]
            self._notifier.remove(name)
        self._unused.clear()

    def remove_all(self) -> None:
        """Have everything forgotten."""
        self._unused.update(self._stored)
        self.remove_unused()
        self._uses = FdUses()

    def held(self) -> Mapping[str, Fd]:
        """One descriptor for each name, as long as its owner has it open."""
        found: dict[str, Fd] = {}
        for name, stored in self._stored.items():
            fd = next((fd for fd in stored.fds if not fd.closed), None)
            if fd is not None:
                found[name] = fd
        return found

    def _keep(self, fd: Fd) -> str:
        name = self._names.get(fd.file)
        if name is None:
            self._serial += 1
            name = self._names[fd.file] = f"{self._prefix}{self._serial}"
            self._notifier.store(name, fd)
            self._stored[name] = _Stored(fd.file)
            self._unused.add(name)
        return name
