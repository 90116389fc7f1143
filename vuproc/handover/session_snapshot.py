"""The session as a successor reads it: its own parts and the pool's, with names for descriptors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from vuproc.errors import ReasonedError
from vuproc.fd import Fd
from vuproc.handover.session_fds import SessionFds
from vuproc.handover.state_file import WHOLE, Parts
from vuproc.pool.pool_state import PoolState
from vuproc.pool.shmem_table import Known
from vuproc.vhost_user.earlier_snapshot import restore_earlier
from vuproc.vhost_user.snapshot import Part, restore
from vuproc.vhost_user.state import Offer, State

VERSION = 2
"""Of what is in a snapshot beside the session's own parts."""
EARLIER_VERSION = 1
"""That of a program whose state file has all in one piece."""

POOL = -100
"""The number of the pool's part; the others are the session's (`vuproc.vhost_user.snapshot`)."""

Take = Callable[[str], Fd]
"""Gives the descriptor that was stored under a name. Raises Lost."""


class Lost(ReasonedError):
    """The predecessor's session cannot be resumed; `reason` says why."""


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    """A part of the session's state, and the names in the store of its descriptors."""

    data: bytes
    names: tuple[str, ...]


class _Pool(msgspec.Struct, frozen=True):
    """What the pool must know; `records` and the files of `made` are names in the store."""

    version: int
    config: tuple[tuple[int, bytes], ...]
    kept: tuple[tuple[int, int], ...]
    records: str | None
    said: bytes | None = None
    objects: tuple[tuple[bytes, str], ...] = ()
    made: tuple[tuple[bytes, str], ...] = ()
    shmem: Known = ((), ())

    def filled(self, take: Take) -> PoolState:
        """The same with descriptors."""
        records = None if self.records is None else take(self.records)
        made = tuple((uuid, take(stored)) for uuid, stored in self.made)
        return PoolState(self.config, self.kept, records, self.said, self.objects, made, self.shmem)


class _Earlier(_Pool, frozen=True, kw_only=True):
    """All of it, as version 1 had it."""

    session: bytes
    names: dict[str, str]
    """The session's name of a descriptor -> its name in the store."""


_P = TypeVar("_P", bound=_Pool)
_T = TypeVar("_T")


def encode_part(part: Part, names: tuple[str, ...]) -> bytes:
    """A part of the session's state whose descriptors are stored under `names`."""
    return msgspec.msgpack.encode(_Stored(part.data, names))


def encode_pool(pool: PoolState, records: str | None, made: Sequence[str]) -> bytes:
    """What the pool must know; `records` and `made` are the names of its descriptors."""
    return msgspec.msgpack.encode(
        _Pool(
            VERSION,
            pool.config,
            pool.kept,
            records,
            pool.said,
            pool.objects,
            tuple((uuid, name) for (uuid, _), name in zip(pool.made, made, strict=True)),
            pool.shmem,
        )
    )


def decode(parts: Parts, offer: Offer, share: Take, take: Take) -> tuple[State, PoolState]:
    """The opposite of all parts. `share` gives the session's descriptors, the same one for a name
    each time; `take` gives others, each to be closed by its owner. Raises Lost or RestoreError.
    """
    if WHOLE in parts:
        return _decode_earlier(parts[WHOLE], offer, share, take)
    known = _pool_of(parts.get(POOL), VERSION, _Pool)
    session = {number: _filled(data, share) for number, data in parts.items() if number != POOL}
    return restore(offer, session), known.filled(take)


def _decode_earlier(data: bytes, offer: Offer, share: Take, take: Take) -> tuple[State, PoolState]:
    snapshot = _pool_of(data, EARLIER_VERSION, _Earlier)
    fds = {name: share(stored) for name, stored in snapshot.names.items()}
    return restore_earlier(offer, snapshot.session, fds), snapshot.filled(take)


def _filled(data: bytes, share: Take) -> Part:
    stored = _decoded(data, _Stored)
    return Part(stored.data, tuple(map(share, stored.names)))


def _pool_of(data: bytes | None, version: int, kind: type[_P]) -> _P:
    if data is None:
        raise Lost("its snapshot lacks what the workers must know")
    known = _decoded(data, kind)
    if known.version != version:
        raise Lost(f"its snapshot is of version {known.version}, not {version}")
    return known


def _decoded(data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Lost(f"its snapshot cannot be read: {error}") from error


class FdTaker:
    """Takes stored descriptors into use, and has each in `taken`.

    The parts of the session share theirs: what comes again under a name is the same one. Whoever
    closes its own gets another.
    """

    def __init__(self, store: SessionFds, inherited: dict[str, Fd], taken: list[Fd]) -> None:
        self._store = store
        self._inherited = inherited
        self._taken = taken
        self._used: dict[str, Fd] = {}
        self._shared: dict[str, Fd] = {}

    def share(self, name: str) -> Fd:
        """The session's descriptor that was stored under `name`; raises Lost."""
        if name not in self._shared:
            self._shared[name] = self.take(name)
        return self._shared[name]

    def take(self, name: str) -> Fd:
        """A descriptor of what was stored under `name`; raises Lost."""
        if name in self._used:
            fd = self._used[name].dup()
        elif name in self._inherited:
            fd = self._used[name] = self._inherited.pop(name)
            self._store.adopt(name, fd)
        else:
            raise Lost(f"descriptor {name} was not kept")
        self._taken.append(fd)
        return fd
