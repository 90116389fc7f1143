"""One connection of the soak's front-end: verified requests on every queue, in threads."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.crash.blocks import Blocks
from tests.crash.verified import Findings, VerifiedQueue
from vuproc.errors import VuprocError
from vuproc.spec.virtio import Feature
from vuproc.testing.guest import Guest

MEMORY = 1 << 20
DEPTHS = (1, 4, 16)
QUEUE_SIZES = (64, 128, 256)
"""Each has room for `DEPTHS` requests of three descriptors."""
ZEROES = 0.2
TIMEOUT_S = 300.0
"""For what a message waits for. No measure: the machine may stand still in the middle of it."""
LOOK_S = 0.5
PATIENCE_LOOKS = 480
"""Looks for requests that get on. A count and no time: the machine may stand still."""


class Stuck(AssertionError):
    """Requests do not get on, or something that is awaited does not come."""


@dataclass(frozen=True)
class Shape:
    """What a driver has chosen."""

    packed: bool
    event_idx: bool
    queue_size: int
    depth: int

    @staticmethod
    def drawn(chance: random.Random) -> Shape:
        """Any."""
        return Shape(
            packed=chance.random() < 0.5,
            event_idx=chance.random() < 0.5,
            queue_size=chance.choice(QUEUE_SIZES),
            depth=chance.choice(DEPTHS),
        )


class Connection:
    """Connects to `socket` and has a request generator run on each queue, over its `blocks`.

    Raises what `Guest` raises if it cannot be set up.
    """

    def __init__(
        self,
        socket: Path,
        blocks: Sequence[Blocks],
        chance: random.Random,
        may_fail: Callable[[], bool],
    ) -> None:
        self.shape = Shape.drawn(chance)
        self.guest = Guest(
            socket,
            queues=len(blocks),
            memory=MEMORY,
            packed=self.shape.packed,
            without=0 if self.shape.event_idx else Feature.EVENT_IDX,
            queue_size=self.shape.queue_size,
            timeout_s=TIMEOUT_S,
        )
        self._over = False
        self._looks = False
        self._news = threading.Condition()
        self._begun = [0] * len(blocks)
        self.queues = [
            VerifiedQueue(
                self.guest,
                number,
                each,
                depth=self.shape.depth,
                seed=chance.randrange(1 << 32),
                zeroes=ZEROES,
                may_fail=may_fail,
            )
            for number, each in enumerate(blocks)
        ]
        self._pool = ThreadPoolExecutor(len(blocks), thread_name_prefix="queue")
        self._running: list[Future[Findings]] = [
            self._pool.submit(self._run, number) for number in range(len(blocks))
        ]

    def progress(self, count: int) -> None:
        """Wait until each queue has completed `count` requests that were not begun before.

        Raises Stuck.
        """
        goal = [begun + self.shape.depth + count for begun in self._begun]

        def on() -> bool:
            return all(now >= then for now, then in zip(self._begun, goal, strict=True))

        with self._news:
            for _ in range(PATIENCE_LOOKS):
                if self._news.wait_for(on, LOOK_S):
                    return
                if any(future.done() for future in self._running):
                    raise Stuck(f"a queue has ended: {self._ends()}")
        raise Stuck(f"requests do not get on: {self._begun} of {goal} on {self.shape}")

    def take_stall(self) -> float:
        """The longest time without a completion since the last call, in seconds."""
        longest = max(queue.findings.stall_s for queue in self.queues)
        for queue in self.queues:
            queue.findings.stall_s = 0.0
        return longest

    def end(self, *, look: bool, stop: bool) -> list[Findings]:
        """Finish what is in flight and disconnect. look: at every block, first. stop: the rings
        with a message before.
        """
        self._looks = look
        self._over = True
        try:
            findings = [future.result() for future in self._running]
            if stop:
                for number in range(len(self.queues)):
                    self.guest.stop_queue(number)
            return findings
        finally:
            self._close()

    def cut(self) -> list[Findings]:
        """Disconnect with requests in flight."""
        self.guest.front_end.close()
        for queue in self.queues:
            queue.cut()
        try:
            return [future.result() for future in self._running]
        finally:
            self._close()

    def close(self) -> None:
        """Disconnect, whatever comes of it."""
        with suppress(VuprocError, OSError):
            self.cut()

    def _run(self, number: int) -> Findings:
        def goes_on() -> bool:
            with self._news:
                self._begun[number] += 1
                self._news.notify_all()
            return not self._over

        return self.queues[number].run(goes_on, lambda: self._looks)

    def _ends(self) -> str:
        return "; ".join(
            repr(future.exception() or future.result()) for future in self._running if future.done()
        )

    def _close(self) -> None:
        self._pool.shutdown()
        self.guest.close()
