"""The workers of a device, each in its slot: their deaths, and who takes their place.

A worker that is lost is killed, replaced by the standby, and brought to where the session's state
says. What the master should know of that waits in `news`.
"""

from __future__ import annotations

import itertools
import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from uuid import UUID

from vuproc import texts
from vuproc.asks import Ask
from vuproc.log_limit import apart
from vuproc.mapping import ASKS_MAX, MapShmem, ShmemAsk, UnmapShmem
from vuproc.pool.forkserver import CannotStart
from vuproc.pool.helper import Helper
from vuproc.pool.history import History
from vuproc.pool.post import Posts
from vuproc.pool.process import (
    WorkerLost,
    WorkerProcess,
    WorkerRefused,
    WorkerSetupError,
    name_queues,
)
from vuproc.pool.slot import BREAKER_DEATHS, LACK_FIRST_S, WorkerSlot
from vuproc.pool.standby import Standby
from vuproc.pool.starts import OnReport, WorkerStarts
from vuproc.sandbox.policy import DOCS
from vuproc.sharing import ObjectAsk, ShareFile, ShareObject, UnshareObject
from vuproc.workers.control import (
    CAUSE_BYTES,
    LACKS_MOST,
    AnyOrder,
    ConfigSays,
    Detach,
    LockedIn,
    Logged,
    Missing,
    RingBroken,
    Said,
)
from vuproc.workers.log import MASTER_TAKES

log = logging.getLogger("vuproc.master")


USERFAULT_LOST = (
    "its worker ended in postcopy, and nobody else can wait for pages of guest memory that are "
    "missing; once POSTCOPY_END has come, vuproc queue restart has it served again"
)


class AskedShmem(NamedTuple):
    """What a worker asks for in shared memory. `worker` is its number, `ask` is whose it becomes
    that takes the news, with the descriptor in it.
    """

    worker: int
    ask: ShmemAsk


News = RingBroken | ConfigSays | Missing | ObjectAsk | AskedShmem


def _queues(slot: WorkerSlot) -> tuple[int, ...]:
    return slot.queues


class NoWorker(WorkerRefused):
    """Some queues are without a worker; the text says which, and why."""


class Lacking(NoWorker):
    """For the system has no process to give at the moment."""


