"""All workers of one device: carries out the session's effects on them and replaces those that die.

Each *slot* serves one group of queues and holds at most one process. An effect is carried out on
every slot that it concerns before `perform` returns. A worker lost on the way is killed, replaced
by the standby, brought to where the session's state says, and asked once more.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from msgspec.structs import replace

from vuproc import texts
from vuproc.log_limit import apart
from vuproc.pool.commands import (
    Prepared,
    prepared,
    regions_of,
    start_ring,
    truncation,
    undo_memory,
)
from vuproc.pool.forkserver import CannotStart
from vuproc.pool.inflight_file import InflightFile, make_records
from vuproc.pool.pool_state import PoolState
from vuproc.pool.process import (
    COMMAND_DEADLINE,
    WorkerLost,
    WorkerProcess,
    WorkerRefused,
    WorkerSetupError,
    name_queues,
)
from vuproc.pool.slot import BREAKER_DEATHS, LACK_FIRST_S, WorkerSlot
from vuproc.pool.standby import Standby
from vuproc.pool.starts import OnReport, WorkerStarts
from vuproc.vhost_user import effects
from vuproc.vhost_user.config_space import ConfigSpace
from vuproc.vhost_user.effects import Effect, EffectFailed
from vuproc.workers import control
from vuproc.workers.control import Logged, RingBroken
from vuproc.workers.log import MASTER_TAKES

log = logging.getLogger("vuproc.master")

STOP_DEADLINE = 3.0
"""Seconds a worker has to finish what is in flight before its ring stops; then it is killed."""

EXIT_DEADLINE = 5.0
"""Seconds a worker has to leave at our own end."""


class NoWorker(WorkerRefused):
    """Some queues are without a worker; the text says which, and why."""


class Lacking(NoWorker):
    """For the system has no process to give at the moment."""


class WorkerPool:
    """The workers of one device.

    `start` starts a standby; `work` counts the requests that queues have completed; `replay` gives
    the effects that bring a fresh worker of some queues to the session's committed state;
    `on_broken(queue, cause)` is told of each ring that breaks.
    """

    def __init__(
        self,
        start: Callable[[OnReport], WorkerProcess],
        groups: Sequence[tuple[int, ...]],
        config: ConfigSpace,
        *,
        queue_size: int,
        work: Callable[[tuple[int, ...]], int],
        replay: Callable[[tuple[int, ...]], Sequence[Effect]],
        on_broken: Callable[[int, str], None],
    ) -> None:
        self.config = config
        self._starts = WorkerStarts(start, self._report)
        self.standby = Standby(self._starts.another)
        self.slots = [WorkerSlot(queues, self.standby.take, work) for queues in groups]
        self.broken: dict[int, str] = {}
        """Cause by queue, for the rings that nobody serves until they are set up anew."""
        self._winding_down = False
        self._queue_size = queue_size
        self._replay = replay
        self._on_broken = on_broken
        self._stopped: set[int] = set()
        self._records: InflightFile | None = None
        self._kept: dict[int, int] = {}
        self._bases: dict[int, int] = {}
        """Where rings are to begin that the front-end has started and no worker has yet."""
        self._slot_of = {queue: slot for slot in self.slots for queue in slot.queues}

    def start(self, *, succeeds: bool = False) -> None:
        """Start every worker, and a standby, all at once. Raises `WorkerSetupError`, `CannotStart`
        or `WorkerLost`.

        `succeeds`: a session may go on with us, so a worker that cannot be had is tried for again.
        """
        for slot in self.slots:
            try:
                slot.spawn()
            except CannotStart as error:
                if not succeeds:
                    raise
                slot.lacking(error.reason)
        self.standby.refill()
        try:
            for slot in self.slots:
                if slot.worker is not None:
                    slot.worker.settle()
        except WorkerLost as error:
            assert slot.worker is not None
            cause = slot.worker.last_words(str(error))
            self._starts.abandon()  # they would be waited for one by one
            raise WorkerSetupError(cause) from error

    def pids(self) -> list[int]:
        """Of all workers that there are, also those that come or go at this moment."""
        return self._starts.pids()

    def wind_down(self) -> None:
        """Our end begins: no worker is replaced any more."""
        self._winding_down = True
        for slot in self.slots:
            slot.last = True

    def abandon(self) -> None:
        """Our end is to wait for nothing: kill every worker. May be called by a signal handler."""
        self.wind_down()
        self._starts.abandon()

    def close(self) -> None:
        """End every worker, all at once: by force those that have not after `EXIT_DEADLINE`, or
        what their hooks are allowed.
        """
        workers = [self.standby.release(), *(slot.worker for slot in self.slots)]
        leaving = [worker for worker in workers if worker is not None]
        for slot in self.slots:
            slot.worker = None
        for worker in leaving:
            worker.ask_to_exit()
        for worker in leaving:
            worker.exit(EXIT_DEADLINE)
        self._drop_records()

    # A session, and a master's own death.

    def attach(self) -> None:
        """A front-end is connected. Raises OSError if there is no room for its records.

        They are there before the first ring: a successor must be told of them before a worker is.
        """
        if self._records is None:
            self._records = InflightFile.create(len(self._slot_of), self._queue_size)

    def snapshot(self) -> PoolState:
        """What a successor's pool must know of the session; the records stay ours."""
        records = None if self._records is None else self._records.file
        return PoolState(tuple(self.config.written()), tuple(sorted(self._kept.items())), records)

    def restore(self, state: PoolState, broken: Mapping[int, str]) -> None:
        """Go on from what a predecessor's pool knew, and bring every worker to the session's state.

        Nobody else may touch the rings by now. `broken` is as the attribute.
        """
        for offset, data in state.config:
            self.config.write(offset, data)
        self._kept = dict(state.kept)
        if state.records is not None:
            self._records = InflightFile(state.records, self._queue_size)
        self.broken = dict(broken)
        for slot in self.slots:
            if slot.worker is None:
                continue
            try:
                slot.worker.catch_up(self._history(slot.queues, -1))
            except WorkerLost as error:
                self._replace(slot, str(error))

    # Effects.

    def clear_record(self, effect: Effect) -> None:
        """Before a ring is started for the first time: what its record holds is of no concern.

        Not a part of `perform`, for that may be asked for once more after a death: by then the
        record may hold what the ring has done already.
        """
        if not isinstance(effect, effects.StartRing) or effect.setup.inflight is not None:
            return
        setup = effect.setup
        # A ring that could not be drained goes on from its record if it goes on where it stopped.
        if self._kept.pop(setup.index, None) != setup.base:
            self._own_records.clear(setup.index)

    def perform(self, effect: Effect) -> object:
        """Carry out one effect everywhere it matters; the result is what `Step.finish` takes."""
        try:
            return self._perform(effect)
        except (WorkerRefused, WorkerLost, OSError) as error:
            return EffectFailed(str(error))

    def perform_at_end(self, effect: Effect) -> object:
        """The same for what ends a session: a ring has not run yet with a worker that is setting
        up, and nobody waits for that.
        """
        if isinstance(effect, effects.StopRing):
            slot = self._slot_of[effect.index]
            self.heard(slot)  # it may have said that it has set up
            if slot.worker is None or slot.worker.setting_up:
                return 0
        return self.perform(effect)

    def _perform(self, effect: Effect) -> object:
        match effect:
            case effects.ReadConfig(offset=offset, size=size):
                return self.config.read(offset, size)
            case effects.WriteConfig(offset=offset, data=data):
                before = self.config.read(offset, len(data))
                undo = control.WriteConfig(offset=offset, data=before)
                self._everywhere((control.WriteConfig(offset=offset, data=data), ()), (undo, ()))
                self.config.write(offset, data)
            case effects.MakeInflight(num_queues=num_queues, queue_size=queue_size):
                return make_records(num_queues, queue_size)
            case effects.SetMemory() | effects.AddRegion() | effects.RemoveRegion():
                self._everywhere(prepared(effect), undo_memory(effect, self._replay(())))
            case effects.SetFeatures():
                self._everywhere(prepared(effect), None)
            case effects.ResetDevice():
                self._everywhere(prepared(effect), None)
                self.config.reset()
                self._kept.clear()
                self._bases.clear()
                for slot in self.slots:
                    slot.close_breaker()
            case effects.StartRing(setup=setup):
                self.broken.pop(setup.index, None)
                self._slot_of[setup.index].close_breaker()
                self._start_ring(setup)
                self._stopped.discard(setup.index)
            case effects.StopRing(index=index):
                return self._stop_ring(index)
            case (
                effects.EnableRing(index=index)
                | effects.SetKick(index=index)
                | effects.SetCall(index=index)
                | effects.SetErr(index=index)
            ):
                if index not in self.broken:
                    self._tell(index, prepared(effect))
            case _:
                raise WorkerRefused(f"{type(effect).__name__} is not for workers")
        return None

    def settled(self, *, undone: bool) -> None:
        """The step's effects are committed, or (`undone`) rolled back after some were carried out.

        In the second case the workers are ahead of the state; fresh ones are brought to it.
        """
        self._stopped.clear()
        if undone:
            for slot in self.slots:
                self._replace(slot, "its last command was taken back")

    def detach(self) -> None:
        """The session is over: no worker keeps a ring, a mapping or what the driver chose."""
        self.broken.clear()
        self.config.reset()
        for slot in self.slots:
            slot.close_breaker()
            self.heard(slot)
            if slot.worker is not None and slot.worker.setting_up:
                # It has been told of the rings, and that cannot be taken back in time.
                self._replace(slot, "the session is over, and it is setting up still")
        try:
            self._everywhere((control.Detach(), ()), None, only=self._set_up())
        except (WorkerLost, WorkerRefused) as error:
            log.warning("at the end of the session: %s", error)
        self._drop_records()

    def _set_up(self) -> list[WorkerSlot]:
        """The slots with a worker that has set up its queues."""
        return [
            slot for slot in self.slots if slot.worker is not None and not slot.worker.setting_up
        ]

    def renew(self, slot: WorkerSlot) -> None:
        """Replace a worker that is well by the standby; it finishes what is in flight first.

        The standby has set up the queues of this slot.
        """
        successor = self.standby.take(slot.queues)
        try:
            for queue in slot.queues if slot.worker is not None else ():
                self._finish_ring(slot, queue)
        except WorkerLost as error:
            self._reap(slot, str(error))
        except WorkerSetupError as error:
            slot.refuse(error)
        slot.release()
        if slot.unkillable:
            successor.exit(EXIT_DEADLINE)
            return
        slot.assign(successor)
        try:
            successor.catch_up(self._history(slot.queues, -1))
        except WorkerLost as error:
            self._replace(slot, str(error))
        finally:
            slot.tell()

    @staticmethod
    def _finish_ring(slot: WorkerSlot, queue: int) -> None:
        try:
            if slot.worker is not None:
                slot.worker.call(control.StopRing(queue=queue), timeout=STOP_DEADLINE)
        except WorkerRefused:
            pass  # it is not started

    def set_log_level(self, level: int) -> None:
        """What is worth a line, in every worker."""
        try:
            self._everywhere((control.SetLogLevel(level=level), ()), None)
        except (WorkerRefused, WorkerLost) as error:
            log.warning("log level: %s", error)

    def revive(self, queue: int) -> str | None:
        """An operator wants a broken ring served again: from its record. Why not, if not."""
        if queue not in self.broken:
            return f"queue {queue} is not broken"
        slot = self._slot_of[queue]
        slot.close_breaker()
        setup = self._setup(queue)
        cause = self.broken.pop(queue)
        if setup is None:
            return None
        try:
            self._on(queue, self._start(setup))
        except (WorkerRefused, WorkerLost) as error:
            self.broken[queue] = cause
            return str(error)
        return None

    def _start_ring(self, setup: effects.RingSetup) -> None:
        """Start a ring where the front-end says.

        A ring that could not be drained left requests in its record. The one that begins at the
        same place may be another: a guest that was reset while its first request hung starts at 0
        again. Then what was kept does not fit.
        """
        command = self._start(setup, base=setup.base)
        self._bases.pop(setup.index, None)
        try:
            self._on(setup.index, command)
        except Lacking as error:
            # The first that can be had starts it, for it is part of the session's state.
            log.warning("%s", error)
            self._bases[setup.index] = setup.base
        except WorkerRefused as error:
            if setup.inflight is not None or not self._own_records.clear(setup.index):
                raise
            log.warning("queue %d: what was kept for it is forgotten: %s", setup.index, error)
            self._on(setup.index, command)

    def _start(self, setup: effects.RingSetup, *, base: int | None = None) -> Prepared:
        """The command that starts a ring with its record: the front-end's region, or one of ours.

        The record decides by itself whether there is something to recover. `base` is where an empty
        one begins; None: where the ring stopped, for the base of a ring that was started before is
        not where it is by now.
        """
        if setup.inflight is not None:
            return start_ring(setup, setup.inflight.fd, setup.inflight.offset, base)
        return start_ring(setup, *self._own_records.at(setup.index), base)

    @property
    def _own_records(self) -> InflightFile:
        assert self._records is not None, "no session"
        return self._records

    def _drop_records(self) -> None:
        self._kept.clear()
        self._bases.clear()
        records, self._records = self._records, None
        if records is not None:
            records.close()

    def _on(self, queue: int, command: Prepared, *, timeout: float = COMMAND_DEADLINE) -> int:
        """One command to the worker of `queue`, and again to its replacement if it is lost."""
        slot = self._slot_of[queue]
        try:
            return self._staffed(slot).call(*command, timeout=timeout)
        except WorkerLost as error:
            self._replace(slot, str(error), hold=queue)
        try:
            return self._staffed(slot).call(*command, timeout=timeout)
        except WorkerLost as error:
            self._replace(slot, str(error), hold=queue)
            raise

    def _tell(self, queue: int, command: Prepared) -> None:
        """As `_on`, for a command that a later worker learns from the session's state as well: that
        there is none at the moment costs the front-end nothing.
        """
        try:
            self._on(queue, command)
        except NoWorker as error:
            log.debug("%s", error)

    def _everywhere(
        self, command: Prepared, undo: Prepared | None, only: Sequence[WorkerSlot] | None = None
    ) -> None:
        """One command to every worker at once, or those of `only`, as `_tell`. If one refuses,
        `undo` goes to those that obeyed.
        """
        refusal: WorkerRefused | WorkerLost | None = None
        posted: list[tuple[WorkerSlot, int | None]] = []
        for slot in self.slots if only is None else only:
            try:
                posted.append((slot, self._staffed(slot).post(*command)))
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
                self._await(slot, command, serial, max(0.1, deadline - time.monotonic()))
                obeyed.append(slot)
            except (WorkerRefused, WorkerLost) as error:
                refusal = error
        if refusal is None:
            return
        if undo is not None:
            for slot in obeyed:
                self._tell(slot.queues[0], undo)
        raise refusal

    def _await(
        self, slot: WorkerSlot, command: Prepared, serial: int | None, timeout: float
    ) -> None:
        cause = "took no message"
        if serial is not None:
            try:
                self._staffed(slot).wait(serial, timeout=timeout)
                return
            except WorkerLost as error:
                cause = str(error)
        self._replace(slot, cause)
        self._tell(slot.queues[0], command)

    def _stop_ring(self, index: int) -> int:
        """Stop a ring; one that broke and lost its worker goes on, if ever, at its old base."""
        broken = self.broken.pop(index, None)
        if index in self._bases and self._slot_of[index].worker is None:
            self._stopped.add(index)
            base = self._bases.pop(index)
            if self._records is not None and not self._records.is_clear(index):
                self._kept[index] = base
            return base
        setup = self._setup(index)
        try:
            value = self._on(index, prepared(effects.StopRing(index)), timeout=STOP_DEADLINE)
            self._stopped.add(index)
            base = value & 0xFFFF
            if value & control.STOP_KEPT:
                self._kept[index] = base
            return base
        except WorkerRefused:
            if broken is None:
                raise
            return 0 if setup is None else setup.base

    def _setup(self, queue: int) -> effects.RingSetup | None:
        for effect in self._replay((queue,)):
            if isinstance(effect, effects.StartRing) and effect.setup.index == queue:
                return effect.setup
        return None

    # Death and replacement.

    def due(self) -> float | None:
        """Seconds until an empty slot is to be filled, or a worker has taken too long to get ready;
        None if there is none such.
        """
        now = time.monotonic()
        times = [self.standby.due()]
        for slot in self.slots:
            overdue = None if slot.worker is None else slot.worker.overdue
            if slot.worker is None:
                times.append(max(0.0, slot.spawn_at - now))
            elif overdue is not None:
                times.append(overdue)
        return None if min(times) == float("inf") else min(times)

    def tend(self) -> None:
        """Fill the slots whose back-off is over, and end workers that do not get ready; then see to
        the standby.
        """
        now = time.monotonic()
        for slot in self.slots:
            if slot.worker is not None and slot.worker.overdue == 0.0:
                self.heard(slot)  # its answer may be there, unread
            if slot.worker is not None and slot.worker.overdue == 0.0:
                self.died(slot, slot.worker.too_slow())
            if slot.worker is None and slot.spawn_at <= now:
                self._fill(slot)
        self.standby.tend()

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

    def died(self, slot: WorkerSlot, cause: str = "died") -> None:
        """The worker of this slot is to end, or has: log it and have another start."""
        self._reap(slot, cause)
        if slot.spawn_at <= time.monotonic():
            self._fill(slot)

    def _not_set_up(self, slot: WorkerSlot, error: WorkerSetupError) -> None:
        """Another try comes later, unless there were too many."""
        slot.refuse(error)
        if slot.crash_looping:
            self._give_up(slot, str(error))

    def _staffed(self, slot: WorkerSlot) -> WorkerProcess:
        """The worker of a slot, once it is ready. Raises `NoWorker`, `WorkerRefused` if there can
        be none any more, or `WorkerLost`.
        """
        if slot.worker is None:
            self._fill(slot)
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

    def _supplied(self, slot: WorkerSlot) -> None:
        """The worker of this slot is ready, and its rings are where the session has them."""
        slot.supplied()
        for queue in slot.queues:
            self._bases.pop(queue, None)

    def _replace(self, slot: WorkerSlot, cause: str, *, hold: int = -1) -> None:
        self._reap(slot, cause)
        self._fill(slot, hold=hold)

    def _reap(self, slot: WorkerSlot, cause: str) -> None:
        if not slot.reap(cause):
            return
        reason = None
        if slot.unnotified or slot.last_signal is signal.SIGBUS:
            reason = self._truncation(slot)
        if slot.crash_looping:
            reason = f"{BREAKER_DEATHS} deaths without work in between, the last: {slot.causes[-1]}"
        if reason is not None:
            self._give_up(slot, reason)

    def _give_up(self, slot: WorkerSlot, cause: str) -> None:
        """No worker is to touch the rings of this slot: tell the driver in their place."""
        for effect in self._replay(slot.queues):
            if isinstance(effect, effects.StartRing):
                if effect.setup.err is not None and effect.setup.index not in self.broken:
                    effect.setup.err.notify()
                self._break(effect.setup.index, cause)

    def _fill(self, slot: WorkerSlot, *, hold: int = -1) -> None:
        """Have a worker take the slot, and tell it all it must know of the session.

        Its answers are not waited for: a driver waits, and the device may take its time to set up.
        `hold` names a ring that is not to run again before the command that its worker died over.
        """
        if slot.unkillable or self._winding_down:
            slot.tell()
            return
        try:
            slot.spawn().catch_up(self._history(slot.queues, hold))
        except CannotStart as error:
            slot.lacking(error.reason)
        except WorkerLost as error:
            self._reap(slot, str(error))
            slot.spawn_at = max(slot.spawn_at, time.monotonic() + LACK_FIRST_S)
        finally:
            slot.tell()

    def _history(self, queues: tuple[int, ...], hold: int) -> Iterator[Prepared]:
        """What a fresh worker is told: the session's state, each ring from its record."""
        for offset, data in self.config.written():
            yield control.WriteConfig(offset=offset, data=data), ()
        lost_memory = any(queue in self.broken for queue in queues)
        for effect in self._replay(queues):
            match effect:
                case effects.StartRing(setup=setup):
                    if setup.index not in self.broken and setup.index not in self._stopped:
                        enabled = setup.enabled and setup.index != hold
                        base = self._bases.get(setup.index)
                        yield self._start(replace(setup, enabled=enabled), base=base)
                case effects.SetMemory() | effects.AddRegion() if lost_memory:
                    for region in regions_of(effect):
                        if truncation(region) is None:
                            yield prepared(effects.AddRegion(region))
                case _:
                    yield prepared(effect)

    def _truncation(self, slot: WorkerSlot) -> str | None:
        for effect in self._replay(slot.queues):
            for region in regions_of(effect):
                cause = truncation(region)
                if cause is not None:
                    return f"guest memory was truncated: {cause}"
        return None

    def _report(self, worker: int, report: RingBroken | Logged) -> None:
        if isinstance(report, Logged):
            # A worker keeps to bounds of its own; this one is for a worker that does not.
            place = apart(("worker", worker), MASTER_TAKES)
            logging.getLogger("vuproc.device").log(report.level, "%s", report.text, extra=place)
        else:
            self._break(report.queue, report.cause)

    def _break(self, queue: int, cause: str) -> None:
        if queue not in self.broken:
            cause = texts.line(cause, control.CAUSE_BYTES)
            self.broken[queue] = cause
            self._on_broken(queue, cause)
