"""The loop of a worker process: control messages, kicks, the device's own descriptors, and requests
between them.

One thread, one poll set. A command is carried out between two batches, so a ring never sees half of
it; a command that needs the rings idle (a memory change, a stop) holds them and is answered once
the device has finished what is in flight. The master has a deadline for that.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable

from vuproc.device import Device
from vuproc.errors import MemoryFault, RingError
from vuproc.fd import Fd
from vuproc.shm.counters import QueueCounters
from vuproc.shm.native import NativeDevice
from vuproc.shm.ring import SLICE_NS
from vuproc.shm.segment import Segment
from vuproc.workers.channel import ChannelClosed
from vuproc.workers.commands import Commands, Leave, Refusal
from vuproc.workers.control import Command, Done, Failed, RingBroken, WorkerChannel
from vuproc.workers.device_code import DeviceCode, name_of
from vuproc.workers.log import WorkerLog
from vuproc.workers.poller import Callback, HasFileno, Watcher, is_ready
from vuproc.workers.queue import ALONE_NS, Queue
from vuproc.workers.spin import LONGEST_NS, Spin

POLL_BUSY_S = 0.0005
"""How long a ring without a kick descriptor sleeps between two looks when it was found empty."""
POLL_SPINS = 64
"""Looks at an empty polled ring before the first such sleep."""


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
        self._code = DeviceCode(device, said)
        self._commands = Commands(device, self._code, self._watcher)
        self._queues = self._commands.queues
        self._waiting: deque[tuple[Command, tuple[Fd, ...]]] = deque()
        self._counters = self._code.counters
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
                with self._code.in_hook():
                    callback()
            except Exception as error:
                # What it has not read is there still: it would be called again at once, for ever.
                then = ""
                if self._hooks.get(number) is ready and is_ready(number, events):
                    self.unwatch(number)
                    then = f"; descriptor {number} is no longer watched"
                self._code.failed(name_of(callback), error, then=then)

        self._watcher.add(number, ready, events)
        self._hooks[number] = ready

    def unwatch(self, fd: int | HasFileno) -> None:
        """Stop calling back for `fd`."""
        number = fd if isinstance(fd, int) else fd.fileno()
        hook = self._hooks.pop(number, None)
        if hook is not None:
            self._watcher.remove(number, hook)

    # The loop.

    def take(
        self, queues: tuple[int, ...], counters: Segment | None, *, recovered: bool = False
    ) -> None:
        """Be the one who serves `queues`, and let the device prepare each of them.

        `recovered`: another worker has served them before.
        """
        self._device.recovered = recovered
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
                self._code.request_failed,
                self._code.request_skipped,
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
                    self._code.look_at_failures(queue)
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
        while self._waiting and not self._commands.waits_for(self._waiting[0][0].order):
            self._carry_out(*self._waiting.popleft())

    def _carry_out(self, command: Command, fds: tuple[Fd, ...]) -> None:
        if not self._took_over:
            self._took_over = True
            # Our predecessor is gone, whatever it was doing: while we set up it may have lived.
            for counters in self._counters:
                counters.hand_none()
                counters.leave_hooks()
        kept = False
        try:
            done = self._commands.carry_out(command)
            kept = command.order.keeps_fds
        except Leave:
            self._said.tend(at_last=True)  # nobody listens after the answer
            self._answer(Done(command.serial))
            raise
        except (RingError, MemoryFault, OSError, Refusal) as error:
            self._answer(Failed(command.serial, str(error)))
        else:
            self._answer(done)
        finally:
            if not kept:
                for fd in fds:
                    fd.close()

    # What goes to the master.

    def _answer(self, report: Done | Failed | RingBroken) -> None:
        try:
            self._channel.send(report)
        except ChannelClosed:
            raise Leave(0) from None

    def _ring_broken(self, queue: int, cause: str) -> None:
        self._queues[queue].unwatch_in(self._watcher)
        self._answer(RingBroken(queue, cause))

    def _take_native(self, index: int, native: NativeDevice | None) -> None:
        self._queues[index].native = native
        if native is not None and native.completion_fd >= 0:
            # It only has to wake the loop, which publishes in every turn.
            self._watcher.add(native.completion_fd, lambda _mask: None)
