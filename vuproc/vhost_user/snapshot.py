"""A session's state as bytes, so that another process can go on with it.

The bytes are one msgpack map: `version`, `serial`, `names` and `state`, in which every descriptor
stands as its name. What the fields of a `State` mean is part of the version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from vuproc.errors import RestoreError
from vuproc.fd import Fd, FdKind
from vuproc.vhost_user.state import Offer, State, extra_bits

VERSION = 5
"""Rises with every change of the structures in `State`, or of what one of their fields means."""

_T = TypeVar("_T")
_BELLS = (FdKind.EVENTFD, FdKind.PIPE, FdKind.SOCKET)
_KINDS: dict[str, tuple[FdKind, ...]] = {
    "backend": (FdKind.SOCKET,),
    "inflight": (FdKind.FILE,),
    "region": (FdKind.FILE, FdKind.OTHER),
    "staged": (FdKind.FILE,),
    "log": (FdKind.FILE,),
    "logcall": _BELLS,
    "display": (FdKind.SOCKET,),
    "kick": _BELLS,
    "call": _BELLS,
    "err": _BELLS,
    "kick_bell": (FdKind.EVENTFD,),
    "call_bell": (FdKind.EVENTFD,),
}


class _Head(msgspec.Struct, frozen=True):
    """What every version has."""

    version: int


class _Frozen(msgspec.Struct, frozen=True):
    version: int
    serial: int
    names: tuple[str, ...]
    state: State


class Names:
    """Gives each descriptor of a session a name, such as "kick-0.17", that no other ever has.

    Such names are legal in systemd's descriptor store: no colon, no control character.
    """

    def __init__(self, known: Mapping[Fd, str] | None = None, serial: int = 0) -> None:
        self._known = dict(known or {})
        self.serial = serial

    def give(self, roles: Mapping[Fd, str]) -> dict[Fd, str]:
        """The name of each of these descriptors; those that are not among them are forgotten."""
        self._known = {fd: self._known.get(fd) or self._new(role) for fd, role in roles.items()}
        return self._known

    def _new(self, role: str) -> str:
        self.serial += 1
        return f"{role}.{self.serial}"


def snapshot(state: State, names: Names) -> tuple[bytes, dict[str, Fd]]:
    """The state as bytes, and its descriptors by the names that stand in the bytes for them."""
    given = names.give(state.roles())

    def encode(value: object) -> str:
        if isinstance(value, Fd):
            return given[value]
        raise NotImplementedError(f"no bytes for a {type(value).__name__}")

    frozen = _Frozen(VERSION, names.serial, tuple(given.values()), state)
    return msgspec.msgpack.encode(frozen, enc_hook=encode), {n: fd for fd, n in given.items()}


def names_of(data: bytes) -> tuple[str, ...]:
    """The names of the descriptors that `restore` wants, in its order. Raises RestoreError."""
    return _names(_checked(data))


def restore(offer: Offer, data: bytes, fds: Mapping[str, Fd]) -> tuple[State, Names]:
    """The state that `snapshot` made into bytes, with these descriptors in it.

    Raises RestoreError if one is missing or is not what its name says, if the bytes are of another
    version or damaged, or if the device is not the same any more.
    """
    names = _names(_checked(data))
    missing = tuple(name for name in names if name not in fds)
    if missing:
        raise RestoreError("descriptors are missing", missing)
    known = {name: fds[name] for name in names}

    def decode(kind: type, value: Any) -> Any:
        if kind is not Fd or value not in known:
            raise ValueError(f"{value!r} is no descriptor of this session")
        return known[value]

    frozen = _decoded(data, _Frozen, decode)
    problem = next(_problems(offer, frozen.state), None)
    if problem is not None:
        raise RestoreError(problem)
    return frozen.state, Names({fd: name for name, fd in known.items()}, frozen.serial)


def _checked(data: bytes) -> bytes:
    head = _decoded(data, _Head)
    if head.version != VERSION:
        raise RestoreError(f"of version {head.version}, not {VERSION}")
    return data


class _Listed(msgspec.Struct, frozen=True):
    names: tuple[str, ...]


def _names(data: bytes) -> tuple[str, ...]:
    return _decoded(data, _Listed).names


def _decoded(data: bytes, kind: type[_T], hook: Callable[[type, Any], Any] | None = None) -> _T:
    """The bytes as one of `kind`; RestoreError if they are none.

    msgspec's own errors are not all: text that is not UTF-8 is a UnicodeDecodeError, what is nested
    too deep a RecursionError, and a name that cannot be a key, given to `hook`, a TypeError.
    """
    try:
        return msgspec.msgpack.decode(data, type=kind, dec_hook=hook)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError) as error:
        raise RestoreError(f"damaged: {error}") from error


def _problems(offer: Offer, state: State) -> Iterator[str]:
    """Why this device cannot go on from this state: it may have been changed in the meantime."""
    if len(state.rings) != offer.num_queues:
        yield f"{len(state.rings)} rings, the device has {offer.num_queues}"
    if any(ring.index != index for index, ring in enumerate(state.rings)):
        yield "damaged: the rings are not in their order"
    extra = extra_bits(state.features or 0, offer.features)
    if extra:
        yield f"features {extra:#x} are not offered any more"
    extra = extra_bits(state.protocol_features, offer.protocol_features)
    if extra:
        yield f"protocol features {extra:#x} are not offered any more"
    size = max((ring.size for ring in state.rings), default=0)
    if size > offer.queue_size:
        yield f"a ring of {size} descriptors, at most {offer.queue_size} are offered"
    if len(state.regions) > offer.max_regions:
        yield f"{len(state.regions)} memory regions, at most {offer.max_regions} are offered"
    for fd, role in state.roles().items():
        if fd.kind not in _KINDS[role.partition("-")[0]]:
            yield f"the descriptor of {role} is of kind {fd.kind.value}"
