"""The workers' descriptors in the master's poll set: what they say, and their ends."""

from __future__ import annotations

import selectors
from collections.abc import Callable
from functools import partial

from vuproc.pool.pool import WorkerPool
from vuproc.pool.slot import WorkerSlot
from vuproc.pool.standby import Standby


class WorkerWatch:
    """Has `selector` in step with who sits where, as long as `update` is called."""

    def __init__(self, selector: selectors.BaseSelector, pool: WorkerPool) -> None:
        self._selector = selector
        self._pool = pool
        self._watched: dict[WorkerSlot | Standby, tuple[int, ...]] = {}

    def update(self) -> None:
        """After whatever may have closed a worker's descriptors, or opened others."""
        posts: list[WorkerSlot | Standby] = [*self._pool.slots, self._pool.slots.standby]
        current = {post: _descriptors(post) for post in posts}
        changed = [post for post, now in current.items() if now != self._watched.get(post, ())]
        # All old numbers go first: a new worker may have got the number of another's closed
        # descriptor.
        for post in changed:
            for number in self._watched.get(post, ())[1:]:
                self._forget(number)
        for post in changed:
            if current[post]:
                _, channel, pidfd = current[post]
                heard, ended = self._callbacks(post)
                for number, event in ((channel, heard), (pidfd, ended)):
                    still = partial(_of_worker, post, post.worker, event)
                    self._selector.register(number, selectors.EVENT_READ, still)
            self._watched[post] = current[post]

    def _callbacks(
        self, post: WorkerSlot | Standby
    ) -> tuple[Callable[[], None], Callable[[], None]]:
        if isinstance(post, Standby):
            return post.heard, post.ended
        return partial(self._pool.slots.heard, post), partial(self._pool.slots.ended, post)

    def _forget(self, number: int) -> None:
        try:
            self._selector.unregister(number)
        except (KeyError, ValueError):
            pass


def _of_worker(post: WorkerSlot | Standby, worker: object, event: Callable[[], None]) -> None:
    """An event of a worker that is still there: what came before it in this turn may have replaced
    the worker already.
    """
    if post.worker is worker:
        event()


def _descriptors(post: WorkerSlot | Standby) -> tuple[int, ...]:
    """(pid, channel, pidfd) of the worker at a post, or nothing for an empty one."""
    worker = post.worker
    if worker is None:
        return ()
    return worker.pid, worker.fileno(), worker.pidfd.fileno()
