"""Replaces workers that are well by others of a new kind, one at a time, without losing a request.

Each finishes what is in flight before its successor, which has set everything up by then, goes on
with its rings. If one of the new kind does not start, all are of the old kind again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from vuproc.pool.pool import WorkerPool
from vuproc.pool.process import (
    EXIT_DEADLINE,
    STOP_DEADLINE,
    WorkerLost,
    WorkerRefused,
    WorkerSetupError,
)
from vuproc.pool.slot import WorkerSlot
from vuproc.vhost_user.effects import StopRing

log = logging.getLogger("vuproc.master")


class RollingRestart:
    """Looks after one rolling restart at a time. A chore of the master's loop."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._left: list[WorkerSlot] = []
        self._renewed: list[WorkerSlot] = []
        self._lost_before = 0
        self._on_done: Callable[[], None] = _nothing
        self._on_failed: Callable[[], None] = _nothing

    @property
    def under_way(self) -> bool:
        """Whether there are workers to be replaced."""
        return bool(self._left)

    def begin(self, on_done: Callable[[], None], on_failed: Callable[[], None]) -> None:
        """Begin, once the pool's standbys are started as workers of the new kind.

        One of the two is called at the end; `on_failed` has standbys be of the old kind again.
        """
        assert not self._left
        self._on_done, self._on_failed = on_done, on_failed
        self._go_through(list(self._pool.slots))

    def _go_through(self, slots: Sequence[WorkerSlot]) -> None:
        self._left, self._renewed = list(slots), []
        standby = self._pool.slots.standby
        standby.stop()
        standby.wanted = True
        self._lost_before = standby.restarts
        standby.refill()

    def due(self) -> float | None:
        """Nothing is due that no descriptor announces, once a standby is ready."""
        if not self._left or self._pool.history.in_postcopy:
            return None
        standby = self._pool.slots.standby
        ready = standby.worker is not None and standby.worker.ready
        return 0.0 if ready or standby.restarts != self._lost_before else None

    def tend(self) -> None:
        """Replace the next one, if there is a standby for it."""
        if not self._left or self._pool.history.in_postcopy:
            return  # put off: another worker could not wait for the pages that are missing
        standby = self._pool.slots.standby
        if standby.restarts != self._lost_before:
            self._go_back()
            return
        if standby.worker is None or not standby.worker.ready:
            return
        if standby.worker.queues != self._left[0].queues:
            # The old one serves while the new one sets up, however long that takes.
            standby.assign(self._left[0].queues)
            return
        self._replace(self._left[0])
        self._renewed.append(self._left.pop(0))
        if self._left:
            standby.refill()
        else:
            standby.rest()
            self._on_done()

    def _replace(self, slot: WorkerSlot) -> None:
        """Replace a worker that is well by the standby, which has set up the queues of its slot; it
        finishes what is in flight first.
        """
        slots = self._pool.slots
        successor = slots.standby.take(slot.queues, True)
        try:
            for queue in slot.queues if slot.worker is not None else ():
                _finish_ring(slot, queue)
        except WorkerLost as error:
            slots.reap(slot, str(error))
        except WorkerSetupError as error:
            slot.refuse(error)
        slot.release()
        if slot.unkillable:
            successor.exit(EXIT_DEADLINE)
            return
        slot.assign(successor)
        try:
            successor.catch_up(self._pool.history.of(slot.queues))
        except WorkerLost as error:
            slots.replace(slot, str(error))
        finally:
            slot.log_exit()

    def _go_back(self) -> None:
        """The next of the new kind does not start. Those that did are of no use without it."""
        renewed, failed = self._renewed, self._on_failed
        # If that fails as well, there is nothing left to go back to.
        self._on_done = self._on_failed = _nothing
        self._left.clear()
        failed()
        if renewed:
            self._go_through(renewed)
        else:
            self._pool.slots.standby.stop()
            self._pool.slots.standby.rest()

    def close(self) -> None:
        """The loop is over."""
        self._left.clear()


def _finish_ring(slot: WorkerSlot, queue: int) -> None:
    try:
        if slot.worker is not None:
            slot.worker.call(StopRing(queue, keeps_record=True), timeout=STOP_DEADLINE)
    except WorkerRefused:
        pass  # it is not started


def _nothing() -> None:
    pass
