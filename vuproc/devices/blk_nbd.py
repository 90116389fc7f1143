"""A disk that an NBD server has. Its requests go out as commands and are complete when the replies
have come, in any order; nothing waits for them.
"""

from __future__ import annotations

import contextlib
import errno
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vuproc.device import Timer
from vuproc.devices.blk_store import Range, complete
from vuproc.devices.nbd_handshake import Export
from vuproc.devices.nbd_link import Commands
from vuproc.devices.nbd_stream import Piece
from vuproc.errors import RequestFinished
from vuproc.spec.blk import BlkStatus
from vuproc.spec.nbd import ERRORS, Command, CommandFlag, ExportFlag

if TYPE_CHECKING:
    from vuproc.shm.request import Request

DRAIN_S = 2.0
"""Seconds that a stopping ring waits for replies before it gives its requests back."""
MOST_PIECE = 4 << 20
"""Bytes of one command."""
MOST_GOING = 16 << 20
"""Bytes of all commands that have no reply; what is beyond waits in the guest's memory."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a request: `at` is where the bytes are that it reads, among the request's."""

    kind: Command
    flags: int
    offset: int
    length: int
    at: int = 0
    data: bytes = b""


@dataclass(slots=True, eq=False)
class _Job:
    """A request of ours: the steps that are not sent yet, and how many have no reply."""

    request: Request
    steps: Iterator[Step]
    flush_after: bool
    unanswered: int = 0
    issued: bool = False
    error: int = 0
    forgotten: bool = False
    """Whether its commands are nobody's any more, whatever becomes of them."""


class Stream(Protocol):
    """Where commands go. `outstanding`: those that are not done."""

    @property
    def outstanding(self) -> Mapping[int, Piece]: ...  # noqa: D102

    def send(self, piece: Piece) -> None: ...  # noqa: D102


class Link(Protocol):
    """What a queue needs of its connection: `NbdLink`, or that to a Ceph cluster."""

    commands: Commands | None

    @property
    def stream(self) -> Stream | None: ...  # noqa: D102

    @property
    def gone(self) -> bool: ...  # noqa: D102

    def open(self) -> None: ...  # noqa: D102

    def turn(self) -> None: ...  # noqa: D102

    def drop(self) -> list[Piece]: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102

    def say(self, what: str) -> None: ...  # noqa: D102


class NbdQueue:
    """The requests of one queue and their commands."""

    def __init__(self, link: Link, later: Callable[[float, Callable[[], None]], Timer]) -> None:
        self._link = link
        self._later = later
        self._jobs: dict[int, _Job] = {}
        self._to_issue: deque[_Job] = deque()
        self._to_repeat: deque[Piece] = deque()
        self._bytes_going = 0
        self._stopping: Timer | None = None
        link.commands = self

    def start(self) -> None:
        """The ring has started."""
        self._end_stopping()
        if self._jobs or (self._link.stream is not None and self._link.stream.outstanding):
            # Of a ring that broke: the new one's requests are not to meet them.
            self._forget()
            self._link.drop()
        self._link.open()

    def submit(self, request: Request, steps: Iterable[Step], *, flush_after: bool) -> None:
        """Have the steps done, then the request completed: with an error if one of them is, or if
        the server has been away for long.
        """
        # Rings stop for a change of memory, too, and then nobody says that they go on.
        self._end_stopping()
        self._link.open()
        request.defer()
        if self._link.gone:
            complete(request, BlkStatus.IOERR)
            return
        job = _Job(request, iter(steps), flush_after)
        self._jobs[request.head] = job
        self._to_issue.append(job)
        self._issue()

    def stop(self) -> None:
        """The ring is about to stop: what has no reply soon is given back, to be done anew."""
        if self._link.stream is None:
            self._give_back()
        elif self._jobs:
            self._end_stopping()
            self._stopping = self._later(DRAIN_S, self._give_back)

    def close(self) -> None:
        """The worker ends."""
        self._end_stopping()
        self._link.close()

    # What the link says.

    def link_up(self) -> None:
        """Send what waits."""
        self._issue()

    def link_ready(self) -> None:
        """Send more."""
        self._issue()

    def link_down(self, unanswered: list[Piece]) -> None:
        """They are sent once more. Each may have been done already, and is done again."""
        self._to_repeat.extendleft(reversed(unanswered))
        if self._stopping is not None:
            self._give_back()

    def link_gone(self) -> None:
        """No guest waits for ever."""
        for job in self._forget():
            with contextlib.suppress(RequestFinished):
                complete(job.request, BlkStatus.IOERR)

    # Requests to commands.

    def _issue(self) -> None:
        """Send what there is room for, and what that makes room for."""
        while self._fill():
            self._link.turn()

    def _fill(self) -> bool:
        """Whether there is something new to be sent."""
        stream = self._link.stream
        if stream is None:
            return False
        filled = bool(self._to_repeat)
        while self._to_repeat:
            stream.send(self._to_repeat.popleft())
        while self._to_issue and self._bytes_going < MOST_GOING:
            job = self._to_issue[0]
            if job.request.finished:
                self._drop(job)  # its ring broke; nobody waits for it
                continue
            step = next(job.steps, None)
            if step is not None:
                stream.send(self._piece(job, step))
                filled = True
                continue
            self._to_issue.popleft()
            job.issued = True
            if job.unanswered == 0:
                self._end(job)
        return filled

    def _piece(self, job: _Job, step: Step) -> Piece:
        moved = step.length if step.kind in (Command.READ, Command.WRITE) else 0
        self._bytes_going += moved
        job.unanswered += 1

        def done(error: int) -> None:
            if job.forgotten:
                return
            self._bytes_going -= moved
            job.unanswered -= 1
            if error:
                job.error = error
                name = ERRORS.get(error) or errno.errorcode.get(error, str(error))
                self._link.say(f"{step.kind.name} of {step.length} at {step.offset}: {name}")
            if job.issued and job.unanswered == 0:
                self._end(job)

        def into(place: int, data: memoryview) -> None:
            if self._jobs.get(job.request.head) is job:
                with contextlib.suppress(RequestFinished):
                    job.request.put(step.at + place, data)

        return Piece(step.kind, step.flags, step.offset, step.length, done, step.data, into)

    def _end(self, job: _Job) -> None:
        if job.flush_after and not job.error:
            job.flush_after = job.issued = False
            job.steps = iter([Step(Command.FLUSH, 0, 0, 0)])
            self._to_issue.appendleft(job)
            return
        if self._drop(job):
            with contextlib.suppress(RequestFinished):
                complete(job.request, BlkStatus.IOERR if job.error else BlkStatus.OK)

    def _drop(self, job: _Job) -> bool:
        """Whether it was ours still."""
        with contextlib.suppress(ValueError):
            self._to_issue.remove(job)
        if self._jobs.get(job.request.head) is not job:
            return False
        del self._jobs[job.request.head]
        if not self._jobs:
            self._end_stopping()
        return True

    def _forget(self) -> list[_Job]:
        """All requests, which are the caller's from now on."""
        jobs = list(self._jobs.values())
        for job in jobs:
            job.forgotten = True
        self._jobs.clear()
        self._to_issue.clear()
        self._to_repeat.clear()
        self._bytes_going = 0
        return jobs

    def _give_back(self) -> None:
        self._end_stopping()
        jobs = self._forget()
        if any(job.unanswered for job in jobs):
            # They are done anew on another connection, which begins at the end of this one.
            self._link.drop()
        for job in jobs:
            with contextlib.suppress(RequestFinished):
                job.request.release()

    def _end_stopping(self) -> None:
        if self._stopping is not None:
            self._stopping.cancel()
            self._stopping = None


