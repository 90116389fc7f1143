"""Where a worker sits, in a slot or as the standby: who must look at it again is told so."""

from __future__ import annotations

from vuproc.pool.process import WorkerProcess


class Posts:
    """What has changed at the posts of a device since somebody looked: nobody has to look at all.

    `moved`: posts at which another worker sits, or none any more. `unsettled`: those at which
    something may be due, for they are empty, or their worker has an answer to give.
    """

    def __init__(self) -> None:
        self.moved: set[Post] = set()
        self.unsettled: set[Post] = set()


class Post:
    """The place of one worker."""

    def __init__(self) -> None:
        self._worker: WorkerProcess | None = None
        self._posts = Posts()

    def belong_to(self, posts: Posts) -> None:
        """Tell `posts` of all that changes from now on, and of this post, which is new to it."""
        self._posts = posts
        self._changed()

    @property
    def worker(self) -> WorkerProcess | None:
        """Who sits here."""
        return self._worker

    @worker.setter
    def worker(self, worker: WorkerProcess | None) -> None:
        if self._worker is not None:
            self._worker.on_unsettled = _nobody
        self._worker = worker
        self._changed()

    def _changed(self) -> None:
        self._posts.moved.add(self)
        self._unsettled()
        if self._worker is not None:
            self._worker.on_unsettled = self._unsettled

    def _unsettled(self) -> None:
        self._posts.unsettled.add(self)


def _nobody() -> None:
    pass
