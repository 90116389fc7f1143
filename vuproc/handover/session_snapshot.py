"""The session as a successor reads it: its own snapshot, the pool's, and names for descriptors."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from vuproc.errors import ReasonedError
from vuproc.fd import Fd
from vuproc.handover.session_fds import SessionFds
from vuproc.pool.pool_state import PoolState
from vuproc.pool.shmem_table import Known

VERSION = 1
"""Of what is in a snapshot beside the session's own part."""


class Lost(ReasonedError):
    """The predecessor's session cannot be resumed; `reason` says why."""


class SessionSnapshot(msgspec.Struct, frozen=True):
    """What the state file has of a session that no message is changing at the moment."""

    version: int
    session: bytes
    names: dict[str, str]
    """The session's name of a descriptor -> its name in the store, less the prefix."""
    config: tuple[tuple[int, bytes], ...]
    kept: tuple[tuple[int, int], ...]
    records: str | None
    said: bytes | None = None
    """The configuration space, if a worker has said what it is."""
    objects: tuple[tuple[bytes, str], ...] = ()
    """What the device shares: names of its shared files by UUID."""
    made: tuple[tuple[bytes, str], ...] = ()
    """The same of files that a worker has made: their names in the store."""
    shmem: Known = ((), ())

    def pool(self, records: Fd | None, made: tuple[tuple[bytes, Fd], ...]) -> PoolState:
        """What the pool must know, with the descriptors of these names."""
        return PoolState(self.config, self.kept, records, self.said, self.objects, made, self.shmem)


def encode(
    session: bytes,
    names: dict[str, str],
    pool: PoolState,
    records: str | None,
    made: Sequence[str],
) -> bytes:
    """The snapshot of a session whose descriptors are stored under `names`; `records` and `made`
    are the names of the pool's.
    """
    return msgspec.msgpack.encode(
        SessionSnapshot(
            VERSION,
            session,
            names,
            pool.config,
            pool.kept,
            records,
            pool.said,
            pool.objects,
            tuple((uuid, name) for (uuid, _), name in zip(pool.made, made, strict=True)),
            pool.shmem,
        )
    )


def decode(data: bytes) -> SessionSnapshot:
    """The opposite; raises Lost."""
    try:
        snapshot = msgspec.msgpack.decode(data, type=SessionSnapshot)
    except msgspec.MsgspecError as error:
        raise Lost(f"its snapshot cannot be read: {error}") from error
    if snapshot.version != VERSION:
        raise Lost(f"its snapshot is of version {snapshot.version}, not {VERSION}")
    return snapshot


class FdTaker:
    """Takes stored descriptors into use; one that is wanted twice is duplicated."""

    def __init__(self, store: SessionFds, inherited: dict[str, Fd], taken: list[Fd]) -> None:
        self._store = store
        self._inherited = inherited
        self._taken = taken
        self._used: dict[str, Fd] = {}

    def take(self, name: str) -> Fd:
        """The descriptor that was stored under `name`; raises Lost."""
        if name in self._used:
            fd = self._used[name].dup()
        elif name in self._inherited:
            fd = self._used[name] = self._inherited.pop(name)
            self._store.adopt(name, fd)
        else:
            raise Lost(f"descriptor {name} was not kept")
        self._taken.append(fd)
        return fd
