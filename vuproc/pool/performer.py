"""Carries the session's effects out on the workers of a device, and takes back what it can."""

from __future__ import annotations

from vuproc.pool.asked_translations import AskedTranslations
from vuproc.pool.bells import make_bells
from vuproc.pool.history import History
from vuproc.pool.inflight_file import make_records
from vuproc.pool.orders import Orders
from vuproc.pool.process import TRANSFER_DEADLINE, WorkerLost, WorkerRefused
from vuproc.pool.ring_orders import RingOrders
from vuproc.pool.slot import WorkerSlot
from vuproc.pool.slots import WorkerSlots
from vuproc.spec.ring_layout import layout_of
from vuproc.vhost_user.effects import (
    AddRegion,
    Announce,
    CheckTransfer,
    CloseUserfault,
    Effect,
    EffectFailed,
    EnableRing,
    EndTransfer,
    FindObject,
    ForWorkers,
    GuardMemory,
    InvalidateIotlb,
    KickRing,
    LoadState,
    LogUsedRing,
    MakeBells,
    MakeInflight,
    OpenUserfault,
    ReadConfig,
    RemoveRegion,
    ResetDevice,
    SaveState,
    SetCall,
    SetDisplay,
    SetErr,
    SetFeatures,
    SetKick,
    SetLog,
    SetMemory,
    SetMtu,
    StageMemory,
    StartRing,
    StopRing,
    UpdateIotlb,
    WriteConfig,
)
from vuproc.vhost_user.replay import memory_of
from vuproc.workers.control import CONFIG_QUEUE


class Performer:
    """One effect after the other, each on every worker that it concerns."""

    def __init__(
        self,
        history: History,
        slots: WorkerSlots,
        orders: Orders,
        rings: RingOrders,
        asked: AskedTranslations,
    ) -> None:
        self._history = history
        self._slots = slots
        self._orders = orders
        self._rings = rings
        self._asked = asked

    def perform(self, effect: Effect) -> object:
        """Carry out one effect everywhere it matters; the result is what `Step.finish` takes."""
        try:
            return self._perform(effect)
        except (WorkerRefused, WorkerLost, OSError) as error:
            return EffectFailed(str(error))

    def _perform(self, effect: Effect) -> object:
        match effect:
            case ReadConfig(offset=offset, size=size):
                return self._history.config.read(offset, size)
            case MakeInflight(num_queues=num_queues, record_bytes=record_bytes):
                return make_records(num_queues, record_bytes)
            case FindObject(uuid=uuid):
                return self._history.objects.find(uuid)
            case MakeBells(num_queues=num_queues):
                return make_bells(num_queues)
            case KickRing(fd=fd):
                fd.notify()  # one that takes no more has kicks that the worker has not read
            case StopRing():
                return self._rings.stop(effect)
            case StartRing(setup=setup):
                self._rings.start(setup)
            case (
                EnableRing(index=index)
                | SetKick(index=index)
                | SetCall(index=index)
                | LogUsedRing(index=index)
            ):
                if index not in self._history.broken:
                    self._orders.tell(index, effect)
            case SetErr(index=index):
                if index not in self._history.broken:
                    self._orders.tell(index, effect, wait=effect.barrier)
            case WriteConfig():
                self._write_config(effect)
            case SetMemory() | AddRegion() | RemoveRegion():
                self._orders.give_all(effect, self._memory_before(effect))
            case OpenUserfault():
                return self._orders.give(CONFIG_QUEUE, effect).file
            case StageMemory():
                return self._orders.give(CONFIG_QUEUE, effect).addresses
            case GuardMemory():
                self._orders.give(CONFIG_QUEUE, effect)
            case CloseUserfault():
                self._end_postcopy(effect)
            case SetMtu():
                before = self._history.state.mtu
                self._orders.give_all(effect, (SetMtu(before),))
            case UpdateIotlb():
                self._orders.give_all(effect, (), only=self._askers(effect))
            case InvalidateIotlb():
                self._orders.give_all(effect, ())
            case Announce() | EndTransfer() | SetDisplay():
                self._orders.tell(CONFIG_QUEUE, effect)
            case SaveState() | LoadState():
                # One that is lost over it has moved no byte: it answers first.
                self._orders.give(CONFIG_QUEUE, effect)
            case CheckTransfer():
                self._orders.give(CONFIG_QUEUE, effect, timeout=TRANSFER_DEADLINE)
            case SetFeatures(features=features):
                self._orders.give_all(effect, ())
                if layout_of(features) is not self._history.state.layout:
                    self._history.own_records.forget_all()
            case SetLog():
                self._orders.give_all(effect, (self._history.state.logging,))
            case ResetDevice():
                self._reset(effect)
            case _:
                raise WorkerRefused(f"{type(effect).__name__} is not for workers")
        return None

    def _askers(self, effect: UpdateIotlb) -> list[WorkerSlot] | None:
        """The slots whose workers wait for a translation; None: nobody has asked for it, so that it
        may be for any of them.
        """
        queues = self._asked.take(effect.iova, effect.iova + effect.size - 1)
        return list(dict.fromkeys(map(self._slots.of, queues))) or None

    def _memory_before(self, effect: SetMemory | AddRegion | RemoveRegion) -> list[ForWorkers]:
        """The orders that take a memory change back: the table of the committed state."""
        match effect:
            case AddRegion(region=region):
                return [RemoveRegion(region)]
            case RemoveRegion(region=region):
                return [AddRegion(region)]
            case _:
                return memory_of(self._history.state) or [SetMemory(())]

    def _end_postcopy(self, effect: CloseUserfault) -> None:
        """All of guest memory is there: a worker that took the place of the one which could wait
        for pages has it from now on, as any other.
        """
        history = self._history
        try:
            if not history.userfault_lost:
                self._orders.give(CONFIG_QUEUE, effect)
                return
        except WorkerRefused:
            if not history.userfault_lost:
                raise
        for order in memory_of(history.state):
            self._orders.give(CONFIG_QUEUE, order)
        history.userfault_lost = ""

    def _write_config(self, effect: WriteConfig) -> None:
        """The workers may have it that the driver is to read something else from then on, and say
        so before they obey.
        """
        config = self._history.config
        before = config.state()
        undo = WriteConfig(effect.offset, config.read(effect.offset, len(effect.data)))
        config.write(effect.offset, effect.data)
        try:
            self._orders.give_all(effect, (undo,))
        except BaseException:
            config.back_to(before)
            raise

    def _reset(self, effect: ResetDevice) -> None:
        self._history.shmem.forget()
        if not effect.keeps_state:
            self._history.config.reset()
        self._orders.give_all(effect, ())
        self._history.forget_positions()
        for slot in self._slots:
            slot.close_breaker()
