"""The ring of one virtqueue as its worker has it: set up, stopped, broken.

A queue is *stopped* (no ring), *started*, or *broken* (the driver broke a rule; nothing touches the
ring until the front-end sets it up anew). Behind an IOMMU a started one may have no ring either, as
long as nobody has said where that lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vuproc.device import Device, Resubmit
from vuproc.errors import MemoryFault, RingError
from vuproc.fd import Fd
from vuproc.shm.counters import QueueCounters
from vuproc.shm.dirty import DirtyLog
from vuproc.shm.iotlb import Iotlb
from vuproc.shm.memory import GuestMemory
from vuproc.shm.native import NativeDevice
from vuproc.shm.request import Request
from vuproc.spec.ring_layout import SPLIT, RingLayout
from vuproc.vhost_user.effects import Inflight, RingSetup
from vuproc.workers.queue_fds import QueueFds
from vuproc.workers.queue_log import QueueLog
from vuproc.workers.queue_place import OnMiss, QueuePlace
from vuproc.workers.queue_uring import QueueUring
from vuproc.workers.rings import AnyRing, make_ring

OnSkip = Callable[[Request, str, int], None]


class QueueRing(QueueFds):
    """The ring of virtqueue `index`: as `QueueFds`, and where it lies.

    `on_broken(queue, cause)` is called once for each ring that breaks, after its error descriptor
    was signalled.
    """

    def __init__(
        self,
        index: int,
        device: Device,
        counters: QueueCounters | None,
        chain_limit: int,
        on_skip: OnSkip,
        on_broken: Callable[[int, str], None],
        on_miss: OnMiss = lambda _queue, _misses: None,
    ) -> None:
        super().__init__(index, QueueUring(index, device, counters), counters)
        self.rings = 0
        """Rings that the queue has had."""
        self.waker = -1
        """An eventfd of the loop, for requests that other threads finish."""
        self.native: NativeDevice | None = None
        """What serves the requests, if it is not the device's `handle`."""
        self.pulled = False
        """The device takes the requests by itself."""
        self.held = False
        """An order waits for the ring to be idle."""
        self._device = device
        self._chain_limit = chain_limit
        self._on_skip = on_skip
        self._on_broken = on_broken
        self._layout = SPLIT
        self._log = QueueLog()
        self._place = QueuePlace(index, on_miss)
        self._features = 0

    @property
    def started(self) -> bool:
        """The front-end has started the ring and not stopped it since (a broken one counts)."""
        return self._ring is not None or self._place.waits

    def start(
        self,
        setup: RingSetup,
        layout: RingLayout,
        memory: GuestMemory,
        features: int,
        iotlb: Iotlb | None = None,
    ) -> None:
        """Build the ring over `memory` and mark it for one immediate pass.

        Takes the descriptors of `setup` on success. Raises `MemoryFault` or `RingError`, and then
        has taken none; if the kernel is at work still for a worker that died, the queue has no
        ring. With an `iotlb` the addresses are I/O virtual: the ring is built once all of them are
        known, and breaks if it cannot be.
        """
        inflight = setup.inflight
        if inflight is None:
            raise RingError(self.index, setup.base or 0, "no in-flight record came with it")
        # A ring of our own that is there waits for the kernel by itself. It leaves the record as it
        # is, and before the new one reads it.
        self.drop(keep=True)
        self._layout, self._features = layout, features
        if iotlb is None:
            ring = self._made(setup, inflight, memory, None)
            inflight.fd.close()  # the record is mapped
        self._fds.take(setup)
        self.enabled = setup.enabled
        self.ready = True
        self._log.used_ring = setup.used_log
        if iotlb is None:
            self._go_on(ring, setup, memory)
        else:
            self._place.begin(setup, layout, memory, iotlb)
            self._find_place()

    def _made(
        self, setup: RingSetup, inflight: Inflight, memory: GuestMemory, iotlb: Iotlb | None
    ) -> AnyRing:
        """A ring at user addresses. Raises `MemoryFault` or `RingError`."""
        ring = make_ring(
            self._layout,
            setup,
            inflight,
            memory,
            features=self._features,
            chain_limit=max(self._chain_limit, setup.size),
            counters=self._counters,
            iotlb=iotlb,
        )
        ring.resubmit = resubmit_of(self._device, self.index)
        ring.on_skip = self._on_skip
        try:
            record_bytes = self._layout.record_bytes(setup.size)
            self._uring.open(ring, self.native, setup.size, inflight, record_bytes)
        except RingError:
            ring.stop(keep=True)
            raise
        return ring

    def _go_on(self, ring: AnyRing, setup: RingSetup, memory: GuestMemory) -> None:
        """Have this ring from now on."""
        self._ring = ring
        self.rings += 1
        desc = setup.desc, self._layout.desc.length(setup.size)
        avail = setup.avail, self._layout.avail.length(setup.size)
        self.unshared.begin((desc, avail), memory, enabled=self.enabled)
        if self.pulled and self.native is not None:
            ring.pulled_by(self.native)
        self.let_be_pulled()
        ring.set_call(self._fds.call_number)
        ring.waker = self.waker
        self._apply_log()

    def let_be_pulled(self) -> None:
        """Have the ring say to a native device that pulls whether it may."""
        if self._ring is not None:
            self._ring.may_be_pulled = self.active and not self.held

    def set_enabled(self, enabled: bool) -> None:
        """Enable or hold the ring."""
        super().set_enabled(enabled)
        self.let_be_pulled()

    def stop(self, *, keep: bool = False) -> tuple[int, int]:
        """Stop the ring: its base, and the number of requests that its record still holds. `keep`:
        the record says where the ring is from then on, too.

        Those are what the device has in its hands, if nobody has waited for it, or what a ring has
        left that never got to run after its worker died.
        """
        ring = self._ring
        if ring is None:
            stopped = self._place.stopped_at() if self._place.waits else (0, 0)
            self.drop()
            return stopped
        if not self._broken:
            ring.publish()
        self._mark_ring()
        base = ring.stop(keep=keep)
        kept = 0 if self._broken else ring.kept
        self.drop()
        # Whoever goes on without the record must fetch them again, so the base is where they begin;
        # whoever has the record reckons for itself.
        return self._layout.earlier(base, kept), kept

    def drop(self, *, keep: bool = False) -> None:
        """Forget the ring and close its descriptors without touching guest memory."""
        if self._ring is not None:
            self._ring.set_call(-1)
            self._ring.stop(keep=keep)
            self._ring = None
        self._fds.close()
        self._uring.close()
        self._place.end()
        self.unshared.end()
        self._broken = False
        self.ready = False

    def log_writes(self, log: DirtyLog | None, call: Fd | None) -> None:
        """Mark in `log` what is written from now on, by rings that start later too, and signal
        `call` (borrowed); None: nowhere. A ring breaks if its driver spoilt what is in flight.
        """
        self._log.log, self._log.call = log, call
        self._apply_log()

    def log_used_ring(self, address: int | None) -> None:
        """The same for writes to the used ring of this start; None: they are not logged."""
        self._log.used_ring = address
        self._apply_log()

    def _apply_log(self) -> None:
        if self._ring is None or self._broken:
            return
        # Behind an IOMMU it is not known from the front-end where the used ring is: QEMU says its
        # I/O virtual address. `_mark_ring` marks it.
        used_ring = None if self._place.iotlb is not None else self._log.used_ring
        try:
            self._log.apply(self._ring, used_ring)
        except RingError as error:
            self.break_ring(str(error))
        self._mark_ring()

    def _mark_ring(self) -> None:
        """Behind an IOMMU: mark what of the ring was written to, in a turn or before one's end."""
        log = self._log.log
        if log is not None and self._place.iotlb is not None and self._log.used_ring is not None:
            self._place.mark(log)

    def rebind(self, memory: GuestMemory) -> None:
        """Move the ring to a changed memory table; it breaks if that lacks its addresses."""
        self._place.remember(memory)
        self._find_place()
        if self._ring is None or self._broken:
            return
        memory, find_anew = self._place.moved(memory)
        if find_anew and not self._ring.in_flight:
            self._lose_place(self._ring)
            return
        self.unshared.rebind(memory)
        try:
            self._ring.rebind(memory)
        except (RingError, MemoryFault) as error:
            self.break_ring(str(error))

    # Behind an IOMMU.

    def _find_place(self) -> None:
        """Have the ring that waits for it, if it is known by now where it lies; else ask."""
        if not self._place.waits or self._broken:
            return
        try:
            found = self._place.find()
            if found is not None:
                setup, memory = found
                assert setup.inflight is not None
                ring = self._made(setup, setup.inflight, memory, self._place.iotlb)
                self._place.waits = False
                self._place.settled()
                self._go_on(ring, setup, memory)
                self.ready = True
        except (RingError, MemoryFault) as error:
            self.break_ring(str(error))
        self._place.ask()

    def _lose_place(self, ring: AnyRing) -> None:
        """The ring is idle, and has to be found again."""
        ring.publish()
        self._mark_ring()
        # The record stays in use: whoever comes after us, and cannot look at the ring either, has
        # its position from there.
        base = ring.stop(keep=True)
        self._ring = None
        self._uring.close()
        self.unshared.end()
        self._place.lost(base, ring.kept)
        self._find_place()

    def break_ring(self, cause: str) -> None:
        """Stop touching the ring for good, tell the front-end by the error descriptor and the
        master by message.
        """
        if self._broken or not self.started:
            return
        self._broken = True
        self.unshared.end()
        self.ready = False
        self._place.settled()
        if self._ring is not None:
            # Not only if its content broke it: what the device still finishes must not be shown.
            self._ring.stop()
        self._fds.signal_err()
        self._on_broken(self.index, cause)
        self._uring.close()


def resubmit_of(device: Device, queue: int) -> Resubmit:
    """What becomes of a dead worker's requests on this queue."""
    chosen = device.resubmit
    return chosen.get(queue, "run") if isinstance(chosen, Mapping) else chosen
