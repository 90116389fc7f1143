"""All workers of one device: carries out the session's effects on them, one after the other.

Each *slot* serves one group of queues and holds at most one process. An effect is carried out on
every slot that it concerns before `perform` returns.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence

from vuproc.pool.asked_translations import AskedTranslations
from vuproc.pool.history import History
from vuproc.pool.orders import Orders
from vuproc.pool.performer import Performer
from vuproc.pool.pool_state import PoolState
from vuproc.pool.process import (
    EXIT_DEADLINE,
    WorkerLost,
    WorkerProcess,
    WorkerRefused,
)
from vuproc.pool.ring_orders import RingOrders
from vuproc.pool.slots import News, WorkerSlots
from vuproc.pool.starts import OnReport
from vuproc.vhost_user.config_space import ConfigSpace
from vuproc.vhost_user.effects import (
    Effect,
    StartRing,
    StopRing,
)
from vuproc.vhost_user.state import Postcopy, State
from vuproc.workers import control
from vuproc.workers.control import CONFIG_QUEUE, AnyOrder

log = logging.getLogger("vuproc.master")


class WorkerPool:
    """The workers of one device, a slot for each of `groups`.

    `start` starts a standby, of which there is always to be one if `has_standby`; `work` counts the
    requests that queues have completed. The master hands each state of the session down once it is
    committed.
    """

    def __init__(
        self,
        start: Callable[[OnReport], WorkerProcess],
        groups: Sequence[tuple[int, ...]],
        config: ConfigSpace,
        *,
        queue_size: int,
        work: Callable[[tuple[int, ...]], int],
        has_standby: bool = True,
    ) -> None:
        num_queues = sum(len(group) for group in groups)
        self.config = config
        self.history = History(config, num_queues, queue_size)
        self.asked = AskedTranslations()
        """Who waits for which of an IOMMU's translations."""
        self.slots = WorkerSlots(start, groups, work, self.history, has_standby)
        self._orders = Orders(self.slots)
        self._rings = RingOrders(self.history, self.slots, self._orders)
        self._performer = Performer(self.history, self.slots, self._orders, self._rings, self.asked)
        self._answers: deque[tuple[int, control.ShmemDone]] = deque()

    def start(self, *, succeeds: bool = False) -> None:
        """As `WorkerSlots.start`."""
        self.slots.start(succeeds=succeeds)

    def take_news(self) -> list[News]:
        """The rings that have broken, and the changes of the configuration space that the driver is
        to be told of, since the last call.
        """
        news = [*self.slots.news]
        self.slots.news.clear()
        return news

    def due(self) -> float | None:
        """As `WorkerSlots.due`: the pool is a chore of the master's loop."""
        return self.slots.due()

    def tend(self) -> None:
        """As `WorkerSlots.tend`."""
        self.slots.tend()

    def pids(self) -> list[int]:
        """Of all workers that there are, also those that come or go at this moment."""
        return self.slots.starts.pids()

    def abandon(self) -> None:
        """Our end is to wait for nothing: kill every worker. May be called by a signal handler."""
        self.slots.wind_down()
        self.slots.starts.abandon()

    def close(self) -> None:
        """End every worker, all at once: by force those that have not after `EXIT_DEADLINE`, or
        what their hooks are allowed.
        """
        leaving = self.slots.release_all()
        for worker in leaving:
            worker.ask_to_exit()
        for worker in leaving:
            worker.exit(EXIT_DEADLINE)
        if self.slots.helper is not None:
            self.slots.helper.finish()
        self.history.drop_records()
        self.history.objects.close()

    # A session, and a master's own death.

    def attach(self, state: State) -> None:
        """A front-end is connected. Raises OSError if there is no room for its records.

        They are there before the first ring: a successor must be told of them before a worker is.
        """
        self.history.begin(state)

    def snapshot(self) -> PoolState:
        """What a successor's pool must know of the session."""
        return self.history.snapshot()

    def restore(self, state: State, known: PoolState) -> None:
        """Go on from what a predecessor's pool knew, and bring every worker to the session's state.

        Nobody else may touch the rings by now.
        """
        self.history.restore(state, known)
        if state.postcopy is not Postcopy.OFF:
            for slot in self.slots:
                self.slots.lose_userfault(slot)
        for slot in self.slots:
            if slot.worker is None:
                continue
            try:
                slot.worker.catch_up(self.history.of(slot.queues))
            except WorkerLost as error:
                self.slots.replace(slot, str(error))

    def settled(self, state: State, *, undone: bool) -> None:
        """The step's effects are committed, or (`undone`) rolled back after some were carried out.

        In the second case the workers are ahead of the state; fresh ones are brought to it.
        """
        self.history.state = state
        self.history.stopped.clear()
        if undone:
            for slot in self.slots:
                self.slots.replace(slot, "its last command was taken back")

    def detach(self) -> None:
        """The session is over: no worker keeps a ring, a mapping or what the driver chose."""
        self.history.end()
        self.asked.clear()
        for slot in self.slots:
            slot.close_breaker()
            self.slots.heard(slot)
            slot.missed_end = slot.worker is None or slot.worker.setting_up
            if slot.worker is not None and slot.missed_end:
                # It has been told of the rings, and that cannot be taken back in time.
                self.slots.replace(slot, "the session is over, and it is setting up still")
        ready = [s for s in self.slots if s.worker is not None and not s.worker.setting_up]
        try:
            self._orders.give_all(control.Detach(), (), only=ready)
        except (WorkerLost, WorkerRefused) as error:
            log.warning("at the end of the session: %s", error)
        self.history.drop_records()

    # Effects.

    def clear_record(self, effect: Effect) -> None:
        """As `RingOrders.clear_record`. Not a part of `perform`, for that may be asked for once
        more after a death: by then the record may hold what the ring has done already.
        """
        if isinstance(effect, StartRing):
            self._rings.clear_record(effect.setup)

    def perform(self, effect: Effect) -> object:
        """As `Performer.perform`."""
        return self._performer.perform(effect)

    def perform_at_end(self, effect: Effect) -> object:
        """The same for what ends a session: a ring has not run yet with a worker that is setting
        up, and nobody waits for that.
        """
        self.history.ending = True
        if isinstance(effect, StopRing):
            slot = self.slots.of(effect.index)
            self.slots.heard(slot)  # it may have said that it has set up
            if slot.worker is None or slot.worker.setting_up:
                return 0
        return self.perform(effect)

    @property
    def speaker(self) -> int:
        """The number of the worker of queue 0, which speaks for the device; -1 if there is none."""
        worker = self.slots.of(CONFIG_QUEUE).worker
        return -1 if worker is None else worker.number

    def answer_shmem(self, worker: int, serial: int, problem: str) -> None:
        """Tell this worker, if it is still the one of queue 0, what became of what it asked for."""
        self._answers.append((worker, control.ShmemDone(serial, problem)))
        self.deliver()

    def deliver(self) -> None:
        """Hand answers on, as the worker takes them."""
        while self._answers and self.speaker_is_ready:
            worker, answer = self._answers.popleft()
            if worker == self.speaker:
                self.post(answer)

    @property
    def speaker_is_ready(self) -> bool:
        """Whether there is a worker of queue 0, which speaks for the device, and it has done all
        that it was told without anybody waiting for it.
        """
        worker = self.slots.of(CONFIG_QUEUE).worker
        return worker is not None and worker.ready

    def post(self, order: AnyOrder) -> None:
        """An order to the worker of queue 0, which is ready. Nobody waits for its answer, and its
        descriptors are borrowed until it is ready again.
        """
        slot = self.slots.of(CONFIG_QUEUE)
        assert slot.worker is not None
        try:
            slot.worker.catch_up([order])
        except WorkerLost as error:
            self.slots.replace(slot, str(error))

    def untranslated(self, queue: int, iova: int, access: int) -> None:
        """The front-end does not know what a queue has asked for. Nobody waits for the answer, nor
        for a worker if there is none at the moment: the next one asks by itself.
        """
        slot = self.slots.of(queue)
        if slot.worker is None:
            return
        try:
            slot.worker.catch_up([control.Untranslated(queue, iova, access)])
        except WorkerLost as error:
            self.slots.replace(slot, str(error))

    # What an operator asks.

    def set_log_level(self, level: int) -> None:
        """What is worth a line, in every worker."""
        try:
            self._orders.give_all(control.SetLogLevel(level), ())
        except (WorkerRefused, WorkerLost) as error:
            log.warning("log level: %s", error)

    def revive(self, queue: int) -> str | None:
        """As `RingOrders.revive`."""
        return self._rings.revive(queue)
