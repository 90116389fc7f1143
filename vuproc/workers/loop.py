"""The loop of a worker process: control messages, kicks, the device's own descriptors, and requests
between them.

One thread, one poll set. A command is carried out between two batches, so a ring never sees half of
it; a command that needs the rings idle (a memory change, a stop) holds them and is answered once
the device has finished what is in flight. The master has a deadline for that.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vuproc import texts
from vuproc.device import Device
from vuproc.errors import MemoryFault, RequestAbandoned, RingError
from vuproc.fd import Fd
from vuproc.shm.counters import QueueCounters
from vuproc.shm.memory import GuestMemory
from vuproc.shm.native import NativeDevice
from vuproc.shm.request import Request
from vuproc.shm.ring import SLICE_NS
from vuproc.shm.segment import Segment
from vuproc.workers import control
from vuproc.workers.control import ChannelClosed, Command, Done, Failed, RingBroken, WorkerChannel
from vuproc.workers.log import WorkerLog
from vuproc.workers.poller import Callback, HasFileno, Watcher, is_ready
from vuproc.workers.queue import ALONE_NS, Queue
from vuproc.workers.spin import LONGEST_NS, Spin

POLL_BUSY_S = 0.0005
"""How long a ring without a kick descriptor sleeps between two looks when it was found empty."""
POLL_SPINS = 64
"""Looks at an empty polled ring before the first such sleep."""
PEEK_BYTES = 16
"""Bytes of an abandoned request that are shown in the log: a header's worth."""


