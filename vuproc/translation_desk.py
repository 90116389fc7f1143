"""Carries out what workers ask about an IOMMU's translations: the front-end hears of it.

Its answers are messages of its own (IOTLB_MSG), which the session handles as any other. Only that
there is none comes back here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from vuproc.fd import Fd
from vuproc.pool.pool import WorkerPool
from vuproc.spec.iotlb import IOTLB_PAGE, IotlbType
from vuproc.spec.vhost_user import IOTLB, BackendRequest
from vuproc.vhost_user.backend_channel import Answered, BackendChannel
from vuproc.vhost_user.state import State
from vuproc.workers.control import Missing

WAITING_MOST = 8192
"""Questions that wait for a ring to be started, or for room in the channel; whoever has asked one
too many asks again.
"""


class TranslationDesk:
    """The questions of one session. `channel` gives the back-end channel, if there is one, and
    `state` the committed state.

    Nothing here waits for the front-end. It is sent nothing while no ring runs ("a suspended device
    ... must not send messages on the back-end channel"): what a ring needs that is being started is
    put off until it has.
    """

    def __init__(
        self,
        pool: WorkerPool,
        channel: Callable[[], BackendChannel | None],
        state: Callable[[], State],
    ) -> None:
        self._pool = pool
        self._channel = channel
        self._state = state
        self._waiting: deque[tuple[int, int, int]] = deque(maxlen=WAITING_MOST)
        """Queue, address and access."""
        self._under_way: dict[tuple[int, int, int], bool] = {}
        """Those that the front-end has not acknowledged, and whether they were asked again since.
        It is not sent them twice at a time.
        """

    def ask(self, missing: Missing) -> None:
        """A worker's ring waits for translations."""
        self._waiting.extend((missing.queue, *miss) for miss in missing.misses)
        self.follow()

    def follow(self) -> None:
        """Ask the front-end, as soon as that may be."""
        if not self._waiting:
            return
        channel, state = self._channel(), self._state()
        if channel is None or not state.any_started:
            # A ring that has stopped waits for nothing, and one that starts asks in good time.
            return
        while self._waiting:
            queue, iova, access = self._waiting.popleft()
            busy = len(self._under_way) >= WAITING_MOST
            if state.translated and state.rings[queue].live and not busy:
                self._ask(channel, queue, iova, access)

    def close(self) -> None:
        """The session is over."""
        self._waiting.clear()

    def _ask(self, channel: BackendChannel, queue: int, iova: int, access: int) -> None:
        self._pool.asked.note(queue, iova)
        asked = queue, iova, access
        if asked in self._under_way:
            self._under_way[asked] = True
            return
        payload = IOTLB.pack(iova=iova, size=IOTLB_PAGE, perm=access, type=IotlbType.MISS)
        self._under_way[asked] = False
        if not channel.ask(BackendRequest.IOTLB_MSG, payload, partial(self._answered, asked)):
            self._under_way.pop(asked, None)

    def _answered(self, asked: tuple[int, int, int], how: Answered, _fd: Fd | None) -> None:
        again = self._under_way.pop(asked, False)
        queue, iova, _ = asked
        if how is Answered.REFUSED:
            self._pool.untranslated(*asked)
        elif how is Answered.DONE and again and self._pool.asked.waits(queue, iova):
            # The translation came before its acknowledgement, and was gone, or not enough, before
            # that too: what was asked meanwhile is a question of its own.
            self._waiting.append(asked)
            self.follow()
