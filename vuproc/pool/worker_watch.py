"""The workers' descriptors in the master's poll set: what they say, and their ends."""

from __future__ import annotations

import select
import selectors
from enum import Enum
from functools import partial

from vuproc.pool.helper import Helper
from vuproc.pool.pool import WorkerPool
from vuproc.pool.post import Post
from vuproc.pool.process import WorkerProcess
from vuproc.pool.slot import WorkerSlot
from vuproc.pool.standby import Standby


class Sign(Enum):
    """What a worker's descriptor tells."""

    SAYS = "says"
    """It says something: its control channel."""
    STOPPED = "stopped"
    """It runs no more: the listener of its filter of system calls has hung up."""
    ENDED = "ended"
    """It is gone: its pidfd."""


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
        self._signs: dict[WorkerProcess, dict[Sign, int]] = {}
        """The descriptors by which each of them is watched."""
        self._numbers: dict[int, tuple[WorkerProcess, Sign]] = {}
        """Whose a descriptor is."""
        selector.register(self._epoll, selectors.EVENT_READ, self._ready)

    def update(self) -> None:
        """After whatever may have put workers elsewhere."""
        moved = self._slots.posts.moved
        while moved:
            post = moved.pop()
            before, worker = self._at.pop(post, None), post.worker
            if before is not None and before is not worker and self._watched.get(before) is post:
                if isinstance(post, WorkerSlot) and post.exit_unlogged is before:
                    # It has a successor, and is to be buried.
                    self._unregister(before, Sign.SAYS)
                    self._unregister(before, Sign.STOPPED)
                else:
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
            self._signs[worker] = {}
            self._register(worker, Sign.SAYS, worker.fileno())
            self._register(worker, Sign.ENDED, worker.pidfd.fileno())
            worker.on_close(partial(self._forget, worker))
            if worker.listener is not None:
                self._listen(worker)
            else:
                worker.on_listener = partial(self._listen, worker)
        self._watched[worker] = post

    def _listen(self, worker: WorkerProcess) -> None:
        if worker in self._signs and worker.listener is not None:
            self._register(worker, Sign.STOPPED, worker.listener.fileno())

    def _forget(self, worker: WorkerProcess) -> None:
        if self._watched.pop(worker, None) is not None:
            for sign in Sign:
                self._unregister(worker, sign)
            del self._signs[worker]

    def _register(self, worker: WorkerProcess, sign: Sign, number: int) -> None:
        self._signs[worker][sign] = number
        self._numbers[number] = worker, sign
        # A listener that is readable has a call to tell of, of which ours has none.
        self._epoll.register(number, 0 if sign is Sign.STOPPED else select.EPOLLIN)

    def _unregister(self, worker: WorkerProcess, sign: Sign) -> None:
        number = self._signs[worker].pop(sign, None)
        if number is not None:
            del self._numbers[number]
            self._epoll.unregister(number)

    def _ready(self) -> None:
        # Whose they are is known before anything is done: that may close descriptors, whose numbers
        # other workers may get.
        ready = [(*self._numbers[number], events) for number, events in self._epoll.poll(0)]
        for worker, sign, events in ready:
            post = self._watched.get(worker)
            if post is None or (sign is Sign.STOPPED and not events & select.EPOLLHUP):
                continue
            if sign is Sign.STOPPED:
                self._unregister(worker, sign)  # it does not end
            if post.worker is worker:
                self._happened(post, sign)
            elif isinstance(post, WorkerSlot) and post.exit_unlogged is worker:
                post.log_exit()
            else:
                continue
            self.update()

    def _happened(self, post: Post, sign: Sign) -> None:
        if isinstance(post, Standby | Helper):
            # Whether it runs no more, or is gone, is the same for those whom nobody waits for.
            if sign is not Sign.STOPPED:
                (post.ended if sign is Sign.ENDED else post.heard)()
        elif isinstance(post, WorkerSlot):
            match sign:
                case Sign.SAYS:
                    self._slots.heard(post)
                case Sign.STOPPED:
                    self._slots.stopped(post)
                case Sign.ENDED:
                    self._slots.ended(post)
