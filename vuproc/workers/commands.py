"""Carries out the master's orders on the queues of one worker: one arm an order."""

from __future__ import annotations

import logging
from collections.abc import Callable
from uuid import UUID

from vuproc import texts
from vuproc.device import Device
from vuproc.display import Display, DisplayDevice
from vuproc.fd import Fd
from vuproc.mapping import MappingDevice, ShmemMapping
from vuproc.sharing import SharingDevice
from vuproc.shm.dirty import DirtyLog
from vuproc.shm.iotlb import Iotlb
from vuproc.shm.memory import GuestMemory
from vuproc.spec.ring_layout import layout_of
from vuproc.spec.virtio import Feature
from vuproc.vhost_user.effects import (
    AddRegion,
    Announce,
    CheckTransfer,
    CloseUserfault,
    EnableRing,
    EndTransfer,
    GuardMemory,
    Idle,
    InvalidateIotlb,
    LoadState,
    LogArea,
    LogUsedRing,
    OpenUserfault,
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
from vuproc.workers.config_report import ConfigReport
from vuproc.workers.control import (
    AnyOrder,
    AskConfig,
    BlameUring,
    Command,
    Detach,
    Done,
    Exit,
    ObjectFound,
    Refusal,
    SetLogLevel,
    ShmemDone,
    ShmemKnown,
    Untranslated,
)
from vuproc.workers.device_code import DeviceCode
from vuproc.workers.poller import Watcher
from vuproc.workers.queue import Queue
from vuproc.workers.shmem import HELD, ShmemRequests
from vuproc.workers.state_transfer import StateTransfer
from vuproc.workers.worker_memory import WorkerMemory


class Leave(Exception):
    """The process is to end, with the exit code `code`."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Commands:
    """The orders' side of a worker: guest memory, features and rings, as the master says."""

    def __init__(self, device: Device, code: DeviceCode, watcher: Watcher) -> None:
        self.queues: dict[int, Queue] = {}
        self.config: ConfigReport | None = None
        """In the worker that speaks for the configuration space."""
        self.transfer: StateTransfer | None = None
        """In the same one."""
        self.shmem: ShmemRequests | None = None
        self._device = device
        self._code = code
        self._watcher = watcher
        self._memory = WorkerMemory(self._rebind)
        self._features = 0
        self._iotlb: Iotlb | None = None
        self._mtu = 0
        self._log_call: Fd | None = None
        self._display: Display | None = None

    def begin(self, order: AnyOrder) -> None:
        """The order is the next to be carried out: have the device give back what it keeps."""
        if isinstance(order, CheckTransfer) and self.transfer is not None:
            self.transfer.hurry()
        for queue in self._concerned(order):
            if queue.started:
                queue.hold()
                self._code.hook(self._device.ring_stopping, queue.index)
        if self.waits_for(order):
            # What is in flight may wait for the front-end, and that for us.
            if self.shmem is not None:
                self.shmem.hold()
            if self._display is not None:
                self._display.hold(HELD)

    def waits_for(self, order: AnyOrder) -> bool:
        """Whether a ring that the order concerns has requests in flight still, or the transfer that
        it asks for is under way.
        """
        if isinstance(order, StopRing) and not order.drains:
            return False
        if isinstance(order, CheckTransfer):
            return self.transfer is not None and self.transfer.moving
        if isinstance(order, InvalidateIotlb):
            return bool(self._concerned(order))
        return any(queue.in_flight for queue in self._concerned(order))

    def readmit(self) -> None:
        """Orders are carried out: what the device gave back may come to it again."""
        if self._memory.unacknowledged:
            return  # the front-end is about to say that it knows of the new table
        if self.shmem is not None:
            self.shmem.release()
        if self._display is not None:
            self._display.release()
        for queue in self.queues.values():
            queue.readmit()

    def _concerned(self, order: AnyOrder) -> list[Queue]:
        """The queues whose rings must be idle before the order."""
        match order.needs_idle:
            case Idle.EVERY_RING:
                return list(self.queues.values())
            case Idle.ITS_RING if isinstance(order, StopRing) and order.index in self.queues:
                return [self.queues[order.index]]
            case Idle.ITS_USERS if isinstance(order, InvalidateIotlb):
                queues = self.queues.values()
                return [queue for queue in queues if queue.uses(order.first, order.last)]
            case _:
                return []

    def _look_at_config(self) -> None:
        if self.config is not None:
            self.config.look()

    def carry_out(self, command: Command) -> Done:
        """Carry out one command; returns the answer.

        Raises Refusal, RingError, MemoryFault or OSError if it cannot be, and Leave for `Exit`.
        """
        value, kept = 0, 0
        file: Fd | None = None
        addresses: tuple[int, ...] = ()
        order = command.order
        match order:
            case SetFeatures(features=features):
                self._features = features
                self._iotlb = Iotlb() if features & Feature.ACCESS_PLATFORM else None
                self._code.hook(self._device.features_acked, features)
            case SetMemory(regions=regions):
                self._memory.replace(regions)
            case AddRegion(region=region):
                self._memory.add(region)
            case RemoveRegion(region=region):
                self._memory.remove(region)
            case OpenUserfault():
                file = self._memory.open_userfault()
            case StageMemory(regions=regions):
                addresses = self._memory.stage(regions)
            case GuardMemory():
                self._memory.guard()
            case CloseUserfault():
                self._memory.close_userfault()
            case StartRing(setup=setup):
                queue = self._queue(setup.index)
                queue.unwatch_in(self._watcher)
                layout, features = layout_of(self._features), self._features
                queue.start(setup, layout, self._memory.table, features, self._iotlb)
                if not queue.broken:
                    queue.watch_in(self._watcher)
                self._code.hook(self._device.ring_started, setup.index)
                self._code.hook(self._device.ring_enabled, setup.index, queue.enabled)
            case StopRing():
                value, kept = self._stop(order)
            case EnableRing(index=index, enabled=enabled):
                self._queue(index).set_enabled(enabled)
                self._code.hook(self._device.ring_enabled, index, enabled)
            case SetKick(index=index, fd=fd):
                self._set_kick(self._queue(index), fd)
            case SetCall(index=index, fd=fd):
                self._queue(index).set_call(fd)
            case SetErr(index=index, fd=fd):
                self._queue(index).set_err(fd)
            case SetLog(area=area, call=call):
                self._set_log(area, call)
            case LogUsedRing(index=index, address=address):
                self._queue(index).log_used_ring(address)
            case UpdateIotlb():
                self._update_iotlb(order)
            case InvalidateIotlb(first=first, last=last):
                if self._iotlb is not None:
                    self._iotlb.invalidate(first, last)
                self._for_each(lambda queue: queue.invalidated(first, last))
            case Untranslated(queue=index, iova=iova, access=access):
                self._queue(index).untranslated((iova, access))
            case WriteConfig(offset=offset, data=data):
                self._write_config(offset, data)
                if self.config is not None:
                    self.config.written(len(data))
            case SetMtu(mtu=mtu):
                self._set_mtu(mtu)
            case Announce(mac=mac):
                self._code.hook(self._device.announce, mac)
            case SetDisplay(fd=fd):
                self._set_display(fd)
            case SaveState() | LoadState() | CheckTransfer() | EndTransfer():
                if self.transfer is None:
                    raise Refusal("the worker of queue 0 has the device's state")
                self.transfer.carry_out(order)
            case ResetDevice(keeps_state=keeps_state):
                self._features, self._iotlb = 0, None
                if not keeps_state:
                    self._end_transfer()
                    self._code.hook(self._device.reset)
                    self._look_at_config()
            case AskConfig(said=said):
                if said and self.config is not None:
                    self.config.repeat()
                self._look_at_config()
            case ObjectFound(uuid=uuid, file=file):
                self._object_found(UUID(bytes=uuid), file)
            case ShmemDone(serial=serial, problem=problem):
                if self.shmem is not None:
                    self.shmem.answered(serial, problem)
            case ShmemKnown(mappings=mappings):
                self._shmem_known(mappings)
            case BlameUring(queue=index, looks=looks):
                value = self._queue(index).blame(looks)
            case SetLogLevel(level=level):
                logging.getLogger("vuproc").setLevel(level)
            case Detach():
                self.detach()
                self._look_at_config()
            case Exit():
                self.detach()
                self._code.hook(self._device.teardown)
                raise Leave(0)
            case _:
                raise Refusal(f"{type(order).__name__} does not belong here")
        return Done(command.serial, value, kept, file, addresses)

    def detach(self) -> None:
        """The session is over: drop every ring and all guest memory, without touching it."""
        for queue in self.queues.values():
            queue.unwatch_in(self._watcher)
            queue.drop(keep=True)
            queue.enabled = False
            queue.unshared.said = False
        self._log_in(None, None)
        self._end_transfer()
        if self.shmem is not None:
            self.shmem.end()
        self._close_display()
        self._memory.drop()
        self._features, self._iotlb = 0, None
        if self._mtu:
            self._mtu = 0
            self._code.hook(self._device.mtu_changed, 0)
        self._code.hook(self._device.reset)

    def _queue(self, index: int) -> Queue:
        try:
            return self.queues[index]
        except KeyError:
            raise Refusal(f"queue {index} is not served by this worker") from None

    def _rebind(self, memory: GuestMemory) -> None:
        self._for_each(lambda queue: queue.rebind(memory))

    def _update_iotlb(self, order: UpdateIotlb) -> None:
        if self._iotlb is None:
            return
        self._iotlb.update(order.iova, order.size, order.user_addr, order.access)
        last = order.iova + order.size - 1
        if order.access:
            self._for_each(lambda queue: queue.translated(order.iova, last))

    def _for_each(self, change: Callable[[Queue], None]) -> None:
        """Do what may end the ring of a queue, or begin it, and with it what the loop waits for."""
        for queue in self.queues.values():
            before = queue.rings
            change(queue)
            if queue.rings != before and not queue.broken:
                queue.unwatch_in(self._watcher)
                queue.watch_in(self._watcher)

    def _set_log(self, area: LogArea | None, call: Fd | None) -> None:
        if area is None:
            self._log_in(None, call)
            return
        log = DirtyLog(area.fd.fileno(), area.size, area.offset)
        area.fd.close()  # it is mapped
        self._log_in(log, call)

    def _log_in(self, log: DirtyLog | None, call: Fd | None) -> None:
        for queue in self.queues.values():
            queue.log_writes(log, call)
        old, self._log_call = self._log_call, call
        if old is not None:
            old.close()

    def _stop(self, order: StopRing) -> tuple[int, int]:
        queue = self._queue(order.index)
        if not queue.started:
            raise Refusal(f"queue {order.index} is not started")
        queue.unwatch_in(self._watcher)
        stopped = queue.stop(keep=order.keeps_record)
        self._code.hook(self._device.ring_stopped, order.index)
        return stopped

    def _set_kick(self, queue: Queue, fd: Fd | None) -> None:
        queue.unwatch_in(self._watcher)
        old = queue.set_kick(fd)
        if old is not None:
            old.close()
        queue.watch_in(self._watcher)

    def _object_found(self, uuid: UUID, file: Fd | None) -> None:
        if isinstance(self._device, SharingDevice):
            self._code.hook(self._device.object_found, uuid, file)
        elif file is not None:
            file.close()

    def _end_transfer(self) -> None:
        if self.transfer is not None:
            self.transfer.end()

    def _set_display(self, fd: Fd) -> None:
        self._close_display()
        if isinstance(self._device, DisplayDevice):
            self._display = Display(self._device, fd, self._code.hook)
            self._code.hook(self._device.display_connected, self._display)
        else:
            fd.close()

    def _close_display(self) -> None:
        display, self._display = self._display, None
        if display is not None:
            display.close()

    def _shmem_known(self, mappings: tuple[ShmemMapping, ...]) -> None:
        if isinstance(self._device, MappingDevice):
            self._code.hook(self._device.shmem_recovered, mappings)

    def _set_mtu(self, mtu: int) -> None:
        try:
            with self._code.in_hook():
                self._device.mtu_changed(mtu)
            self._mtu = mtu
        except Exception as error:
            raise Refusal(f"mtu_changed: {texts.described(error)}") from error

    def _write_config(self, offset: int, data: bytes) -> None:
        try:
            with self._code.in_hook():
                self._device.config_written(offset, data)
        except Exception as error:
            raise Refusal(f"config_written: {texts.described(error)}") from error
