"""The loop of a worker process: control messages, kicks, the device's own descriptors, and requests
between them.

One thread, one poll set. A command is carried out between two batches, so a ring never sees half of
it; a command that needs the rings idle (a memory change, a stop) holds them and is answered once
the device has finished what is in flight. The master has a deadline for that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from mmap import mmap
from typing import NoReturn

from vuproc.asks import Ask
from vuproc.device import Device
from vuproc.shm.counters import QueueCounters
from vuproc.shm.kick_wait import KickWait
from vuproc.shm.native import NativeDevice
from vuproc.shm.ring import SLICE_NS
from vuproc.shm.segment import Segment
from vuproc.shm.spin import LONGEST_NS, Spin
from vuproc.workers.channel import ChannelClosed
from vuproc.workers.command_queue import CommandQueue
from vuproc.workers.commands import Commands, Leave
from vuproc.workers.config_report import ConfigReport
from vuproc.workers.control import (
    CONFIG_QUEUE,
    ConfigSays,
    Done,
    Failed,
    Missing,
    RingBroken,
    WorkerChannel,
)
from vuproc.workers.device_code import DeviceCode
from vuproc.workers.device_loop import DeviceLoop
from vuproc.workers.log import WorkerLog
from vuproc.workers.poller import Watcher
from vuproc.workers.queue import ALONE_NS, BUDGET, MOST, Queue
from vuproc.workers.queue_place import Miss
from vuproc.workers.state_transfer import StateTransfer
from vuproc.workers.traces import WorkerTraces

TURNS_MOST = 32768 // BUDGET
"""Turns in which a queue's requests are served before another queue's: a ring's worth."""
AVAILABLE_RETRY_S = 0.1
"""Seconds until a device that pulls is told again of what it failed to take."""
POLL_BUSY_S = 0.0005
"""How long a ring without a kick descriptor sleeps between two looks when it was found empty."""
NS = 1_000_000_000
POLL_SPINS = 64
"""Looks at an empty polled ring before the first such sleep."""