class Leave(Exception):
    """The process is to end, with the exit code `code`."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Worker:
    """Serves queues of `device` as the master's commands say: those that `take` names."""

    def __init__(
        self, channel: WorkerChannel, device: Device, chain_limit: int, said: WorkerLog
    ) -> None:
        self._channel = channel
        self._device = device
        self._said = said
        self._chain_limit = chain_limit
        self._watcher = Watcher()
        self._hooks: dict[int, Callback] = {}
        self._memory = GuestMemory()
        self._features = 0
        self._queues: dict[int, Queue] = {}
        self._waiting: deque[tuple[Command, tuple[Fd, ...]]] = deque()
        self._counters: list[QueueCounters] = []
        self._took_over = False
        self._spin = Spin("off", lambda: 1)
        self._empty_looks = 0
        device.attach(self)
        self._watcher.add(channel.fileno(), self._control)

    # What the device may ask of its worker (vuproc.device.Watcher).

    def watch(self, fd: int | HasFileno, callback: Callable[[], None], *, write: bool) -> None:
        """Call `callback` when the device's own descriptor is readable (or writable), until it
        fails and leaves it so.
        """
        number = fd if isinstance(fd, int) else fd.fileno()
        events = select.EPOLLOUT if write else select.EPOLLIN

        def ready(_mask: int) -> None:
            try:
                with self._in_hook():
                    callback()
            except Exception as error:
                # What it has not read is there still: it would be called again at once, for ever.
                then = ""
                if self._hooks.get(number) is ready and is_ready(number, events):
                    self.unwatch(number)
                    then = f"; descriptor {number} is no longer watched"
                self._failed(_name(callback), error, then=then)

        self._watcher.add(number, ready, events)
        self._hooks[number] = ready

    def unwatch(self, fd: int | HasFileno) -> None:
        """Stop calling back for `fd`."""
        number = fd if isinstance(fd, int) else fd.fileno()
        hook = self._hooks.pop(number, None)
        if hook is not None:
            self._watcher.remove(number, hook)

    # The loop.

    def take(self, queues: tuple[int, ...], counters: Segment | None) -> None:
        """Be the one who serves `queues`, and let the device prepare each of them."""
        options = self._device.options
        cpus = len(os.sched_getaffinity(0))
        if options.cpus:
            os.sched_setaffinity(0, {options.cpus[queues[0] % len(options.cpus)]})
        for index in queues:
            own = None if counters is None else QueueCounters(counters, index)
            if own is not None:
                self._counters.append(own)
            self._queues[index] = Queue(
                index,
                self._device,
                own,
                self._chain_limit,
                self._request_failed,
                self._request_skipped,
                self._ring_broken,
            )
        for index in queues:
            self._device.setup(index)
            self._take_native(index, self._device.native(index))
        if len(queues) == 1:
            # One of several could not look at the others meanwhile.
            awake = self._counters[0].count_awake if self._counters else lambda: 1
            self._spin = Spin(options.poll, awake, cpus)

    def run(self) -> int:
        """Serve until the master says `Exit` or goes away; returns the exit code."""
        try:
            while True:
                self._wait()
                for queue in self._queues.values():
                    queue.publish()
                    if queue.polling:
                        queue.ready = True
                    if queue.ready and not self._waiting:
                        queue.run(self._window(queue), self._slice(queue))
                    self._look_at_failures(queue)
                self._settle()
                self._said.tend()
        except Leave as leave:
            # Whoever comes after us takes our end for that of all we had begun.
            for queue in self._queues.values():
                queue.drop()
            return leave.code

    def _wait(self) -> None:
        patience = self._patience()
        for counters in self._counters:
            counters.note_commands()
        if patience is None and any(queue.publish() for queue in self._queues.values()):
            # Another queue's handler, or a hook, has finished requests since their queue's turn; a
            # command may wait for just these.
            patience = 0.0
        if patience is not None:
            self._watcher.poll(patience)
            return
        if self._counters:
            self._counters[0].set_awake(False)
        began = time.monotonic_ns()
        self._watcher.poll(self._said.due())
        if self._counters:
            self._counters[0].set_awake(True)
        self._spin.slept(time.monotonic_ns() - began)

    def _window(self, queue: Queue) -> int:
        """Nanoseconds that `queue` may look for more work when it has none."""
        if queue.polling and len(self._queues) == 1:
            return LONGEST_NS
        return self._spin.window_ns

    def _slice(self, queue: Queue) -> int:
        """Nanoseconds that a native device may go on for, with work at hand."""
        others = self._hooks or queue.finishes_later or len(self._queues) > 1
        return SLICE_NS if others else ALONE_NS

    def _patience(self) -> float | None:
        """Seconds to sleep in poll: none with work at hand, little when a ring must be polled, else
        for ever.
        """
        if [queue for queue in self._queues.values() if not queue.submit()]:
            return POLL_BUSY_S
        if self._waiting:
            return None  # held rings do not run; the device's own descriptors move things on
        if any(queue.ready and queue.active for queue in self._queues.values()):
            self._empty_looks = 0
            return 0.0
        if any(queue.polling for queue in self._queues.values()):
            self._empty_looks += 1
            return 0.0 if self._empty_looks < POLL_SPINS else POLL_BUSY_S
        return None

    def _control(self, _mask: int) -> None:
        try:
            received = self._channel.receive()
        except ChannelClosed:
            # The master has gone, and with it the right to touch guest memory.
            raise Leave(0) from None
        if received is None:
            return
        for counters in self._counters:
            counters.note_command()
        self._waiting.append(received)
        self._settle()

    def _settle(self) -> None:
        """Carry out the waiting commands in their order, each as soon as the rings it concerns are
        idle, and answer them.
        """
        while self._waiting:
            command, fds = self._waiting[0]
            for index in self._needs_idle(command):
                queue = self._queues.get(index)
                if queue is not None and queue.in_flight:
                    return
            self._waiting.popleft()
            self._carry_out(command, fds)

    def _carry_out(self, command: Command, fds: tuple[Fd, ...]) -> None:
        if not self._took_over:
            self._took_over = True
            # Our predecessor is gone, whatever it was doing: while we set up it may have lived.
            for counters in self._counters:
                counters.hand_none()
                counters.leave_hooks()
        kept = False
        try:
            value = self._apply(command, fds)
            kept = isinstance(
                command, control.StartRing | control.SetKick | control.SetCall | control.SetErr
            )
        except Leave:
            self._answer(Done(command.serial))
            raise
        except (RingError, MemoryFault, OSError, Refusal) as error:
            self._answer(Failed(command.serial, str(error)))
        else:
            self._answer(Done(command.serial, value))
        finally:
            if not kept:
                for fd in fds:
                    fd.close()

    def _needs_idle(self, command: Command) -> tuple[int, ...]:
        match command:
            case control.StopRing(queue=queue):
                return (queue,)
            case control.SetMemory() | control.RemoveRegion() | control.ResetDevice():
                return tuple(self._queues)
            case _:
                return ()

    def _apply(self, command: Command, fds: tuple[Fd, ...]) -> int:
        """Carry out one command; returns the value of its answer, raises what `_settle` turns into
        a refusal.
        """
        match command:
            case control.SetFeatures(features=features):
                self._features = features
                self._hook(self._device.features_acked, features)
            case control.SetMemory(regions=regions):
                memory = GuestMemory()
                for region, fd in zip(regions, fds, strict=True):
                    memory = _extended(memory, region, fd)
                self._change_memory(memory)
            case control.AddRegion(region=region):
                self._change_memory(_extended(self._memory, region, fds[0]))
            case control.RemoveRegion(guest_addr=guest_addr, size=size, user_addr=user_addr):
                # A worker that was started after a region lost its file never had it.
                if (guest_addr, size, user_addr) in self._memory.regions:
                    self._change_memory(self._memory.without_region(guest_addr, size, user_addr))
            case control.StartRing(queue=index):
                self._unwatch_queue(self._queue(index))
                self._queue(index).start(command, fds, self._memory, self._features)
                self._watch_queue(self._queue(index))
                self._hook(self._device.ring_started, index)
            case control.StopRing(queue=index):
                if not self._queue(index).started:
                    raise Refusal(f"queue {index} is not started")
                self._unwatch_queue(self._queue(index))
                base = self._queue(index).stop()
                self._hook(self._device.ring_stopped, index)
                return base
            case control.BlameUring(queue=index, looks=looks):
                return self._queue(index).blame(looks)
            case control.EnableRing(queue=index, enabled=enabled):
                self._queue(index).set_enabled(enabled)
            case control.SetKick(queue=index):
                self._unwatch_queue(self._queue(index))
                old = self._queue(index).set_kick(fds[0] if fds else None)
                if old is not None:
                    old.close()
                self._watch_queue(self._queue(index))
            case control.SetCall(queue=index):
                self._queue(index).set_call(fds[0] if fds else None)
            case control.SetErr(queue=index):
                self._queue(index).set_err(fds[0] if fds else None)
            case control.WriteConfig(offset=offset, data=data):
                self._write_config(offset, data)
            case control.ResetDevice():
                self._features = 0
                self._hook(self._device.reset)
            case control.SetLogLevel(level=level):
                logging.getLogger("vuproc").setLevel(level)
            case control.Detach():
                self._detach()
            case control.Exit():
                self._detach()
                self._hook(self._device.teardown)
                self._said.tend(at_last=True)  # nobody listens after the answer
                raise Leave(0)
            case _:
                raise Refusal(f"{type(command).__name__} does not belong here")
        return 0

    def _queue(self, index: int) -> Queue:
        try:
            return self._queues[index]
        except KeyError:
            raise Refusal(f"queue {index} is not served by this worker") from None

    def _change_memory(self, memory: GuestMemory) -> None:
        for queue in self._queues.values():
            queue.rebind(memory)
        self._memory = memory

    @contextmanager
    def _in_hook(self) -> Iterator[None]:
        """The device's own code may take longer than a command does: the master sees when it is at
        it.
        """
        for counters in self._counters:
            counters.count_hook()
        try:
            yield
        finally:
            for counters in self._counters:
                counters.count_hook()

    def _write_config(self, offset: int, data: bytes) -> None:
        try:
            with self._in_hook():
                self._device.config_written(offset, data)
        except Exception as error:
            raise Refusal(f"config_written: {texts.described(error)}") from error

    def _detach(self) -> None:
        for queue in self._queues.values():
            self._unwatch_queue(queue)
            queue.drop()
            queue.enabled = False
            queue.told_untouched = False
        self._memory = GuestMemory()
        self._features = 0
        self._hook(self._device.reset)

    def _watch_queue(self, queue: Queue) -> None:
        if queue.completions >= 0:
            # It only has to wake the loop, which publishes in every turn.
            self._watcher.add(queue.completions, lambda _mask: None)
        if queue.kick is None:
            return

        def ready(mask: int) -> None:
            if mask & select.EPOLLIN:
                queue.take_kick()
            elif mask & (select.EPOLLHUP | select.EPOLLERR):
                queue.break_ring("the kick descriptor was closed by its other end")

        self._watcher.add(queue.kick.fileno(), ready)

    def _unwatch_queue(self, queue: Queue) -> None:
        if queue.completions >= 0:
            self._watcher.remove(queue.completions)
        if queue.kick is not None:
            self._watcher.remove(queue.kick.fileno())

    # What goes to the master.

    def _answer(self, report: Done | Failed | RingBroken) -> None:
        try:
            self._channel.send(report)
        except ChannelClosed:
            raise Leave(0) from None

    def _ring_broken(self, queue: int, cause: str) -> None:
        self._unwatch_queue(self._queues[queue])
        self._answer(RingBroken(queue, cause))

    def _request_failed(self, request: Request, error: BaseException) -> None:
        """The device's `handle` raised or returned something: this request fails, the queue goes
        on.
        """
        name = type(self._device).__name__
        about = f"queue {request.queue}, head {request.head}"
        self._failed(f"{name}.handle", error, about)
        if request.finished:
            return
        self._fail(request, error)
        if not request.finished:
            request.finish()

    def _fail(self, request: Request, error: BaseException) -> None:
        try:
            self._device.fail(request, error)
        except Exception as again:
            self._failed(f"{type(self._device).__name__}.fail", again)

    def _request_skipped(self, request: Request, why: str, attempts: int) -> None:
        """Complete a dead worker's request which is not to run (again), and log why."""
        name = type(self._device).__name__
        chain = (
            f"queue {request.queue}, head {request.head}, {request.readable_total} bytes to read, "
            f"{request.writable_total} to write, begins {request.read(PEEK_BYTES).hex() or 'empty'}"
        )
        if why == "drop":
            self._said.note(why, logging.WARNING, lambda: f"{name}: not run again: {chain}")
            request.finish(0)
            return
        cause = f"{attempts} workers died over it" if why == "poison" else "not run again"
        self._said.note(why, logging.ERROR, lambda: f"{name}: failed, as {cause}: {chain}")
        self._fail(request, RequestAbandoned(request.queue, request.head, attempts))
        if not request.finished:
            request.finish(0)

    def _take_native(self, index: int, native: NativeDevice | None) -> None:
        self._queues[index].native = native
        if native is not None and native.completion_fd >= 0:
            # It only has to wake the loop, which publishes in every turn.
            self._watcher.add(native.completion_fd, lambda _mask: None)

    def _look_at_failures(self, queue: Queue) -> None:
        """Log what a native device has counted since the last look."""
        native = queue.native
        if native is None or native.failures == queue.failures_seen:
            return
        count, queue.failures_seen = native.failures - queue.failures_seen, native.failures
        error = OSError(native.failure, os.strerror(native.failure))
        about = f"queue {queue.index}: {count} requests failed, the last"
        self._failed(f"{type(self._device).__name__}.native", error, about)

    def _hook(self, method: Callable[..., None], *args: object) -> None:
        """Call the device's own code; what it raises is logged with the method's name and ends
        nothing.
        """
        try:
            with self._in_hook():
                method(*args)
        except Exception as error:
            self._failed(_name(method), error)

    def _failed(self, what: str, error: BaseException, about: str = "", *, then: str = "") -> None:
        module = sys.modules.get(type(self._device).__module__)
        file = getattr(module, "__file__", None) or ""
        self._said.failed(what, error, about, then=then, file=file)


class Refusal(Exception):
    """A command that cannot be carried out, with the reason for the answer."""


def _extended(memory: GuestMemory, region: control.Region, fd: Fd) -> GuestMemory:
    return memory.with_region(
        region.guest_addr, region.size, region.user_addr, region.mmap_offset, fd.fileno()
    )


def _name(method: Callable[..., None]) -> str:
    """What an author calls it."""
    return str(getattr(method, "__qualname__", type(method).__name__))
