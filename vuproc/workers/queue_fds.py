"""The descriptors of one virtqueue, and what they have to do with the ring that there is or not."""

from __future__ import annotations

from abc import ABC, abstractmethod

from vuproc.fd import Fd
from vuproc.shm.counters import QueueCounters
from vuproc.workers.poller import Watcher
from vuproc.workers.queue_uring import QueueUring
from vuproc.workers.ring_fds import KickGone, RingFds
from vuproc.workers.rings import AnyRing
from vuproc.workers.unshared import UnsharedMemory


class QueueFds(ABC):
    """Kick, call and error descriptor of virtqueue `index`, and whether its ring may run."""

    def __init__(self, index: int, uring: QueueUring, counters: QueueCounters | None) -> None:
        self.index = index
        self.enabled = False
        self.ready = False
        """There may be work: drain before the next sleep."""
        self.unshared = UnsharedMemory(index)
        self._counters = counters
        self._ring: AnyRing | None = None
        self._uring = uring
        self._fds = RingFds()
        self._broken = False

    @abstractmethod
    def break_ring(self, cause: str) -> None:
        """Stop touching the ring for good, and tell front-end and master."""

    @property
    def broken(self) -> bool:
        """The ring is not touched any more."""
        return self._broken

    @property
    def active(self) -> bool:
        """The ring may be processed."""
        return self._ring is not None and self.enabled and not self._broken

    @property
    def polling(self) -> bool:
        """The ring has no kick descriptor, so somebody has to look at it."""
        return self.active and self._fds.kick is None

    @property
    def kick_number(self) -> int:
        """The kick descriptor's; -1: there is none."""
        return -1 if self._fds.kick is None else self._fds.kick.fileno()

    @property
    def completions(self) -> int:
        """Readable while io_uring has completed something; -1: there is no io_uring."""
        return self._uring.completions

    def set_enabled(self, enabled: bool) -> None:
        """Enable or hold the ring; enabling looks at the ring again, for kicks that came in
        between.
        """
        if enabled and not self.enabled:
            self.unshared.enable(kick_waits=self._fds.kick_waits())
        self.enabled = enabled
        self.ready = True

    def set_kick(self, fd: Fd | None) -> Fd | None:
        """Replace the kick descriptor and return the old one; what it may have carried is looked
        for in the ring.
        """
        old, self._fds.kick = self._fds.kick, fd
        self.ready = True
        return old

    def set_call(self, fd: Fd | None) -> None:
        """Replace the call descriptor; the new one is signalled at once, since the old one's last
        may be lost.
        """
        old, self._fds.call = self._fds.call, fd
        if self._ring is not None:
            self._ring.set_call(self._fds.call_number)
            if self.active:
                self._ring.notify_always()
        if old is not None:
            old.close()

    def set_err(self, fd: Fd | None) -> None:
        """Replace the error descriptor."""
        old, self._fds.err = self._fds.err, fd
        if self._broken:
            self._fds.signal_err()
        if old is not None:
            old.close()

    def watch_in(self, watcher: Watcher) -> None:
        """Have the loop wake up for kicks, and for what io_uring completes."""
        if self._uring.completions >= 0:
            # It only has to wake the loop, which publishes in every turn.
            watcher.add(self._uring.completions, lambda _mask: None)
        self._fds.watch_kick(watcher, self.take_kick, self.break_ring)

    def unwatch_in(self, watcher: Watcher) -> None:
        """The opposite."""
        if self._uring.completions >= 0:
            watcher.remove(self._uring.completions)
        self._fds.unwatch_kick(watcher)

    def take_kick(self) -> None:
        """Read the kick descriptor, which poll says is ready. Its end, or an error, breaks the
        ring.
        """
        if self._counters is not None:
            self._counters.count_kick()
        try:
            kicks = self._fds.read_kick()
        except KickGone as error:
            self.break_ring(str(error))
            return
        if kicks and self._ring is not None:
            self.ready = True
            # As long as nothing was fetched it is 0, but for a packed ring's wrap counter.
            self.unshared.kicked(kicks, self._ring.next_avail & 0x7FFF)