class Worker:
    """Serves queues of `device` as the master's commands say: those that `take` names."""

    _budget = MOST
    """Requests of a turn."""

    def __init__(
        self, channel: WorkerChannel, device: Device, chain_limit: int, said: WorkerLog
    ) -> None:
        self._channel = channel
        self._device = device
        self._said = said
        self._chain_limit = chain_limit
        self.traces: WorkerTraces | None = None
        """Where requests are traced, if they are."""
        self._watcher = Watcher()
        self._code = DeviceCode(device, said)
        self._commands = Commands(device, self._code, self._watcher)
        self._queues = self._commands.queues
        self._counters = self._code.counters
        self._orders = CommandQueue(channel, self._commands, self._counters, said, self._answer)
        self._spin = Spin("off", None, 1)
        self._kicks = KickWait(self._watcher.fileno())
        self._hits = 0
        """Looks at several queues before a sleep that have found something."""
        self._empty_looks = 0
        self._device_loop = DeviceLoop(self._watcher, self._code, self._queues, self._answer)
        self._commands.shmem = self._device_loop.shmem
        self._before: dict[int, tuple[Queue, ...]] = {}
        """By queue, those whose requests its own may rely on (`_serve`)."""
        device.attach(self._device_loop)
        self._watcher.add(channel.fileno(), self._orders.receive)

    # The loop.

    def take(
        self,
        queues: tuple[int, ...],
        counters: Segment | mmap | None,
        limits: mmap | None = None,
        *,
        recovered: bool = False,
    ) -> None:
        """Be the one who serves `queues`, and let the device prepare each of them.

        `limits`: what the device's workers share for theirs. `recovered`: another worker has served
        them before.
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
                if self.traces is not None:
                    own.trace(self.traces.of(index))
            self._queues[index] = Queue(
                index,
                self._device,
                own,
                self._chain_limit,
                self._code.request_failed,
                self._code.request_skipped,
                self._ring_broken,
                self._available,
                self._ask_for,
            )
            self._queues[index].limit(options, limits)
        for index in queues:
            self._device.setup(index)
            self._queues[index].pulled = self._device.pulls(index)
            self._queues[index].waker = self._device_loop.waker
            self._take_native(index, self._device.native(index))
        if CONFIG_QUEUE in queues:
            report = ConfigReport(self._device, self._code, self._answer)
            self._commands.config = self._device_loop.config = report
            self._commands.transfer = StateTransfer(
                self._device,
                self._code,
                self._watcher,
                lambda seconds, call: self._device_loop.call_later(seconds, call, again=False),
            )
        self._before = self._ordered(self._device.queue_groups())
        self._spin = Spin(options.poll, self._counters[0] if self._counters else None, cpus)

    def _available(self, index: int) -> bool:
        """Tell the device that pulls of what there is; whether to do so again at once.

        If that raises, nobody else would: the driver may have no reason for another kick.
        """
        queue = self._queues[index]
        before = queue.waiting
        if self._code.hook(self._device.available, index) or not queue.waiting:
            return False
        if queue.waiting < before:
            return True
        self._device_loop.call_later(AVAILABLE_RETRY_S, queue.look_again, again=False)
        return False

    def _ordered(self, groups: Sequence[Sequence[int]]) -> dict[int, tuple[Queue, ...]]:
        """For each queue those of its group with a lower number that `handle` serves."""
        return {
            index: tuple(
                queue
                for other, queue in self._queues.items()
                if other in group and other < index and queue.native is None and not queue.pulled
            )
            for group in groups
            for index in group
            if index in self._queues
        }

    def help(self) -> int:
        """Be the device's helper, without a queue, until the master has it end; the exit code."""
        from vuproc.workers import helper  # few devices have one

        return helper.run(self._channel, self._device, self._said)

    def run(self) -> int:
        """Serve until the master says `Exit` or goes away; returns the exit code."""
        try:
            self._serve_on()
        except Leave as leave:
            # Whoever comes after us takes our end for that of all we had begun.
            for queue in self._queues.values():
                queue.drop(keep=True)
            return leave.code

    def _serve_on(self) -> NoReturn:
        """Until `Leave` is raised."""
        while True:
            self._wait()
            self._turn()

    def close(self) -> None:
        """Close what the loop has open, and no queue. A process that ends need not."""
        self._device_loop.close()
        self._watcher.close()

    def _turn(self) -> None:
        """What there is to do between two looks at the poll set."""
        self._device_loop.tend()
        # Before the queues: a ring that it starts is served in this turn.
        self._orders.receive_unread()
        for queue in self._queues.values():
            queue.publish()
            queue.ask_again()
            if queue.polling:
                queue.ready = True
            if queue.ready and not self._orders.waits:
                self._serve(queue)
            self._code.look_at_failures(queue)
        self._orders.settle()
        self._said.tend()

    def _serve(self, queue: Queue) -> None:
        """Let a queue run.

        A driver posts a buffer on one queue before the request on another that needs it. So what
        the queues before this one in their group have by now is served first, and of this one no
        more than it has by now.
        """
        earlier = self._before.get(queue.index, ())
        budget = self._budget
        if earlier:
            budget = min(BUDGET, queue.waiting)
            for other in earlier:
                for _ in range(TURNS_MOST):
                    if not other.waiting:
                        break
                    other.run()
                    if any(counters.command_pending for counters in self._counters):
                        # That ends turns early. It goes first, and this queue is ready still.
                        return
        queue.run(self._window(queue), self._slice(queue), budget)

    def _wait(self) -> None:
        patience = self._patience()
        for counters in self._counters:
            counters.note_commands()
        if patience is None and any(queue.publish() for queue in self._queues.values()):
            # Another queue's handler, or a hook, has finished requests since their queue's turn; a
            # command may wait for just these.
            patience = 0.0
        if (
            patience is None
            and len(self._queues) > 1
            and not self._orders.waits
            and self._look_around()
        ):
            patience = 0.0
        if patience == 0.0:
            self._watcher.poll(0.0)
            return
        due = self._due()
        if patience is not None:
            self._watcher.poll(soonest(patience, due))
        else:
            self._sleep(due)

    def _sleep(self, due: float | None) -> None:
        """Until something happens, at most `due` seconds."""
        if len(self._queues) == 1 and not self._orders.waits:
            (queue,) = self._queues.values()
            if queue.quiet:
                if not queue.sleep(self._kicks, self._spin, due, self._slice(queue)):
                    self._watcher.poll(0.0)
                return
        if self._counters:
            self._counters[0].set_awake(False)
        began = time.monotonic_ns()
        self._watcher.poll(due)
        if self._counters:
            self._counters[0].set_awake(True)
        hits = self._hits + sum(queue.hits for queue in self._queues.values())
        self._spin.slept(time.monotonic_ns() - began, hits)

    def _due(self) -> float | None:
        """Seconds until there is something to do that no descriptor announces, or None."""
        asking = (queue.due for queue in self._queues.values())
        return soonest(self._said.due(), self._device_loop.due(), *asking)

    def _look_around(self) -> bool:
        """Look at all queues again and again before a sleep, as `Ring.spin` does for a single one;
        whether one has something.
        """
        if len(self._queues) == 1 or self._orders.waits:
            return False
        end = time.monotonic_ns() + self._spin.window_ns
        while time.monotonic_ns() < end:
            for queue in self._queues.values():
                if queue.waiting and not queue.pulled:
                    queue.ready = True
                    self._hits += 1
                    return True
            if any(counters.command_pending for counters in self._counters):
                return True
        return False

    def _window(self, queue: Queue) -> int:
        """Nanoseconds that `queue` may look for more work when it has none."""
        if len(self._queues) > 1:
            return 0  # it could not look at the others meanwhile
        return LONGEST_NS if queue.polling else self._spin.window_ns

    def _slice(self, queue: Queue) -> int:
        """Nanoseconds that a turn may go on for, with work at hand: up to the next timer, unless
        something may come for which nobody can tell a time.
        """
        if self._device_loop.watches or queue.finishes_later or len(self._queues) > 1:
            return SLICE_NS
        due = self._device_loop.due()
        return ALONE_NS if due is None else min(ALONE_NS, max(SLICE_NS, int(due * NS)))

    def _patience(self) -> float | None:
        """Seconds to sleep in poll: none with work at hand, little when a ring must be polled, else
        for ever.
        """
        if [queue for queue in self._queues.values() if not queue.submit()]:
            return POLL_BUSY_S
        if self._orders.waits:
            # Held rings do not run; the device's own descriptors move things on.
            return None if self._orders.held_up else 0.0
        if self._orders.has_unread:
            return 0.0
        if any(queue.ready and queue.active for queue in self._queues.values()):
            self._empty_looks = 0
            return 0.0
        if any(queue.polling for queue in self._queues.values()):
            self._empty_looks += 1
            return 0.0 if self._empty_looks < POLL_SPINS else POLL_BUSY_S
        return None

    # What goes to the master.

    def _answer(self, *reports: Done | Failed | RingBroken | ConfigSays | Missing | Ask) -> None:
        try:
            self._channel.send(*reports)
        except ChannelClosed:
            raise Leave(0) from None

    def _ring_broken(self, queue: int, cause: str) -> None:
        self._queues[queue].unwatch_in(self._watcher)
        self._answer(RingBroken(queue, cause))

    def _ask_for(self, queue: int, misses: Sequence[Miss]) -> None:
        self._answer(Missing(queue, tuple(misses)))

    def _take_native(self, index: int, native: NativeDevice | None) -> None:
        known = any(queue.native is native for queue in self._queues.values())
        self._queues[index].native = native
        if native is not None:
            native.handle = self._device.handle
        if native is not None and native.completion_fd >= 0 and not known:
            # It only has to wake the loop, which publishes in every turn.
            self._watcher.add(native.completion_fd, lambda _mask: None)


def soonest(*waits: float | None) -> float | None:
    """The shortest of some waits, of which None is for ever."""
    return min((wait for wait in waits if wait is not None), default=None)
