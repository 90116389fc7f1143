"""What a device author imports: the base class of every device."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from vuproc.device_description import DeviceDescription
from vuproc.fd import Fd, HasFileno
from vuproc.sandbox.needs import Needs

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from vuproc.mapping import ShmemMapping
    from vuproc.outcome import Outcome
    from vuproc.sharing import ObjectAsk
    from vuproc.shm.batch import Batch
    from vuproc.shm.native import NativeDevice
    from vuproc.shm.request import Request


Resubmit = Literal["run", "drop", "fail"]
"""What a device may have done with the requests that a dead worker had begun."""


class Timer(Protocol):
    """A call that is to come."""

    def cancel(self) -> None:
        """Do not call any more; nothing happens if it was called, or cancelled, already."""

    @property
    def active(self) -> bool:
        """Whether a call is to come."""


class Loop(Protocol):
    """The part of a worker's loop which a device may use; `Device` has the words for it."""

    def watch(  # noqa: D102
        self, fd: int | HasFileno, callback: Callable[[], None], *, write: bool
    ) -> None: ...

    def unwatch(self, fd: int | HasFileno) -> None: ...  # noqa: D102

    def call_soon(self, callback: Callable[[], None]) -> None: ...  # noqa: D102

    def call_later(  # noqa: D102
        self, seconds: float, callback: Callable[[], None], *, again: bool
    ) -> Timer: ...

    def config_changed(self) -> None: ...  # noqa: D102

    def take(self, queue: int) -> Request | None: ...  # noqa: D102

    def ask(self, ask: ObjectAsk) -> None: ...  # noqa: D102

    def map_shmem(  # noqa: D102
        self, mapping: ShmemMapping, file: HasFileno, file_offset: int
    ) -> Outcome[None]: ...

    def unmap_shmem(self, mapping: ShmemMapping) -> Outcome[None]: ...  # noqa: D102

    def publish(self, queue: int) -> None: ...  # noqa: D102

    def unfinished(self, queue: int) -> frozenset[int] | None: ...  # noqa: D102

    def finish_together(self, requests: Sequence[Request]) -> None: ...  # noqa: D102

    def count_dropped(self, queue: int, count: int) -> None: ...  # noqa: D102

    @property
    def asyncio_loop(self) -> AbstractEventLoop: ...  # noqa: D102


