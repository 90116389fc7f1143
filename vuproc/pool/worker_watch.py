"""The workers' descriptors in the master's poll set: what they say, and their ends."""

from __future__ import annotations

import select
import selectors
from functools import partial

from vuproc.pool.helper import Helper
from vuproc.pool.pool import WorkerPool
from vuproc.pool.post import Post
from vuproc.pool.process import WorkerProcess
from vuproc.pool.slot import WorkerSlot
from vuproc.pool.standby import Standby


class WorkerWatch:
    """Has `selector` in step with who sits where, as long as `update` is called.

    The workers are in a set of their own, of which only its own descriptor is in `selector`: a turn
    of the loop costs the same however many there are. What is registered there stays as long as
    anybody has the file open, and our keeper has copies of the workers' pidfds. So each is taken
    out before its descriptors are closed, else a dead worker's would be reported under the number
    that its successor's got.
    """

    def __init__(self, selector: selectors.BaseSelector, pool: WorkerPool) -> None:
        self._slots = pool.slots
        self._epoll = select.epoll()
        self._at: dict[Post, WorkerProcess] = {}
        self._watched: dict[WorkerProcess, Post] = {}
        self._numbers: dict[int, tuple[WorkerProcess, bool]] = {}
        """Whose a descriptor is, and whether it is the pidfd."""
        selector.register(self._epoll, selectors.EVENT_READ, self._ready)

    def update(self) -> None:
        """After whatever may have put workers elsewhere."""
        moved = self._slots.posts.moved
        while moved:
            post = moved.pop()
            before, worker = self._at.pop(post, None), post.worker
            if before is not None and before is not worker and self._watched.get(before) is post:
                self._forget(before)
            if worker is not None:
                self._at[post] = worker
                self._watch(worker, post)

    def close(self) -> None:
        """Watch nobody any more."""
        self._watched.clear()
        self._epoll.close()

    def _watch(self, worker: WorkerProcess, post: Post) -> None:
        if worker not in self._watched:
            for number, is_pidfd in ((worker.fileno(), False), (worker.pidfd.fileno(), True)):
                self._numbers[number] = worker, is_pidfd
                self._epoll.register(number, select.EPOLLIN)
            worker.on_close(partial(self._forget, worker))
        self._watched[worker] = post

    def _forget(self, worker: WorkerProcess) -> None:
        if self._watched.pop(worker, None) is not None:
            for number in (worker.fileno(), worker.pidfd.fileno()):
                del self._numbers[number]
                self._epoll.unregister(number)

    def _ready(self) -> None:
        # Whose they are is known before anything is done: that may close descriptors, whose numbers
        # other workers may get.
        for worker, has_ended in [self._numbers[number] for number, _ in self._epoll.poll(0)]:
            post = self._watched.get(worker)
            if post is not None and post.worker is worker:
                self._happened(post, has_ended)
                self.update()

    def _happened(self, post: Post, has_ended: bool) -> None:
        if isinstance(post, Standby | Helper):
            (post.ended if has_ended else post.heard)()
        elif isinstance(post, WorkerSlot):
            (self._slots.ended if has_ended else self._slots.heard)(post)