class NbdStore:
    """The disk, as `Store` has it, by what the export can do. `connection` is for one queue."""

    def __init__(self, export: Export, connection: Callable[[int], NbdQueue]) -> None:
        self._export = export
        self._connection = connection
        self._queues: dict[int, NbdQueue] = {}
        self._most = min(MOST_PIECE, export.most) // export.least * export.least

    def read(self, request: Request, offset: int, length: int) -> None:
        """As many commands as it takes."""
        steps = (Step(Command.READ, 0, offset + at, size, at) for at, size in self._pieces(length))
        self._queues[request.queue].submit(request, steps, flush_after=False)

    def write(self, request: Request, offset: int, length: int, *, durable: bool) -> None:
        """The same; the bytes are copied when there is room for them on the connection."""
        fua = self._fua(durable)
        steps = (
            Step(Command.WRITE, fua, offset + at, size, data=request.read(size))
            for at, size in self._pieces(length)
        )
        self._submit(request, steps, durable)

    def flush(self, request: Request) -> None:
        """A flush; nothing if the export has none, being stable."""
        if self._export.can(ExportFlag.SEND_FLUSH):
            steps = [Step(Command.FLUSH, 0, 0, 0)]
            self._queues[request.queue].submit(request, steps, flush_after=False)
        else:
            complete(request)

    def discard(self, request: Request, ranges: Sequence[Range], *, durable: bool) -> None:
        """A command a range."""
        fua = self._fua(durable)
        steps = [Step(Command.TRIM, fua, offset, length) for offset, length, _ in ranges]
        self._submit(request, steps, durable)

    def write_zeroes(self, request: Request, ranges: Sequence[Range], *, durable: bool) -> None:
        """A command a range."""
        fua = self._fua(durable)
        steps = [
            Step(Command.WRITE_ZEROES, fua | (0 if unmap else CommandFlag.NO_HOLE), offset, length)
            for offset, length, unmap in ranges
        ]
        self._submit(request, steps, durable)

    def ring_started(self, queue: int) -> None:
        """Connect, if its queue is not connected yet: its worker before us is gone by now."""
        if queue not in self._queues:
            self._queues[queue] = self._connection(queue)
        self._queues[queue].start()

    def ring_stopping(self, queue: int) -> None:
        """Wait for the replies that come soon, and give back the other requests."""
        if queue in self._queues:
            self._queues[queue].stop()

    def close(self) -> None:
        """Hang up."""
        for queue in self._queues.values():
            queue.close()

    def _submit(self, request: Request, steps: Iterable[Step], durable: bool) -> None:
        flush = durable and not self._fua(True) and self._export.can(ExportFlag.SEND_FLUSH)
        self._queues[request.queue].submit(request, steps, flush_after=flush)

    def _fua(self, durable: bool) -> int:
        return CommandFlag.FUA if durable and self._export.can(ExportFlag.SEND_FUA) else 0

    def _pieces(self, length: int) -> Iterator[tuple[int, int]]:
        for at in range(0, length, self._most):
            yield at, min(self._most, length - at)
