"""One virtqueue as its worker serves it: in turns, while it is started, enabled and not held by a
memory change.
"""

from __future__ import annotations

from collections.abc import Callable
from mmap import mmap

from vuproc.device import Device, serves_batches
from vuproc.errors import RingError
from vuproc.options import Options
from vuproc.shm.counters import QueueCounters
from vuproc.shm.kick_wait import KickWait
from vuproc.shm.request import Request
from vuproc.shm.ring import SLICE_NS
from vuproc.shm.spin import Spin
from vuproc.workers.queue_iommu import QueueIommu
from vuproc.workers.queue_place import OnMiss
from vuproc.workers.queue_ring import OnSkip
from vuproc.workers.rings import AnyRing
from vuproc.workers.throttle import Throttle, throttle_of

BUDGET = 256
"""Requests served in one turn if queues wait for each other's, or asyncio's tasks for its end."""
MOST = 65536
"""The same else: then it is the time that ends a turn, before other queues and watched descriptors
get theirs. A command of the master ends it sooner.
"""
ALONE_NS = 10_000_000
"""The longest turn if nobody else waits for one. A command ends it, and who comes to wait for its
end (`hurry`) has it end after SLICE_NS.
"""

OnError = Callable[[Request, BaseException], None]


class Queue(QueueIommu):
    """Serves virtqueue `index` in its worker: as `QueueIommu`, in turns.

    `on_available(queue)` is called if the device pulls and there is something: whether to call it
    again at once.
    """

    def __init__(
        self,
        index: int,
        device: Device,
        counters: QueueCounters | None,
        chain_limit: int,
        on_error: OnError,
        on_skip: OnSkip,
        on_broken: Callable[[int, str], None],
        on_available: Callable[[int], bool] = lambda _queue: False,
        on_miss: OnMiss = lambda _queue, _misses: None,
    ) -> None:
        super().__init__(index, device, counters, chain_limit, on_skip, on_broken, on_miss)
        self.handle: Callable[[Request], object] = device.handle
        self._throttle: Throttle | None = None
        """What limits it, if anything does."""
        self._by_batch = serves_batches(device)
        self._on_error = on_error
        self._on_available = on_available

    def limit(self, options: Options, shared: mmap | None) -> None:
        """Serve no more than the options allow; `shared` is what the device's workers share for
        that. Queues that are pulled from are exempt.
        """
        self._throttle = throttle_of(
            self.index, lambda: self.in_flight, self._counters, options, shared
        )

    @property
    def finishes_later(self) -> bool:
        """The native device, or the kernel for it, goes on with requests between two turns."""
        return self.native is not None and (
            self._uring.completions >= 0 or self.native.completion_fd >= 0
        )

    @property
    def hits(self) -> int:
        """How often looks before a sleep have found something in this ring."""
        return 0 if self._ring is None else self._ring.hits

    @property
    def in_flight(self) -> int:
        """Requests which the device has fetched and not finished."""
        return 0 if self._ring is None or self._broken else self._ring.in_flight

    def run(self, spin_ns: int = 0, slice_ns: int = SLICE_NS, budget: int = BUDGET) -> None:
        """Serve up to `budget` requests, and look for more for `spin_ns` before the driver is asked
        to kick; sets `ready` if more may be waiting. slice_ns: the longest turn.
        """
        ring = self._ring
        if ring is None or not self.active:
            self.ready = False
            return
        native = MOST
        if self._throttle is not None and not self.pulled:
            # It gets no more than there is: what is left over would be lost to other queues.
            native = budget = self._throttle.grant(min(budget, max(1, ring.waiting)))
            if not budget:
                self.ready = False
                return
            spin_ns = 0
        try:
            # What the device gave back without a stop gets another try with each turn.
            ring.readmit()
            if self.pulled:
                # Nothing may be taken, for a long time.
                ring.call_after_death()
                more = self._announce(ring)
            elif self.native is not None:
                more = ring.serve_native(self.native, self._on_error, native, spin_ns, slice_ns)
            else:
                if self._by_batch:
                    ring.drain_batch(self._device.handle_batch, self._on_error, budget, slice_ns)
                else:
                    ring.drain(self.handle, self._on_error, budget, slice_ns)
                more = ring.pending or (spin_ns > 0 and ring.spin(spin_ns))
            self.ready = more or ((not ring.pending or not self.pulled) and ring.arm())
            self._note_missing(ring)
        except RingError as error:
            self.break_ring(str(error))
        if self._throttle is not None and not self.pulled:
            self._throttle.account(budget)
        self._mark_ring()

    def sleep(self, kicks: KickWait, spin: Spin, due: float | None, slice_ns: int) -> bool:
        """Sleep until something happens, at most `due` seconds; whether it was a kick, which makes
        the queue `ready`. Else there may be anything. Native requests that kicks announce are
        served meanwhile, in turns of `slice_ns` at most. For a queue that is `quiet`.
        """
        ring = self._ring
        assert ring is not None
        if self.native is None or not ring.quiet:
            self.ready = kicks.wait(self._counters, self.kick_number, spin, due, ring.hits)
            return self.ready
        try:
            self.ready = kicks.serve(ring, self.kick_number, spin, due, MOST, slice_ns)
        except RingError as error:
            self.break_ring(str(error))
        return False

    @property
    def quiet(self) -> bool:
        """Whether a kick says no more than that there are requests."""
        return (
            self.kick_number >= 0
            and self.active
            and not self.pulled
            and self._place.iotlb is None
            and self.unshared.done
            and self._throttle is None
        )

    def _announce(self, ring: AnyRing) -> bool:
        """Tell a device that pulls of what there is. What it leaves there asks for no kick."""
        return ring.pending and self._on_available(self.index)

    def take(self) -> Request | None:
        """The next request for a device that pulls; None: there is none, or the ring may not run.

        A ring that breaks over it is broken as any other, and has none.
        """
        ring = self._ring
        if ring is None or not self.active or self.held:
            return None
        try:
            request = ring.take()
            self._note_missing(ring)
            return request
        except RingError as error:
            self.break_ring(str(error))
            return None

    @property
    def unfinished(self) -> frozenset[int] | None:
        """The heads of the requests that a dead worker had begun and not finished; None: there is
        no ring.
        """
        if self._ring is None or self._broken:
            return None
        return frozenset(each.head for each in self._ring.recovered)

    def finish_together(self, requests: list[Request]) -> None:
        """As `Ring.finish_together`."""
        if self._ring is not None:
            self._ring.finish_together(requests)

    def count_dropped(self, count: int) -> None:
        """The device has thrown away so many of what it was to pass on."""
        if self._counters is not None:
            self._counters.count_dropped(count)

    def step_begins(self, request: Request) -> None:
        """A coroutine goes on with a request, as `Ring.step_begins` has it."""
        if self._ring is not None:
            self._ring.step_begins(request)

    def step_ends(self, request: Request) -> None:
        """And waits again."""
        if self._ring is not None:
            self._ring.step_ends(request)

    def look_again(self) -> None:
        """Run in the loop's next turn."""
        self.ready = True

    def hold(self) -> None:
        """Hand out nothing until `readmit`: an order waits until the ring is idle."""
        self.held = True
        self.let_be_pulled()

    def readmit(self) -> None:
        """What the device gave back may come to it again."""
        self.held = False
        self.let_be_pulled()
        self.ready = self.ready or self.pulled
        if self._ring is not None and not self._broken and self._ring.readmit():
            self.ready = True

    @property
    def waiting(self) -> int:
        """Requests that could be fetched now."""
        if (
            self._ring is None
            or not self.active
            or (self._throttle is not None and self._throttle.waits)
        ):
            return 0
        return self._ring.waiting

    @property
    def due(self) -> float | None:
        """As that of the ring, or seconds until the limits let something pass."""
        asked = super().due
        wait = None if self._throttle is None else self._throttle.due()
        return asked if wait is None else wait if asked is None else min(asked, wait)

    def ask_again(self) -> None:
        """Do what is due by now."""
        super().ask_again()
        if self._throttle is not None and self._throttle.over():
            self.ready = True

    def publish(self) -> int:
        """Publish what the device, or the kernel, finished outside of `run`; how many that were."""
        if self._ring is None or self._broken:
            return 0
        collected = self._ring.collect(self._on_error)
        try:
            published = collected + self._ring.publish()
            if self.pulled and self.native is not None:
                self._note_missing(self._ring)
        except RingError as error:
            self.break_ring(str(error))
            return 0
        if published:
            self._mark_ring()
        return published

    def blame(self, looks: int) -> int:
        """As `Ring.blame`, for what io_uring has; 0 if there is none."""
        return 0 if self._ring is None else self._uring.blame(self._ring, looks)

    def submit(self) -> bool:
        """False if io_uring cannot take all that was begun just now: call again soon."""
        return self._broken or self._uring.submit()
