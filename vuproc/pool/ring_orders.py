"""Starts and stops the rings of a device, also those that broke or have no worker at the moment."""

from __future__ import annotations

import logging

from vuproc.pool.history import History
from vuproc.pool.orders import Orders
from vuproc.pool.process import STOP_DEADLINE, WorkerLost, WorkerRefused
from vuproc.pool.slots import Lacking, WorkerSlots
from vuproc.vhost_user.effects import RingSetup, StopRing

log = logging.getLogger("vuproc.master")


class RingOrders:
    """What the order to start or to stop a ring takes, beside the order itself."""

    def __init__(self, history: History, slots: WorkerSlots, orders: Orders) -> None:
        self._history = history
        self._slots = slots
        self._orders = orders

    def clear_record(self, setup: RingSetup) -> None:
        """Before a ring is started for the first time: what our record of it holds is of no
        concern, unless it goes on where it could not be drained.
        """
        if setup.inflight is not None:
            return  # the front-end's
        history = self._history
        if history.kept.take(setup.index) != setup.base:
            history.own_records.clear(setup.index)

    def start(self, setup: RingSetup) -> None:
        """Start a ring where the front-end says.

        A ring that could not be drained left requests in its record. The one that begins at the
        same place may be another: a guest that was reset while its first request hung starts at 0
        again. Then what was kept does not fit.

        Raises `WorkerRefused` or `WorkerLost`.
        """
        history, index = self._history, setup.index
        if history.userfault_lost:
            raise WorkerRefused(history.userfault_lost)
        cause = history.broken.pop(index, None)
        self._slots.of(index).close_breaker()
        order = history.start_of(setup, setup.base)
        history.bases.pop(index, None)
        try:
            self._orders.give(index, order)
        except Lacking as error:
            # The first that can be had starts it, for it is part of the session's state.
            log.warning("%s", error)
            history.bases[index] = setup.base or 0
        except WorkerRefused as error:
            if setup.inflight is not None or not history.own_records.clear(index):
                self._still_broken(index, cause)
                raise
            log.warning("queue %d: what was kept for it is forgotten: %s", index, error)
            self._orders.give(index, order)
        except WorkerLost:
            self._still_broken(index, cause)
            raise
        history.stopped.discard(index)

    def stop(self, order: StopRing) -> int:
        """Stop a ring: its base. One that broke and lost its worker goes on, if ever, at its old
        one. Raises `WorkerRefused` or `WorkerLost`.
        """
        history, index = self._history, order.index
        broken = history.broken.pop(index, None)
        if index in history.bases and self._slots.of(index).worker is None:
            return self._stop_unstarted(index)
        setup = history.setup(index)
        try:
            done = self._orders.give(index, order, timeout=STOP_DEADLINE)
        except WorkerRefused:
            # It may have broken just now: its new worker could not go on with it.
            if history.broken.pop(index, broken) is None:
                raise
            return 0 if setup is None else setup.base or 0
        except WorkerLost:
            self._still_broken(index, broken)
            raise
        history.stopped.add(index)
        if done.kept:
            history.kept.note(index, done.value)
        return done.value

    def revive(self, queue: int) -> str | None:
        """An operator wants a broken ring served again: from its record. Why not, if not."""
        history = self._history
        if queue not in history.broken:
            return f"queue {queue} is not broken"
        if history.userfault_lost:
            return history.userfault_lost
        self._slots.of(queue).close_breaker()
        setup = history.setup(queue)
        if setup is not None:
            try:
                # Broken until then, so that a worker which comes for this does not start it, too.
                self._orders.give(queue, history.start_of(setup, None))
            except (WorkerRefused, WorkerLost) as error:
                return str(error)
        del history.broken[queue]
        return None

    def _stop_unstarted(self, index: int) -> int:
        """The front-end has started it, and no worker could be had for it since."""
        history = self._history
        history.stopped.add(index)
        base = history.bases.pop(index)
        if history.records is not None and not history.records.is_clear(index):
            history.kept.note(index, base)
        return base

    def _still_broken(self, index: int, cause: str | None) -> None:
        """The order that would have made a ring whole was not carried out."""
        if cause is not None:
            self._history.broken[index] = cause