class WorkerSlots:
    """A slot for each of `groups`, and a standby.

    `start` starts a standby; `work` counts the requests that queues have completed; `history` is
    what a fresh worker is told. `has_standby`: there is always to be one.
    """

    def __init__(
        self,
        start: Callable[[OnReport], WorkerProcess],
        groups: Sequence[tuple[int, ...]],
        work: Callable[[tuple[int, ...]], int],
        history: History,
        has_standby: bool,
    ) -> None:
        self.starts = WorkerStarts(start, self._report)
        self.standby = Standby(self.starts.another, lasting=has_standby)
        self.news: deque[News] = deque()
        """Rings that have broken, changes of the configuration space, and what is asked, for the
        master.
        """
        self._slots = [WorkerSlot(queues, self.standby.take, work) for queues in groups]
        self.standby.ahead = self._ahead
        self.posts = Posts()
        """What the master is to look at again, of the slots and the standby."""
        for post in (*self._slots, self.standby):
            post.belong_to(self.posts)
        self.helper: Helper | None = None
        self._slot_of = {queue: slot for slot in self._slots for queue in slot.queues}
        self._history = history
        self.sets_up_ahead: Callable[[], bool] = lambda: False
        """Whether the device may be set up while another worker serves its queues."""
        self.lacks: list[str] = []
        """What workers could not have of their sandbox, each once."""
        self._winding_down = False

    def __iter__(self) -> Iterator[WorkerSlot]:
        return iter(self._slots)

    def of(self, queue: int) -> WorkerSlot:
        """The slot whose worker serves `queue`."""
        return self._slot_of[queue]

    def add_helper(self, end_s: float) -> None:
        """Have a helper, too; it has `end_s` seconds at our end. It is started by `tend`."""
        self.helper = Helper(self.starts.another, end_s)
        self.helper.belong_to(self.posts)

    def start(self, *, succeeds: bool) -> None:
        """Start every worker, and a standby, all at once. Raises `WorkerSetupError`, `CannotStart`
        or `WorkerLost`.

        `succeeds`: a session may go on with us, so a worker that cannot be had is tried for again.
        """
        for slot in self._slots:
            slot.recovers = succeeds
            try:
                slot.spawn()
            except CannotStart as error:
                if not succeeds:
                    raise
                slot.lacking(error.reason)
        self.standby.refill()
        try:
            for slot in self._slots:
                if slot.worker is not None:
                    slot.worker.settle()
        except WorkerLost as error:
            assert slot.worker is not None
            cause = slot.worker.last_words(str(error))
            self.starts.abandon()  # they would be waited for one by one
            raise WorkerSetupError(cause) from error

    def wind_down(self) -> None:
        """Our end begins: no worker is replaced any more."""
        self._winding_down = True
        for slot in self._slots:
            slot.last = True
        if self.helper is not None:
            self.helper.stop()

    def release_all(self) -> list[WorkerProcess]:
        """Empty every slot; the workers, the standby among them, are the caller's."""
        for slot in self._slots:
            slot.log_exit(wait=True)
        workers = [self.standby.release(), *(slot.worker for slot in self._slots)]
        for slot in self._slots:
            slot.worker = None
        return [worker for worker in workers if worker is not None]

    def _ahead(self) -> tuple[int, ...]:
        """The queues that a standby will have if there is a choice of one, and if it may be set up
        while they are served.
        """
        (first, *others) = self._slots
        return first.queues if not others and self.sets_up_ahead() else ()

    # Who serves.

    def staffed(self, slot: WorkerSlot) -> WorkerProcess:
        """The worker of a slot, once it is ready. Raises `NoWorker`, `WorkerRefused` if there can
        be none any more, or `WorkerLost`.
        """
        if slot.worker is None:
            self.fill(slot)
        worker = slot.worker
        if worker is None:
            if slot.lack:
                raise Lacking(f"{name_queues(slot.queues)}: {slot.lack}")
            why = "its worker has ended" if self._winding_down else "no worker can be started"
            kind = WorkerRefused if slot.unkillable else NoWorker
            raise kind(f"{name_queues(slot.queues)}: {why}")
        try:
            worker.settle()
        except WorkerSetupError as error:
            self._not_set_up(slot, error)
            raise NoWorker(f"{name_queues(slot.queues)}: {error}") from error
        self._supplied(slot)
        return worker

    def replace(self, slot: WorkerSlot, cause: str, *, hold: int = -1) -> None:
        """End the slot's worker, and have another take its place at once. `hold` as `fill`."""
        self.reap(slot, cause)
        self.fill(slot, hold=hold)

    def fill(self, slot: WorkerSlot, *, hold: int = -1) -> None:
        """Have a worker take the slot, and tell it all it must know of the session.

        Its answers are not waited for: a driver waits, and the device may take its time to set up.
        `hold` names a ring that is not to run again before the order that its worker died over.
        """
        if slot.unkillable or self._winding_down:
            slot.log_exit()
            return
        orders: Iterator[AnyOrder] = self._history.of(slot.queues, hold)
        if slot.missed_end:
            orders = itertools.chain([Detach()], orders)
        try:
            slot.spawn().catch_up(orders)
        except CannotStart as error:
            slot.lacking(error.reason)
        except WorkerLost as error:
            self.reap(slot, str(error))
            slot.spawn_at = max(slot.spawn_at, time.monotonic() + LACK_FIRST_S)
        finally:
            slot.log_exit()

    def _supplied(self, slot: WorkerSlot) -> None:
        """The worker of this slot is ready, and its rings are where the session has them."""
        slot.supplied()
        slot.missed_end = False
        for queue in slot.queues:
            self._history.bases.pop(queue, None)

    # What workers say, and their ends.

    def due(self) -> float | None:
        """Seconds until an empty slot is to be filled, or a worker has taken too long to get ready;
        None if there is none such.
        """
        now = time.monotonic()
        times = [self.standby.due()]
        if self.helper is not None:
            times.append(self.helper.due())
        for slot in self._unsettled():
            if slot.worker is None:
                times.append(max(0.0, slot.spawn_at - now))
            elif slot.worker.overdue is not None:
                times.append(slot.worker.overdue)
        return None if min(times) == float("inf") else min(times)

    def tend(self) -> None:
        """Fill the slots whose back-off is over, and end workers that do not get ready; then see to
        the standby.
        """
        now = time.monotonic()
        for slot in self._unsettled():
            if slot.worker is not None and slot.worker.overdue == 0.0:
                self.heard(slot)  # its answer may be there, unread
            if slot.worker is not None and slot.worker.overdue == 0.0:
                self.died(slot, slot.worker.too_slow())
            if slot.worker is None and slot.spawn_at <= now:
                self.fill(slot)
        self.standby.tend()
        if self.helper is not None:
            self.helper.tend()

    def _unsettled(self) -> list[WorkerSlot]:
        """The slots at which something may be due, in their order."""
        unsettled = self.posts.unsettled
        settled = {post for post in unsettled if post.worker is not None and post.worker.ready}
        unsettled -= settled | {self.standby}
        if self.helper is not None:
            unsettled.discard(self.helper)
        if not unsettled:
            return []
        return sorted((post for post in unsettled if isinstance(post, WorkerSlot)), key=_queues)

    def heard(self, slot: WorkerSlot) -> None:
        """The control channel of this slot is readable."""
        if slot.worker is None:
            return
        try:
            slot.worker.read()
            if slot.worker.ready:
                self._supplied(slot)
        except WorkerLost as error:
            self.died(slot, str(error))
        except WorkerSetupError as error:
            self._not_set_up(slot, error)

    def ended(self, slot: WorkerSlot) -> None:
        """The worker of this slot ended by itself; it may have said why."""
        worker = slot.worker
        self.heard(slot)
        if worker is not None and slot.worker is worker:
            self.died(slot)

    def stopped(self, slot: WorkerSlot) -> None:
        """The worker of this slot runs no more; it may have said why, and its end follows."""
        worker = slot.worker
        self.heard(slot)
        if slot.worker is worker and slot.has_stopped:
            self.died(slot)

    def died(self, slot: WorkerSlot, cause: str = "died") -> None:
        """The worker of this slot is to end, or has: log it and have another start."""
        self.reap(slot, cause)
        if slot.spawn_at <= time.monotonic():
            self.fill(slot)

    def reap(self, slot: WorkerSlot, cause: str) -> None:
        """Make sure of the end of the slot's worker. Its rings are given up if it died of guest
        memory that is gone, or one time too many.
        """
        if not slot.reap(cause):
            return
        reason = None
        if slot.exit_unlogged is not None or slot.last_signal is signal.SIGBUS:
            reason = self._history.truncation()
        if slot.crash_looping:
            reason = f"{BREAKER_DEATHS} deaths without work in between, the last: {slot.causes[-1]}"
        if self._history.in_postcopy:
            self.lose_userfault(slot)
        elif reason is not None:
            self._give_up(slot, reason)

    def lose_userfault(self, slot: WorkerSlot) -> None:
        """The worker that had the userfaultfd is gone, and with it the address space: no other can
        wait for the pages that are missing.
        """
        self._history.userfault_lost = USERFAULT_LOST
        self._give_up(slot, USERFAULT_LOST)

    def _not_set_up(self, slot: WorkerSlot, error: WorkerSetupError) -> None:
        """Another try comes later, unless there were too many."""
        slot.refuse(error)
        if slot.crash_looping:
            self._give_up(slot, str(error))

    def _give_up(self, slot: WorkerSlot, cause: str) -> None:
        """No worker is to touch the rings of this slot: tell the driver in their place."""
        for queue in slot.queues:
            if self._history.setup(queue) is None:
                continue
            self._break(queue, cause, told=False)

    def _report(self, worker: int, report: Said) -> None:
        if isinstance(report, Logged):
            # A worker keeps to bounds of its own; this one is for a worker that does not.
            place = apart(("worker", worker), MASTER_TAKES)
            logging.getLogger("vuproc.device").log(report.level, "%s", report.text, extra=place)
        elif isinstance(report, LockedIn):
            self._note_lacks(report.lacks)
        elif isinstance(report, ConfigSays):
            config = self._history.config
            # A new worker may not have what its predecessor knew.
            changed = report.changed or (report.repeated and report.content != config.content)
            if config.say(report.content):
                if changed:
                    self.news.append(report)
            else:
                log.error("config_space() has %d bytes now: ignored", len(report.content))
        elif isinstance(report, MapShmem | UnmapShmem):
            self._asked_shmem(worker, report)
        elif isinstance(report, Ask):
            self._asked(report)
        elif isinstance(report, Missing):
            self.news.append(report)
        else:
            self._break(report.queue, report.cause, told=report.told)

    def _note_lacks(self, lacks: tuple[str, ...]) -> None:
        """Each once: every worker has the same to say."""
        for lack in lacks:
            if lack not in self.lacks and len(self.lacks) < LACKS_MOST:
                self.lacks.append(lack)
                log.warning("sandbox: without %s; see %s", lack, DOCS)

    def _asked_shmem(self, worker: int, ask: ShmemAsk) -> None:
        """A worker that keeps to its bounds has not so many open."""
        if sum(isinstance(news, AskedShmem) for news in self.news) < 2 * ASKS_MAX:
            self.news.append(AskedShmem(worker, ask))
        elif isinstance(ask, MapShmem):
            ask.file.close()

    def _asked(self, ask: ObjectAsk) -> None:
        """Of what is shared, a front-end may come to know later."""
        objects = self._history.objects
        problem = ""
        match ask:
            case ShareObject(uuid=uuid, file=name):
                problem = objects.add(uuid, name)
            case ShareFile(uuid=uuid, file=file):
                problem = objects.add_made(uuid, file)
            case UnshareObject(uuid=uuid):
                objects.remove(uuid)
        if problem:
            log.error("object %s is not shared: %s", UUID(bytes=ask.uuid), problem)
            return
        self.news.append(ask)

    def _break(self, queue: int, cause: str, *, told: bool) -> None:
        """`told`: by the ring's error descriptor."""
        if queue not in self._history.broken:
            setup = self._history.setup(queue)
            if not told and setup is not None and setup.err is not None:
                setup.err.notify()
            cause = texts.line(cause, CAUSE_BYTES)
            self._history.broken[queue] = cause
            self.news.append(RingBroken(queue, cause))