class Device(DeviceDescription):
    """A virtio device. Subclass it, set `device_id` and write `handle`; the rest has defaults.

    An instance lives in the master, where only the description is asked for, and one in every
    worker, where `setup` to `teardown` are called by one thread. Requests of one queue come to
    one worker in the order in which the driver made them available.
    """

    resubmit: ClassVar[Resubmit | Mapping[int, Resubmit]] = "run"
    """What becomes of a request that a worker had begun when it died: it is run again, completed as
    if nothing had been written ("drop"), or given to `fail`. Choose one of the others where running
    twice does harm, such as sending a frame. A mapping says it queue by queue ("run" for one that
    is not in it), `Request.resubmit` request by request."""

    leaves_in_flight: ClassVar[bool] = False
    """Whether a queue may stop with requests in the device's hands, which the vuproc at the other
    end of a migration runs from their beginning. By the return of `ring_stopped` nothing of ours
    may go on with them, no thread and no task: it would come after what was done there."""

    state_version: ClassVar[int] = 1
    """Version of what `save_state` gives. Raise it when another meaning of the bytes begins: a
    device of an older version is then not given them."""

    log: ClassVar[logging.Logger] = logging.getLogger("vuproc.device")
    """Lines logged here by a worker appear in the master's log, up to a bound a line of code."""

    recovered: bool = False
    """In a worker, from before `setup`: another has served its queues before it, and has died or
    was replaced. What that one left in the `shared` files is worth a look."""
    _loop: Loop | None = None

    # The work, in a worker.

    def setup(self, queue: int) -> None:
        """Get ready to serve `queue`: once for each queue of this worker, before any request.

        Raise if that is impossible: the worker ends and the reason is logged.
        """

    def uring_files(self, queue: int) -> Sequence[int | HasFileno]:
        """Open files, at most 3, which requests of `queue` are to be served from by io_uring.

        Called at each start of the ring, after `setup`. What `Request.finish_preadv` and its like
        do with these files goes on while other requests are handled, and so does what a native
        device begins by itself. Worth it where a call would wait for a disk: files opened with
        O_DIRECT, block devices. Where the kernel has no io_uring to give, the calls block.
        """
        return ()

    def sandbox_needs(self) -> Needs:
        """The class's `needs`, with io_uring if the class has a `uring_files` of its own."""
        if type(self).uring_files is Device.uring_files:
            return self.needs
        return self.needs.with_more(Needs(io_uring=True))

    def native(self, queue: int) -> NativeDevice | None:
        """What serves `queue` in native code, one object a queue; None: `handle` does.

        Called once, after `setup`. Everything but `handle` is called as ever, and `fail` only for
        requests of a dead worker that are not to run again.
        """
        return None

    def handle(self, request: Request) -> Awaitable[None] | None:
        """Serve one request and return None; it is completed then, unless `defer` was called.

        If this raises or returns something else, it is logged with this method's name and `fail`
        is called for the request. The queue goes on.

        It may be an `async def`: then the worker's loop is asyncio's, each request has a task, and
        is completed when that ends, unless `defer` was called. A task that is cancelled fails its
        request.
        """
        raise NotImplementedError(f"{type(self).__name__}.handle")

    def handle_batch(self, batch: Batch) -> None:
        """Serve all requests that have come at a time; a device that has this needs no `handle`.

        What is neither finished nor deferred is finished on return. If this raises, `fail` is
        called for each such request. A batch in which a worker has died comes again request by
        request, so that one of them alone can be to blame for the next death.
        """
        raise NotImplementedError(f"{type(self).__name__}.handle_batch")

    def fail(self, request: Request, error: BaseException) -> None:
        """Complete a request whose `handle` raised `error`; the default reports nothing written.

        Override it where the device type has an error status.
        """
        request.finish(0)

    def available(self, queue: int) -> None:
        """There are requests to `take` on a queue that the device pulls from: after a time without,
        or when the ring has started. Take what is needed now; the rest stays where it is.
        """

    def ring_started(self, queue: int) -> None:
        """The driver's queue is there: requests may follow."""

    def ring_enabled(self, queue: int, enabled: bool) -> None:
        """Whether requests of a ring may follow: right after `ring_started`, and whenever the
        front-end says otherwise (SET_VRING_ENABLE), as for the pairs of a network device that its
        driver does not use.
        """

    def ring_stopping(self, queue: int) -> None:
        """The queue is about to stop, or the guest's memory to change, once nothing is in flight.

        Finish what the device keeps, or give it back (`Request.release`): the driver then has it
        as if it had not been fetched, and it comes again when the queue goes on. There are seconds
        for what is under way; after them the worker is killed.
        """

    def ring_stopped(self, queue: int) -> None:
        """The queue is gone, and every request of it; it may be started again later."""

    def features_acked(self, features: int) -> None:
        """The driver has chosen `features`, all bits, from what was offered."""

    def config_written(self, offset: int, data: bytes) -> None:
        """The driver writes `data` at `offset` into the configuration space.

        Raise to refuse, which the default does. What is accepted is what the driver reads back
        until the next reset, unless `config_space` says something else by then; a restarted worker
        gets the writes again.
        """
        raise ValueError(f"{type(self).__name__} has no writable configuration fields")

    def mtu_changed(self, mtu: int) -> None:
        """The front-end says the MTU of the guest's interface, in bytes (NET_SET_MTU): 68 to 65535;
        0: nobody says it any more. In every worker, and again in one that is restarted.

        Raise to refuse it, though never a 0. Override it in a network device (`device_id` 1) that
        offers VIRTIO_NET_F_MTU; the front-end cannot say anything otherwise.
        """

    def announce(self, mac: bytes) -> None:
        """The guest with this address, 6 bytes, has come here (SEND_RARP): tell the network, by a
        RARP request as a rule. In the worker of queue 0.

        Override it in a network device whose guest cannot announce itself (virtio-net without
        VIRTIO_NET_F_GUEST_ANNOUNCE); the front-end cannot ask for it otherwise.
        """

    def save_state(self) -> bytes:
        """The device's own state, for a migration: what another device of this class needs to take
        this one's place, at most 64 MiB. No ring is running. In the worker of queue 0.

        Raise if there is none to be had, and the front-end is told. Override it together with
        `load_state`; the front-end cannot ask for either otherwise.
        """
        raise NotImplementedError(f"{type(self).__name__}.save_state")

    def load_state(self, data: bytes, version: int) -> None:
        """Take the place of the device that gave `data`, whose `state_version` was `version`, ours
        at most. No ring is running. In the worker of queue 0.

        The bytes have come from outside, so check what they say. Raise to refuse them, and leave
        the state as it was.
        """
        raise NotImplementedError(f"{type(self).__name__}.load_state")

    def reset(self) -> None:
        """The driver resets the device: forget what it chose. No ring is running."""

    def teardown(self) -> None:
        """The worker is about to end in good order: flush and close. Not called on a crash."""

    # The work beside that of the queues, in a helper.

    def run_helper(self, ending: Fd) -> None:
        """Do what `has_helper` stands for, until `ending` is readable: then finish, and return.

        In the thread of a process that serves no queue; neither `setup` nor any other method is
        called there. It may be killed at any instruction, as when the master dies; it then begins
        anew, with the `shared` files as they are. So does it after an exception, a second later.
        """
        raise NotImplementedError(f"{type(self).__name__}.run_helper")

    # What the worker does for the device.

    def watch(
        self, fd: int | HasFileno, callback: Callable[[], None], *, write: bool = False
    ) -> None:
        """Call `callback` between requests whenever `fd` is readable (`write`: writable).

        The descriptor stays the device's own: unwatch it before closing it. If `callback` raises,
        that is logged and `fd` is no longer watched. Raises ValueError if it is watched already,
        RuntimeError outside a worker.
        """
        self._running_in().watch(fd, callback, write=write)

    def unwatch(self, fd: int | HasFileno) -> None:
        """Stop watching `fd`."""
        self._running_in().unwatch(fd)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the worker's thread, between requests. May be called by any thread:
        this is how one hands its result over.
        """
        self._running_in().call_soon(callback)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` between requests, in so many seconds. Raises ValueError if they are
        negative.

        On an idle worker it comes within half a millisecond of its time.
        """
        return self._running_in().call_later(seconds, callback, again=False)

    def call_every(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` again and again, so many seconds apart. A call that is late does not put
        off those that follow; what is missed is not made up for.
        """
        return self._running_in().call_later(seconds, callback, again=True)

    def config_changed(self) -> None:
        """What `config_space` says has changed: have the driver read it again, if the front-end can
        tell it. In the worker of queue 0.
        """
        self._running_in().config_changed()

    def take(self, queue: int) -> Request | None:
        """The next request of a queue of this worker that the device pulls from, or None: then
        `available` is called when there is one.

        It is deferred: it stays the device's until it is finished or released.
        """
        return self._running_in().take(queue)

    def publish(self, queue: int) -> None:
        """Show the driver now what is finished on a queue that the device pulls from. Whatever
        becomes of this worker, none of that comes again: what depends on it may be noted. In the
        worker's thread. A ring that is gone or broken shows nothing, and one that keeps the order
        (IN_ORDER) only that whose turn has come.
        """
        self._running_in().publish(queue)

    def unfinished(self, queue: int) -> frozenset[int] | None:
        """The heads (`Request.head`) of the requests that a dead worker had begun on this queue
        and not finished; the same for as long as the ring is there. None: there is no ring.

        With a note of the head that a step belongs to, made before `Request.finish`, the next
        worker knows whether the driver has seen the step: not if the head is among these.
        """
        return self._running_in().unfinished(queue)

    def finish_together(self, requests: Sequence[Request]) -> None:
        """Complete requests of one queue, at most 64, in their order: the driver sees all of them
        at once, or none yet, even if the worker dies in between. For what is spread over several
        buffers, as a frame over those of a network device. In the worker's thread.

        Raises ValueError for more or for requests of several queues, RequestFinished for one that
        is finished; then it has finished none.
        """
        self._running_in().finish_together(requests)

    def count_dropped(self, queue: int, count: int = 1) -> None:
        """Count `count` things of `queue` that the device had to throw away: `dropped` of the
        queue's counters, which `vuproc status --json` shows.
        """
        self._running_in().count_dropped(queue, count)

    @property
    def asyncio_loop(self) -> AbstractEventLoop:
        """The asyncio loop that the worker runs in, of a device whose `handle` is an `async
        def`; RuntimeError for others.
        """
        return self._running_in().asyncio_loop

    def attach(self, loop: Loop) -> None:
        """Called by the worker, before `setup`: whose loop it is that the device runs in."""
        self._loop = loop

    def _running_in(self) -> Loop:
        if self._loop is None:
            raise RuntimeError("there is a loop in a worker only, from setup on")
        return self._loop


def serves_batches(device: Device) -> bool:
    """Whether requests go to its `handle_batch`."""
    return type(device).handle_batch is not Device.handle_batch
