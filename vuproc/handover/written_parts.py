"""Which parts of a session the state file has as they are, and what is stored for them."""

from __future__ import annotations

from vuproc.fd import Fd
from vuproc.handover.session_fds import SessionFds
from vuproc.handover.session_snapshot import POOL, encode_part, encode_pool
from vuproc.pool.pool_state import PoolState
from vuproc.vhost_user.session import Session
from vuproc.vhost_user.snapshot import changed_parts, fds_of
from vuproc.vhost_user.state import State


class WrittenParts:
    """What the state file says of a session, at first nothing that could be continued. The
    descriptors are in `store`.
    """

    def __init__(self, store: SessionFds) -> None:
        self._store = store
        self._state: State | None = None
        self._pool: PoolState | None = None

    def adopt(self, state: State, pool: PoolState) -> None:
        """It says this: a predecessor has written it."""
        self._state, self._pool = state, pool
        uses = {number: fds_of(state, number) for number in changed_parts(None, state)}
        self._store.use({**uses, POOL: pool.fds()})

    def changes(self, session: Session, pool: PoolState) -> dict[int, bytes]:
        """The parts that it does not have as they are, by their numbers: they are to be written
        now.
        """
        uses: dict[int, tuple[Fd, ...]] = {}
        changed: dict[int, bytes] = {}
        for number, part in session.snapshot(self._state).items():
            uses[number] = part.fds
            changed[number] = encode_part(part, self._store.keep(part.fds))
        if pool != self._pool:
            uses[POOL] = pool.fds()
            records = None if pool.records is None else self._store.keep([pool.records])[0]
            made = self._store.keep(file for _, file in pool.made)
            changed[POOL] = encode_pool(pool, records, made)
        self._store.use(uses)
        self._state, self._pool = session.state, pool
        return changed
