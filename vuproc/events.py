"""What happens to a device that is served, as structs: the log's lines are made of them, and a
program that has a `vuproc.Daemon` gets them as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from vuproc import texts

log = logging.getLogger("vuproc.master")


class Event(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Something that happened. `str(event)` is its line in the log, `level` the line's level."""

    @property
    def level(self) -> int:
        """The log level of its line."""
        return logging.INFO


class Ready(Event, frozen=True, tag=True):
    """The device accepts connections, or in client mode tries to connect.

    It comes again when another master goes on with the session: after a death (`supervised`), or
    when a reload made the device anew. `device` is what its author calls it, `queues` and `workers`
    are numbers of them, `pid` is the master's.
    """

    device: str
    queues: int
    workers: int
    pid: int

    def __str__(self) -> str:
        return (
            f"serving {self.device}, {_count(self.queues, 'queue')} in "
            f"{_count(self.workers, 'worker')}"
        )


class Connected(Event, frozen=True, tag=True):
    """A front-end is connected; nothing was negotiated yet."""

    def __str__(self) -> str:
        return "front-end connected"


class Disconnected(Event, frozen=True, tag=True):
    """The front-end is gone, its rings are stopped and its memory is unmapped.

    `ours`: the back-end has ended the connection, not the front-end; `reason` says why.
    """

    reason: str
    ours: bool

    @property
    def level(self) -> int:
        """A front-end that was disconnected may have no way to tell its user why."""
        return logging.WARNING if self.ours else logging.INFO

    def __str__(self) -> str:
        return f"front-end disconnected: {self.reason}"


class WorkerDied(Event, frozen=True, tag=True):
    """A worker process has ended that was not told to.

    `queues` are those that it served, `how` its end in words ("killed by SIGKILL"), and `then` what
    is done about it. `serving` has the queue and the head of each request, or the first of a batch,
    that was in the device's code when it ended.
    """

    queues: tuple[int, ...]
    pid: int
    how: str
    then: str = ""
    serving: tuple[tuple[int, int], ...] = ()

    @property
    def level(self) -> int:
        """The log level of its line."""
        return logging.WARNING

    def __str__(self) -> str:
        plural = "s" * (len(self.queues) > 1)
        queues = ", ".join(map(str, self.queues))
        return f"queue{plural} {queues}: worker {self.pid} ended ({self.how}){self.then}"


class WorkerReplaced(Event, frozen=True, tag=True):
    """Another worker, `pid`, serves the queues of one that has ended.

    `stall_s` are the seconds from the end, as it was noticed, to that.
    """

    queues: tuple[int, ...]
    pid: int
    stall_s: float

    def __str__(self) -> str:
        plural = "s" * (len(self.queues) > 1)
        queues = ", ".join(map(str, self.queues))
        return f"queue{plural} {queues}: worker {self.pid} serves, after {self.stall_s:.6f} s"


class RingBroken(Event, frozen=True, tag=True):
    """A virtqueue is served no longer, until its driver or an operator sets it up anew."""

    queue: int
    cause: str

    @property
    def level(self) -> int:
        """The log level of its line."""
        return logging.ERROR

    def __str__(self) -> str:
        return f"queue {self.queue}: broken: {self.cause}"


def ring_broken(queue: int, cause: str) -> RingBroken:
    """The event, whatever the cause says."""
    return RingBroken(queue=queue, cause=shown(cause))


class QueueRestarted(Event, frozen=True, tag=True):
    """A virtqueue that was broken is served again, because somebody asked for it."""

    queue: int

    def __str__(self) -> str:
        return f"queue {self.queue}: restarted by an operator"


class Migration(Event, frozen=True, tag=True):
    """`logging`: the front-end has us log what is written to the guest's memory, as it does while
    the guest is moved to another host; or no longer.
    """

    logging: bool

    def __str__(self) -> str:
        return "the guest is being moved" if self.logging else "the guest is not being moved now"


class Reloaded(Event, frozen=True, tag=True):
    """The rolling restart of a reload is over.

    `ok`: every worker is new. Otherwise the new workers did not start, and the old ones go on.
    """

    ok: bool

    @property
    def level(self) -> int:
        """The log level of its line."""
        return logging.INFO if self.ok else logging.ERROR

    def __str__(self) -> str:
        if self.ok:
            return "reload: every worker is new"
        return "reload: the new workers do not start, the old ones go on"


class Stopped(Event, frozen=True, tag=True):
    """The device is served no longer, and its processes are gone. The last event.

    `reason` says why; `code` is the master's exit code: 0 for an end in order, negative for the
    number of the signal that killed it.
    """

    reason: str
    code: int = 0

    @property
    def ok(self) -> bool:
        """Whether the end was in order: asked for, or that of the last front-end."""
        return self.code == 0

    def __str__(self) -> str:
        return f"stopped: {self.reason}" if self.ok else f"stopped, {self.code}: {self.reason}"


class EventsLost(Event, frozen=True, tag=True):
    """So many events were not delivered: the program did not take them for too long."""

    count: int

    @property
    def level(self) -> int:
        """The log level of its line."""
        return logging.WARNING

    def __str__(self) -> str:
        return f"{_count(self.count, 'event')} lost: the program did not take them in time"


AnyEvent = (
    Ready
    | Connected
    | Disconnected
    | WorkerDied
    | WorkerReplaced
    | RingBroken
    | QueueRestarted
    | Migration
    | Reloaded
    | Stopped
    | EventsLost
)

_listeners: list[Callable[[AnyEvent], None]] = []


def publish(event: AnyEvent) -> None:
    """Log an event, and hand it to whoever listens in this process."""
    # The place of the line is the caller's: each kind of event has a bound of its own in the log.
    log.log(event.level, "%s", event, stacklevel=2)
    announce(event)


def announce(event: AnyEvent) -> None:
    """Hand an event to whoever listens in this process; its line is in the log already."""
    for listener in _listeners:
        listener(event)


def listen(listener: Callable[[AnyEvent], None]) -> None:
    """Have every further event of this process given to `listener`, which must not raise."""
    _listeners.append(listener)


def shown(text: str) -> str:
    """A text for a field of an event: of a bounded length, and every character printable."""
    return texts.block(text, texts.LINE_BYTES)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
