"""What this process would leave to its successor: named descriptors, in a store that outlives it.

The names:

    listener, lock       the listening socket, and the lock beside it
    admin, admin-lock    the same of the admin socket
    metrics, ...-lock    the same of the one for metrics; a TCP socket has no lock
    trace                the last requests of each queue, if they are traced
    device-file          what the device file says that is in force, in a memfd: a successor goes on
                         with that and not with what is edited meanwhile
    counters.N           the segment of the counters; of two, the one with the greater number counts
    shared.NAME          a file of the device's, such as the memory of a disk in memory
    session.connection   the front-end's socket; the other names under session. are the checkpoint's
    worker.PID           the pidfd of a worker, by which a successor makes sure of its end
    channel.PID.QUEUES   a worker's control channel, only from a master that becomes its successor
                         itself: in the store it would keep the workers of a dead master going

Anything else that we are given is from socket activation.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping

from vuproc.fd import Fd, HasFileno
from vuproc.handover.sd_notify import Notifier

log = logging.getLogger("vuproc.master")

LISTENER = "listener"
LOCK = "lock"
ADMIN = "admin"
ADMIN_LOCK = "admin-lock"
DEVICE_FILE = "device-file"
SHARED = "shared."
COUNTERS = "counters."
TRACE = "trace"
SESSION = "session."
WORKER = "worker."
CHANNEL = "channel."

METRICS = "metrics"
METRICS_LOCK = "metrics-lock"

_OURS = (
    LISTENER,
    LOCK,
    ADMIN,
    DEVICE_FILE,
    SHARED,
    COUNTERS,
    TRACE,
    METRICS,
    SESSION,
    WORKER,
    CHANNEL,
)

WATCHDOG_SHARE = 3
"""Signs of life within one watchdog interval."""


class FdStore:
    """The descriptors that we have inherited from our predecessor, and those that we leave.

    As a chore of the master's loop it gives signs of life, and has the pidfds of workers forgotten
    that have gone.
    """

    def __init__(self, notifier: Notifier, inherited: Mapping[str, tuple[Fd, ...]]) -> None:
        self.notifier = notifier
        self._inherited = {name: list(fds) for name, fds in inherited.items()}
        self._found = {name: _inode(fds[0]) for name, fds in inherited.items() if len(fds) == 1}
        self._kept: dict[str, HasFileno] = {}
        self._contents: set[str] = set()
        self._workers: set[str] = set()
        self._gone: set[str] = set()
        self._alive_at = 0.0
        self._ending = False
        self.succeeds = bool(inherited)
        """Whether we have inherited anything from a predecessor."""
        self._may_be_succeeded = self.succeeds

    @property
    def has_successor(self) -> bool:
        """Whether another of us would be started, and inherit something."""
        return self.notifier.active and self._may_be_succeeded

    def ready(self, *, standby: bool = True) -> None:
        """We are up: from now on there is something to go on with.

        `standby`: the keeper is to have a master in waiting, of the program that we are.
        """
        self._may_be_succeeded = True
        self.notifier.ready()
        self.notifier.standby("1" if standby else "0")

    # What we have inherited.

    def names(self, prefix: str) -> list[str]:
        """The names that begin with `prefix` of what was inherited and not taken yet."""
        return sorted(name for name in self._inherited if name.startswith(prefix))

    def take(self, name: str) -> Fd | None:
        """Take over what was inherited under a name; None if there is nothing, or more than one."""
        fds = self._inherited.pop(name, [])
        if len(fds) == 1:
            return fds[0]
        if fds:
            _close(fds)
            self.notifier.remove(name)
        return None

    def take_all(self, prefix: str) -> list[tuple[str, Fd]]:
        """Take over everything that was inherited under names that begin so."""
        return [(name, fd) for name in self.names(prefix) for fd in self._inherited.pop(name)]

    def given(self) -> Fd | None:
        """The socket that we were started with by socket activation."""
        foreign = [name for name in self._inherited if not name.startswith(_OURS)]
        for name in foreign[1:]:
            log.warning("descriptor %s from the service manager is of no use", name)
            self.forget(name)
        return self.take(foreign[0]) if foreign else None

    def discard(self, name: str, fd: Fd) -> None:
        """Close what was taken over under a name, and have it forgotten."""
        fd.close()
        self._found.pop(name, None)
        self.notifier.remove(name)

    def forget(self, prefix: str) -> None:
        """Close what is left under names that begin so, here and in the store."""
        for name in self.names(prefix):
            _close(self._inherited.pop(name))
            self.notifier.remove(name)

    # What we leave.

    def keep(self, name: str, fd: HasFileno) -> None:
        """Have a descriptor kept, which its owner has open, in place of what is stored so."""
        self._kept[name] = fd
        found = self._found.pop(name, None)
        if found == _inode(fd):
            return  # it is in the store, and a death between removal and store would lose it
        if found is not None:
            self.notifier.remove(name)
        self.notifier.store(name, fd)

    def drop(self, name: str) -> None:
        """Have a descriptor forgotten that is kept."""
        if self._kept.pop(name, None) is not None:
            self.notifier.remove(name)

    def keep_content(self, name: str, content: bytes) -> None:
        """Have bytes kept in place of what is stored so, for a successor after a death alone."""
        self.forget_content(name)
        self._contents.add(name)
        with Fd(os.memfd_create(f"vuproc-{name}", os.MFD_CLOEXEC)) as fd:
            with open(fd.dup().take(), "wb") as file:
                file.write(content)
            self.notifier.store(name, fd)

    def forget_content(self, name: str) -> None:
        """Have bytes forgotten that are kept, by us or by our predecessor."""
        _close(self._inherited.pop(name, []))
        self._contents.discard(name)
        self.notifier.remove(name)

    def give_on(self, name: str, fd: HasFileno) -> None:
        """A descriptor that is for a handover only: a service manager has it by itself."""
        self._kept[name] = fd

    def keep_worker(self, pid: int, pidfd: Fd) -> None:
        """Have a worker's pidfd kept until the worker has gone; before it gets anything to do."""
        name = f"{WORKER}{pid}"
        self._gone.discard(name)
        self._workers.add(name)
        self.notifier.store(name, pidfd)

    def worker_gone(self, pid: int) -> None:
        """A worker has gone whose pidfd is kept: `tend` has it forgotten."""
        self._gone.add(f"{WORKER}{pid}")

    def held(self) -> dict[str, HasFileno]:
        """All that is kept but for the checkpoint's and the workers', for a handover."""
        return dict(self._kept)

    # The chore.

    def due(self) -> float | None:
        """Seconds until the next sign of life."""
        if self.notifier.watchdog_s is None:
            return None
        return max(0.0, self._alive_at - time.monotonic())

    def tend(self) -> None:
        """Give a sign of life if it is time; see to the workers' pidfds."""
        now = time.monotonic()
        if self.notifier.watchdog_s is not None and now >= self._alive_at:
            self._alive_at = now + self.notifier.watchdog_s / WATCHDOG_SHARE
            self.notifier.watchdog()
        while self._gone:
            name = self._gone.pop()
            self._workers.discard(name)
            self.notifier.remove(name)

    def close(self) -> None:
        """Close what nobody took. What is in the store stays there."""
        for fds in self._inherited.values():
            _close(fds)
        self._inherited.clear()

    def end(self) -> None:
        """We begin to end in order: what is kept of the session goes with us."""
        self._ending = True

    @property
    def goes_with_us(self) -> bool:
        """Whether all that is kept is forgotten at our end, without a word of ours.

        Our keeper does so. It is not told of each: of more messages than wait in its socket (ten of
        a device, net.unix.max_dgram_qlen) the rest would wait for one keeper to read those of many
        devices, if they all end at once.
        """
        return self._ending and self.notifier.keeper is not None

    def clear(self) -> None:
        """We end in order: there is to be no successor, and nothing for it in the store."""
        self.end()
        self.notifier.stopping()
        if not self.goes_with_us:
            for name in [*self._kept, *self._contents, *self._workers]:
                self.notifier.remove(name)
        self._kept.clear()
        self._contents.clear()
        self._workers.clear()


def content_of(inherited: Mapping[str, tuple[Fd, ...]], name: str) -> bytes:
    """What is in the file that was inherited under a name; b"" if there is none, or more than one.
    Nothing is taken over.
    """
    fds = inherited.get(name, ())
    if len(fds) != 1:
        return b""
    return os.pread(fds[0].fileno(), fds[0].size, 0)


def _inode(fd: HasFileno) -> tuple[int, int]:
    status = os.fstat(fd.fileno())
    return status.st_dev, status.st_ino


def _close(fds: Iterable[Fd]) -> None:
    for fd in fds:
        fd.close()
