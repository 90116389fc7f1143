"""A guest without a guest: a front-end connection, memory and virtqueues, ready for requests."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack

from vuproc.spec.vhost_user import VRING_ADDR_F_LOG, VRING_NO_FD, ProtocolFeature
from vuproc.spec.virtio import Feature, Status
from vuproc.testing.bell import BellKind
from vuproc.testing.dirty import DirtyBitmap
from vuproc.testing.errors import NotOffered
from vuproc.testing.frontend import FrontEnd
from vuproc.testing.inband import InbandCall, InbandKick
from vuproc.testing.iommu import Iommu
from vuproc.testing.job import Job, Stats
from vuproc.testing.memory import Ram, RamRegion
from vuproc.testing.queue import Completion, DriverQueue

DRIVER_READY = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK
_MOVES_STATE = ProtocolFeature.DEVICE_STATE | ProtocolFeature.RESET_DEVICE


class Guest:
    """A VMM and its guest's driver, as far as a device can tell.

    path: the device's socket, or a connected socket. queues: how many to set up. memory: the
    guest's RAM, owned from then on, or its size in bytes. features: device features to accept,
    None for all that is offered, less `without`. packed: use packed rings, which without it are
    taken only if `features` has RING_PACKED. call: what the call descriptors are. kick: what
    the kick descriptors are, None for a device that polls. channel: open the back-end channel, as
    QEMU does, for `wait_config_change`. inband: kicks and calls are messages, if the
    back-end offers that; the channel is open then. iommu: put one between the memory and the
    device, if the back-end offers that; the channel is open then, and the IOMMU alone listens to
    it. guest_addresses: tell where rings and regions lie by guest-physical addresses. start:
    negotiate, tell the memory and start every queue at once; else do it with `setup`,
    `start_queue`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | socket.socket,
        *,
        queues: int = 1,
        queue_size: int = 128,
        memory: Ram | int = 16 << 20,
        features: int | None = None,
        protocol_features: ProtocolFeature | None = None,
        without: int = 0,
        packed: bool = False,
        call: BellKind = BellKind.EVENTFD,
        kick: BellKind | None = BellKind.EVENTFD,
        channel: bool = False,
        inband: bool = False,
        iommu: bool = False,
        guest_addresses: bool = False,
        start: bool = True,
        timeout_s: float = 30.0,
    ) -> None:
        self.timeout_s = timeout_s
        self._call = call
        self._kick = kick
        self._packed = packed
        self._channel = channel or inband or iommu
        self._inband = inband
        self._queue_size = queue_size
        self.queues: dict[int, DriverQueue] = {}
        with ExitStack() as undo:
            self.ram = memory if isinstance(memory, Ram) else Ram(memory)
            undo.callback(self.ram.close)
            self.front_end = FrontEnd(
                path, timeout_s=timeout_s, translates=iommu, guest_addresses=guest_addresses
            )
            self.iommu = Iommu(self.front_end) if iommu else None
            undo.callback(self.close)
            if start:
                self.setup(features, protocol_features, without=without)
                for index in range(queues):
                    self.start_queue(index)
                self.set_status(DRIVER_READY)
            undo.pop_all()

    # Setting up.

    def setup(
        self,
        features: int | None = None,
        protocol_features: ProtocolFeature | None = None,
        *,
        without: int = 0,
    ) -> None:
        """Negotiate, open the channel if it is wanted, and tell the back-end of the memory.

        Raises NotOffered if the guest was to use packed rings, or to have an IOMMU, and the device
        does not.
        """
        if self._packed:
            features = None if features is None else features | Feature.RING_PACKED
        elif features is None:
            without |= Feature.RING_PACKED
        self.front_end.negotiate(features, protocol_features, without=without)
        if self._packed and not self.packed:
            raise NotOffered("RING_PACKED")
        if self.iommu is not None and not self.front_end.features & Feature.ACCESS_PLATFORM:
            raise NotOffered("ACCESS_PLATFORM")
        if self._channel:
            channel = self.front_end.open_channel()
            if self.iommu is not None:
                self.iommu.listen(channel)
        self.set_status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
        self.front_end.set_memory(self.ram.regions)

    @property
    def packed(self) -> bool:
        """Whether rings are packed: RING_PACKED was acknowledged."""
        return bool(self.front_end.features & Feature.RING_PACKED)

    def start_queue(
        self, index: int, *, size: int | None = None, base: int | None = None
    ) -> DriverQueue:
        """Make a new ring for queue `index`, tell the back-end of it, start and enable it."""
        queue = self.make_queue(index, size=size, base=base)
        self.configure_queue(queue)
        self.kick_queue(queue)
        self.enable_queue(index)
        return queue

    def make_queue(
        self, index: int, *, size: int | None = None, base: int | None = None
    ) -> DriverQueue:
        """A new ring for queue `index` in place of an earlier one; the back-end is not told.

        base: where both sides stand, as SET_VRING_BASE has it; None: at the very beginning.
        """
        queue = DriverQueue(
            self.ram,
            index,
            self._queue_size if size is None else size,
            packed=self.packed,
            base=base,
            event_idx=bool(self.front_end.features & Feature.EVENT_IDX),
            call=InbandCall(self.front_end, index) if self._inband else self._call,
            kick=InbandKick(self.front_end, index) if self._inband else self._kick,
            iommu=self.iommu,
            guest_addresses=self.front_end.guest_addresses,
        )
        earlier = self.queues.get(index)
        self.queues[index] = queue
        if earlier is not None:
            earlier.close()
        return queue

    def configure_queue(self, queue: DriverQueue) -> None:
        """SET_VRING_NUM, BASE, ADDR, ERR and CALL: all but the message that starts the ring."""
        request = self.front_end.request
        request("SET_VRING_NUM", index=queue.index, num=queue.size)
        request("SET_VRING_BASE", index=queue.index, num=queue.base)
        self.tell_addresses(queue)
        if isinstance(queue.call_bell, InbandCall):
            return
        request("SET_VRING_ERR", [queue.err_bell.theirs], value=queue.index)
        request("SET_VRING_CALL", [queue.call_bell.theirs], value=queue.index)

    def tell_addresses(self, queue: DriverQueue, *, logged: bool | None = None) -> None:
        """SET_VRING_ADDR. logged: writes to the used ring, too; None: while all others are."""
        if logged is None:
            logged = bool(self.front_end.features & Feature.LOG_ALL)
        self.front_end.request(
            "SET_VRING_ADDR",
            index=queue.index,
            flags=VRING_ADDR_F_LOG if logged else 0,
            desc=queue.desc,
            avail=queue.avail,
            used=queue.used,
            log=queue.used_guest_addr,
        )

    def log_writes(self, log: DirtyBitmap | None) -> None:
        """Have the back-end mark in `log` what it writes, on rings that run, as QEMU does when a
        migration begins; None: it has ended.
        """
        if log is not None:
            self.front_end.set_log(log)
        self.front_end.log_writes(log is not None)
        for queue in self.queues.values():
            self.tell_addresses(queue)

    def kick_queue(self, queue: DriverQueue) -> None:
        """SET_VRING_KICK, which starts a configured ring; in-band, SET_VRING_ENABLE does."""
        if isinstance(queue.kick_bell, InbandKick):
            return
        if queue.kick_bell is None:
            self.front_end.request("SET_VRING_KICK", value=queue.index | VRING_NO_FD)
        else:
            self.front_end.request("SET_VRING_KICK", [queue.kick_bell.theirs], value=queue.index)

    def enable_queue(self, index: int, enabled: bool = True) -> None:
        """SET_VRING_ENABLE."""
        self.front_end.request("SET_VRING_ENABLE", index=index, num=int(enabled))

    def stop_queue(self, index: int, *, drain: bool = True) -> int:
        """GET_VRING_BASE: the back-end finishes what is in flight and stops; the ring's base.

        drain: False leaves what is in flight in the in-flight region (GET_VRING_BASE_SKIP_DRAIN).
        """
        name = "GET_VRING_BASE" if drain else "GET_VRING_BASE_SKIP_DRAIN"
        return int(self.front_end.request(name, index=index)["num"])

    def reset(self) -> None:
        """Reset the device as a driver does, and set the same queues up anew."""
        for index in self.queues:
            self.stop_queue(index)
        self.set_status(0)
        if _MOVES_STATE in self.front_end.protocol_features:
            # Without it the device might just be suspended.
            self.front_end.request("RESET_DEVICE")
        self.front_end.set_features(self.front_end.features)
        self.set_status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
        for index, queue in list(self.queues.items()):
            self.start_queue(index, size=queue.size)
        self.set_status(DRIVER_READY)

    def add_memory(self, region: RamRegion) -> None:
        """ADD_MEM_REG; the region is owned from then on and used for new blocks."""
        self.ram.regions.append(region)
        self.front_end.add_region(region)

    def set_status(self, status: int) -> None:
        """SET_STATUS, where the back-end has it; 0 resets the device."""
        if ProtocolFeature.STATUS in self.front_end.protocol_features:
            self.front_end.set_status(status)

    def status(self) -> int:
        """GET_STATUS."""
        return self.front_end.get_status()

    def config(self, size: int = 256) -> bytes:
        """The first `size` bytes of the configuration space, zero past its end."""
        return self.front_end.get_config(0, size)

    def wait_config_change(self, timeout_s: float | None = None, *, size: int = 256) -> bytes:
        """Wait until the back-end announces a change of the configuration space; its new content.

        Needs `channel=True`. Each announcement is waited for once, one that came before the call
        too. Returns `size` bytes, zero past the space's end. Raises NoConfigChange.
        """
        return self.front_end.wait_config_change(timeout_s, size=size)

    # Requests.

    def submit(
        self,
        queue: int = 0,
        out: Sequence[bytes] = (),
        in_: Sequence[int] = (),
        *,
        indirect: bool = False,
    ) -> tuple[int, int]:
        """Offer one chain on `queue` and kick if asked for; returns what `wait` takes.

        out: the readable segments' content. in_: the writable segments' sizes in bytes.
        """
        return queue, self.queues[queue].submit(out, in_, indirect=indirect)

    def wait(self, token: tuple[int, int], timeout_s: float | None = None) -> Completion:
        """Sleep on the call descriptor until the request is completed. Raises NoCompletion."""
        queue, serial = token
        return self.queues[queue].wait(serial, self.timeout_s if timeout_s is None else timeout_s)

    def do(
        self,
        queue: int = 0,
        out: Sequence[bytes] = (),
        in_: Sequence[int] = (),
        *,
        indirect: bool = False,
        timeout_s: float | None = None,
    ) -> Completion:
        """Submit one request and wait for it."""
        return self.wait(self.submit(queue, out, in_, indirect=indirect), timeout_s)

    def keep_filled(self, queue: int = 0, *, count: int, size: int) -> None:
        """Keep `count` writable buffers of `size` bytes on `queue` for the device to write into."""
        self.queues[queue].keep_filled(count, size)

    def receive(self, queue: int = 0, timeout_s: float | None = None) -> bytes:
        """What the device wrote into the next buffer of `keep_filled`. Raises NoCompletion."""
        return self.queues[queue].receive(self.timeout_s if timeout_s is None else timeout_s)

    def load(self, queue: int, job: Job) -> Stats:
        """Run many requests on one queue from native code. Raises LoadStalled, BackendFault."""
        return self.queues[queue].load(job)

    def close(self) -> None:
        """Disconnect without a word and give everything back."""
        if self.iommu is not None:
            self.iommu.close()
        self.front_end.close()
        for queue in self.queues.values():
            queue.close()
        self.ram.close()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
