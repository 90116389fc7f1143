"""Carries out what a device asks for in its shared memory regions, one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from vuproc.fd import Fd
from vuproc.mapping import MapShmem, ShmemAsk, ShmemMapping, UnmapShmem
from vuproc.pool.pool import WorkerPool
from vuproc.pool.slots import AskedShmem
from vuproc.spec.vhost_user import MMAP, MMAP_WRITABLE, BackendRequest, ProtocolFeature
from vuproc.vhost_user.backend_channel import Answered, BackendChannel
from vuproc.vhost_user.state import State

NEEDED = (
    ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.BACKEND_SEND_FD
    | ProtocolFeature.SHMEM
    | ProtocolFeature.REPLY_ACK
)
"""Without the last nobody would hear whether it was done."""
LACKING = "the front-end has not negotiated SHMEM, with BACKEND_SEND_FD and REPLY_ACK"
NOBODY = "there is no front-end"
NO_CHANNEL = "the back-end channel has ended"
REFUSED = "the front-end refused"
RESET = "the device was reset meanwhile"


class ShmemDesk:
    """The shared memory of one session. `channel` gives the back-end channel, if there is one;
    `changed` has what is known kept for a successor.

    Nothing here waits for the front-end, and it is asked one thing at a time, so that its answers
    are about what is known. Nothing is sent while no ring runs, as to objects (`ObjectDesk`). What
    was asked by a worker that is gone is forgotten; what it had made without hearing of it is taken
    away.
    """

    def __init__(
        self,
        pool: WorkerPool,
        channel: Callable[[], BackendChannel | None],
        changed: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._table = pool.history.shmem
        self._channel = channel
        self._changed = changed
        self._asked: deque[AskedShmem] = deque()
        self._busy = False
        self._state: State | None = None
        self._over = False

    def ask(self, asked: AskedShmem) -> None:
        """The device asks; `follow` is to come."""
        self._asked.append(asked)

    def follow(self, state: State) -> None:
        """Ask the front-end, if it may be asked by now."""
        self._state = state
        if state.protocol_features & NEEDED != NEEDED:
            self._fail_all(LACKING)
        self._go_on()

    def close(self) -> None:
        """The session is over."""
        self._over = True
        self._table.under_way = None
        while self._asked:
            _close(self._asked.popleft().ask)

    def _go_on(self) -> None:
        while (self._asked or self._table.doubtful) and self._may_send():
            channel = self._channel()
            if channel is None:
                return
            if channel.closed:
                self._fail_all(NO_CHANNEL)
                return
            if self._table.doubtful:
                self._empty(channel, self._table.doubtful[0])
            else:
                self._carry_out(channel, self._asked.popleft())

    def _may_send(self) -> bool:
        if self._busy or self._over or self._state is None:
            return False
        return self._state.protocol_features & NEEDED == NEEDED and self._state.any_started

    def _carry_out(self, channel: BackendChannel, asked: AskedShmem) -> None:
        ask = asked.ask
        if asked.worker != self._pool.speaker:
            _close(ask)
            return
        mapped = isinstance(ask, MapShmem)
        table = self._table
        problem = (table.map_problem if mapped else table.unmap_problem)(ask.mapping)
        if problem:
            refuse(self._pool, asked, problem)
            return
        resets = table.resets

        def answered(how: Answered) -> None:
            _close(ask)
            problem = self._note(asked, how, reset=table.resets != resets)
            self._pool.answer_shmem(asked.worker, ask.serial, problem)

        file_offset = ask.file_offset if isinstance(ask, MapShmem) else 0
        fds = (ask.file,) if isinstance(ask, MapShmem) else ()
        self._send(channel, mapped, ask.mapping, answered, file_offset, fds)

    def _note(self, asked: AskedShmem, how: Answered, *, reset: bool) -> str:
        """What is known after the front-end's answer; why the device has not what it asked for."""
        mapping, table = asked.ask.mapping, self._table
        if how is Answered.NEVER:
            table.doubt(mapping)
            return NO_CHANNEL
        if isinstance(asked.ask, UnmapShmem):
            if how is Answered.DONE:
                table.remove(mapping)
            return "" if how is Answered.DONE else REFUSED
        if how is Answered.REFUSED:
            return REFUSED
        if reset or asked.worker != self._pool.speaker:
            table.doubt(mapping)
            return RESET
        table.add(mapping)
        return ""

    def _empty(self, channel: BackendChannel, mapping: ShmemMapping) -> None:
        """Take away what may be there."""

        def answered(how: Answered) -> None:
            if how is not Answered.NEVER:
                self._table.remove(mapping)

        self._send(channel, False, mapping, answered)

    def _send(
        self,
        channel: BackendChannel,
        mapped: bool,
        mapping: ShmemMapping,
        answered: Callable[[Answered], None],
        file_offset: int = 0,
        fds: tuple[Fd, ...] = (),
    ) -> None:
        self._busy, self._table.under_way = True, mapping
        self._changed()  # before anything is sent: a successor has to know

        def done(how: Answered, file: Fd | None) -> None:
            if file is not None:
                file.close()  # none is due
            self._busy, self._table.under_way = False, None
            if self._over:
                for fd in fds:
                    fd.close()
                return
            answered(how)
            self._changed()
            self._go_on()

        request = BackendRequest.SHMEM_MAP if mapped else BackendRequest.SHMEM_UNMAP
        payload = MMAP.pack(
            shmid=mapping.region,
            fd_offset=file_offset,
            shm_offset=mapping.offset,
            len=mapping.length,
            flags=MMAP_WRITABLE if mapped and mapping.writable else 0,
        )
        channel.request(request, payload, done, fds)

    def _fail_all(self, problem: str) -> None:
        while self._asked:
            refuse(self._pool, self._asked.popleft(), problem)


def refuse(pool: WorkerPool, asked: AskedShmem, problem: str = NOBODY) -> None:
    """What was asked for is not done."""
    _close(asked.ask)
    pool.answer_shmem(asked.worker, asked.ask.serial, problem)


def _close(ask: ShmemAsk) -> None:
    if isinstance(ask, MapShmem):
        ask.file.close()
