from collections.abc import Callable
from typing import Final, Literal

from vuproc.errors import RingError
from vuproc.shm.batch import Batch
from vuproc.shm.dirty import DirtyLog
from vuproc.shm.inflight import Recovered
from vuproc.shm.memory import GuestMemory
from vuproc.shm.native import NativeDevice
from vuproc.shm.request import Request
from vuproc.shm.uring import Uring

SLICE_NS: Final[int]
"""The longest turn while others wait for its end; a native device's, unless more is asked for."""

class Ring:
    """What split and packed rings share: batches, counters, notification. Not made directly."""

    resubmit: Literal["run", "drop", "fail"]
    """What becomes of a recovered request whose side effect may have happened: it is run again
    (the default), or given to `on_skip`. Other than "run", the record's stage byte is written
    before each `handle` and in `take`. What a request's own `resubmit` says comes first."""
    on_skip: Callable[[Request, str, int], None] | None
    """Called with (request, reason, attempts) for a recovered request that is not run: `reason` is
    "poison" (POISON_ATTEMPTS workers died inside `handle` of it), "drop" or "fail". As with
    `handle`, what it has neither finished nor deferred is finished on return, and what it raises
    goes to `on_error`, or comes out of `take`. None: such requests are completed with nothing
    written."""

    @property
    def queue(self) -> int:
        """The virtqueue's number."""

    @property
    def size(self) -> int:
        """Entries of the ring."""

    @property
    def pending(self) -> bool:
        """True if there is something to drain; False for a stopped or broken ring."""

    @property
    def waiting(self) -> int:
        """How many requests could be fetched now; 0 for a stopped or broken ring.

        What the driver has made available, as far as a look tells, and what is to come again.
        """

    @property
    def hits(self) -> int:
        """How often a look for more before a sleep has found something."""

    @property
    def in_flight(self) -> int:
        """Requests handed to the device by this ring and neither finished nor released."""

    @property
    def released(self) -> int:
        """Requests that the device released and that were not readmitted."""

    @property
    def outstanding(self) -> int:
        """Requests fetched and not finished: those in flight, those released, and those recovered
        or readmitted and not handed out yet.

        At 0, and after `publish`, the ring is idle: `stop` leaves nothing behind.
        """

    @property
    def kept(self) -> int:
        """Requests that `stop` has left in the record, for the next ring to recover."""

    @property
    def recovered(self) -> tuple[Recovered, ...]:
        """What the record held when the ring was made, in the order in which it was fetched."""

    @property
    def lost(self) -> int:
        """Requests that the device dropped without finishing them: they stay in flight."""

    @property
    def unpublished(self) -> int:
        """Requests finished and not shown to the driver yet: call `publish`."""

    @property
    def next_avail(self) -> int:
        """The free-running 16-bit index of the next entry to fetch."""

    @property
    def next_used(self) -> int:
        """The free-running 16-bit index of the next entry to complete."""

    @property
    def broken(self) -> RingError | None:
        """Why the ring is broken; None while it is sound. Stays until a new ring is made."""

    @property
    def stopped(self) -> bool:
        """True after `stop`."""

    def set_call(self, fd: int) -> None:
        """Notify the driver through `fd` (borrowed; eventfd, pipe or socket); -1: do not notify."""

    def drain(
        self,
        handle: Callable[[Request], object],
        on_error: Callable[[Request, BaseException], None],
        budget: int,
        slice_ns: int = ...,
    ) -> int:
        """Fetch and handle up to `budget` requests; return how many were fetched.

        None is begun after `slice_ns`, or after SLICE_NS once somebody has called `hurry`.
        Recovered requests come first, in their order; before them, the driver is notified once
        whether it wants that or not, even if there are none. Kicks are suppressed; what is
        finished is published in batches, at the end at the latest. Fewer than there are if the
        counters tell of a command for the worker meanwhile.
        A request which `handle` neither finished nor deferred is finished on return. An exception
        from `handle`, or a return value other than None (as TypeError), goes to `on_error`; an
        exception from `on_error` comes out of here after what is complete was published.
        Raises RingError, after publishing what is complete, if the driver broke the ring.
        """

    def drain_batch(
        self,
        handle_batch: Callable[[Batch], object],
        on_error: Callable[[Request, BaseException], None],
        budget: int,
        slice_ns: int = ...,
    ) -> int:
        """As `drain`, with all that has come in one call. Recovered requests come one by one.

        An exception goes to `on_error` with each request that is neither finished nor deferred.
        Requests that are finished inside of the call have its time, each its share.
        """

    uring: Uring | None
    """What the verbs that finish a request go through, for the files that it knows; None: they
    block. The ring closes it when it stops or breaks, and waits for what is in flight first."""

    waker: int
    """An eventfd (borrowed) that is written to when another thread finishes a request, so that the
    ring's own thread calls `publish`, which completes it; -1: none."""

    def collect(self, on_error: Callable[[Request, BaseException], None]) -> int:
        """Complete what `uring` has finished, and show it to the driver; return how many.

        To be called when the ring's descriptor is readable. An error of the kernel goes to
        `on_error`, and the request is finished on return.
        """

    def take(self) -> Request | None:
        """Fetch one request for a device that pulls: it is deferred from birth.

        Recovered and readmitted ones come first, in their order; those which must not be run go to
        `on_skip`, as in `drain`. None: there is none, what was finished is shown to the driver, and
        it was asked for a kick, so that the one who sleeps until the next kick misses nothing. As
        long as there is one, kicks are refused: take until there is none, or call `arm`.
        May be called from a handler of another queue and from hooks; RuntimeError from a handler
        of the same queue. Raises RingError if the driver broke the ring.
        """

    def finish_together(self, requests: list[Request]) -> None:
        """Complete requests of this ring, at most 64, in their order, so that one store of the used
        index shows all of them to the driver: never some of them without the others, whenever the
        worker dies. Their used lengths are what the verbs wrote.

        Raises ValueError for more or for another ring's, RequestFinished for one that is finished,
        and then has finished none; RuntimeError in another thread than the ring's.
        """

    def step_begins(self, request: Request) -> None:
        """A coroutine goes on with a deferred request: until `step_ends`, a death of the worker
        counts as one of its attempts, and it is the one that is being served (counters).
        """

    def step_ends(self, request: Request) -> None:
        """The coroutine waits again, or is done."""

    def readmit(self) -> int:
        """Hand out again what was released, before anything new and in the order in which it was
        fetched; return how many requests that are.

        They come as other objects: their chains are read anew, under the present memory table.
        Until then they are not handed out, and neither `pending` nor `arm` tells of them.
        """

    def log_writes(self, log: DirtyLog | None, used_ring: int | None = None) -> None:
        """Mark in `log`, from now on, each page that a request's device-writable buffers lie in,
        before the request is shown to the driver; None: mark nothing any more.

        `used_ring`: the guest-physical address at which the writes to the used ring are logged
        (vring_addr.log); None: they are not. Requests in flight are marked when they are finished,
        as all others; RingError if the driver has made the chain of one malformed by now.
        """

    def set_log_call(self, fd: int) -> None:
        """Signal `fd` (borrowed) after each batch of which pages were marked; -1: none."""

    def blame(self, uring: Uring, looks: int) -> int:
        """Count this worker's end to the attempts of each request that `uring`, which is the
        ring's, has had for so many looks of the master (1 to 7); their number.
        """

    def serve_native(
        self,
        device: NativeDevice,
        on_error: Callable[[Request, BaseException], None],
        budget: int,
        spin_ns: int = 0,
        slice_ns: int = SLICE_NS,
    ) -> bool:
        """As `drain` by a native device, without the GIL: until the ring stays empty for `spin_ns`
        (False), or the budget or a slice of time is used up, or the counters tell of a command for
        the worker (True: there may be more).

        Recovered requests that are not to run go to `on_skip`, as in `drain`. The device belongs to
        the ring from the first call on, until the ring stops or breaks.
        """

    @property
    def quiet(self) -> bool:
        """True if the native device that has served it once needs nothing of Python for what comes
        next: nothing is left of a predecessor's, nothing is finished elsewhere, and addresses are
        guest-physical. For `KickWait.serve`.
        """

    may_be_pulled: bool
    """Whether a native device that pulls gets anything: the ring is enabled, and no order waits for
    it to be idle. False at first."""

    def pulled_by(self, device: NativeDevice) -> None:
        """Have a native device pull from this ring until it stops or breaks, instead of being
        served by `serve_native`. What it completes is shown by its `show`, or by `publish`, out of
        which comes RingError if the driver has broken the ring meanwhile.
        """

    def spin(self, nanoseconds: int) -> bool:
        """Look for work for so long, asking for no kick; True as soon as there is some."""

    def publish(self) -> int:
        """Show finished requests to the driver and notify it if it wants that; return how many.

        Those which a native device has ended in the meantime are among them.
        """

    def call_after_death(self) -> None:
        """Call the driver, once, if a worker before us may have died before it did so. The other
        turns do so by themselves; for a device that pulls, and may take nothing.
        """

    def notify_always(self) -> None:
        """Notify the driver whether it wants that or not (after a restart or a new call fd)."""

    def arm(self) -> bool:
        """Ask for a kick at the next request; True if there is work already (no kick will come).

        Raises RingError if the avail index is one which no driver may write.
        """

    def disarm(self) -> None:
        """Ask for no kicks; the driver may kick still."""

    def rebind(self, memory: GuestMemory) -> None:
        """Go on in a new memory table.

        With requests in flight only a table that keeps every mapping of the old one is taken:
        ValueError otherwise. Those released are not in flight. Raises RingError, and the ring is
        broken, if the table does not cover the ring.
        """

    @property
    def missing(self) -> bool:
        """True if the next chain waits for translations: its Iotlb's misses are what they are.

        It was not fetched, and nothing is before it; `drain` and its like look at it anew.
        """

    def look_again(self) -> None:
        """Some translations have come: `pending`, `waiting` and `arm` count the chain again."""

    def uses(self, first: int, last: int) -> bool:
        """True if a request that the device has uses memory by I/O virtual addresses in a range."""

    def stop(self, *, keep: bool = False) -> int:
        """Let go of guest memory without touching it; return `next_avail`, the base.

        `publish` first: what is finished and not shown to the driver is lost, or stays in the
        record. Requests outstanding become finished (their verbs raise RequestFinished).
        If all that is outstanding was released, or recovered and not begun by anybody, and nothing
        was fetched after the first of it that is completed by now, its fetches are taken back:
        `next_avail` is where it begins. With nothing outstanding then the record's version becomes
        0, so the next ring starts at its base; otherwise, with `keep`, and if the ring is broken,
        the record stays, for the next ring to recover, with `kept` requests. Idempotent.
        """
