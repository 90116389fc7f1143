"""Gives orders to the workers of a device, and once more to the replacement of one that is lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from vuproc.pool.process import COMMAND_DEADLINE, WorkerLost, WorkerRefused
from vuproc.pool.slot import WorkerSlot
from vuproc.pool.slots import NoWorker, WorkerSlots
from vuproc.vhost_user.effects import EnableRing, StopRing
from vuproc.workers.control import AnyOrder, Done

log = logging.getLogger("vuproc.master")

LEAST_S = 0.1
"""Seconds that the last of several workers has for its answer, however long the others took."""


class Orders:
    """Orders to the workers in `slots`."""

    def __init__(self, slots: WorkerSlots) -> None:
        self._slots = slots

    def give(self, queue: int, order: AnyOrder, *, timeout: float = COMMAND_DEADLINE) -> Done:
        """One order to the worker of `queue`, and again to its replacement if it is lost.

        Raises `WorkerRefused`, or `WorkerLost` if the replacement is lost as well.
        """
        slot = self._slots.of(queue)
        # A ring that is to stop or to be held must not run again before it does. Any other is as
        # the session has it: nobody would enable it.
        hold = queue if isinstance(order, StopRing | EnableRing) else -1
        try:
            return self._slots.staffed(slot).call(order, timeout=timeout)
        except WorkerLost as error:
            self._slots.replace(slot, str(error), hold=hold)
        try:
            return self._slots.staffed(slot).call(order, timeout=timeout)
        except WorkerLost as error:
            self._slots.replace(slot, str(error))
            raise

    def tell(self, queue: int, order: AnyOrder, *, wait: bool = True) -> None:
        """As `give`, for an order that a later worker learns from the session's state as well: that
        there is none at the moment costs the front-end nothing. Nobody waits for the answer unless
        `wait`.
        """
        try:
            if wait:
                self.give(queue, order)
            else:
                self._slots.staffed(self._slots.of(queue)).catch_up([order])
        except NoWorker as error:
            log.debug("%s", error)
        except WorkerLost as error:
            if wait:
                raise
            self._slots.replace(self._slots.of(queue), str(error))

    def give_all(
        self, order: AnyOrder, undo: Sequence[AnyOrder], only: Sequence[WorkerSlot] | None = None
    ) -> None:
        """One order to every worker at once, or those of `only`, as `tell`. If one refuses, those
        of `undo` go to those that obeyed.
        """
        refusal: WorkerRefused | WorkerLost | None = None
        posted: list[tuple[WorkerSlot, int | None]] = []
        for slot in self._slots if only is None else only:
            try:
                posted.append((slot, self._slots.staffed(slot).post(order)))
            except NoWorker as error:
                log.debug("%s", error)
            except WorkerRefused as error:
                refusal = error
            except WorkerLost:
                posted.append((slot, None))
        obeyed: list[WorkerSlot] = []
        deadline = time.monotonic() + COMMAND_DEADLINE
        for slot, serial in posted:
            try:
                self._wait(slot, order, serial, max(LEAST_S, deadline - time.monotonic()))
                obeyed.append(slot)
            except (WorkerRefused, WorkerLost) as error:
                refusal = error
        if refusal is None:
            return
        for slot in obeyed:
            for step in undo:
                self.tell(slot.queues[0], step)
        raise refusal

    def _wait(self, slot: WorkerSlot, order: AnyOrder, serial: int | None, timeout: float) -> None:
        cause = "took no message"
        if serial is not None:
            try:
                self._slots.staffed(slot).wait(serial, timeout=timeout)
                return
            except WorkerLost as error:
                cause = str(error)
        self._slots.replace(slot, cause)
        self.tell(slot.queues[0], order)
