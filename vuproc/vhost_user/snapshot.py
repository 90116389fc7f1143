"""A session's state as bytes, so that another process can go on with it: part by part.

A message changes little, so the state is written in parts: each ring is one, the memory table is
one, and the head is all the rest. A part is msgpack, in which every descriptor stands as its place
among the part's. What the fields of a `State` mean is part of the version, which is in the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from vuproc.errors import RestoreError
from vuproc.fd import Fd, FdKind
from vuproc.vhost_user.effects import Region
from vuproc.vhost_user.state import Offer, State, extra_bits
from vuproc.vhost_user.vring import Vring

VERSION = 6
"""Rises with every change of the structures in `State`, or of what one of their fields means."""

HEAD, MEMORY = -1, -2
"""Numbers of the parts that are no ring; a ring's part has its index."""

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


class Part(msgspec.Struct, frozen=True):
    """A part of a state as bytes, and the descriptors that it needs, which stay their owner's."""

    data: bytes
    fds: tuple[Fd, ...] = ()


class _Version(msgspec.Struct, frozen=True):
    version: int


class _Head(msgspec.Struct, frozen=True):
    version: int
    state: State
    """Without rings and memory."""


class _Memory(msgspec.Struct, frozen=True):
    regions: tuple[Region, ...]
    staged: tuple[Region, ...]


def changed_rings(before: tuple[Vring, ...], after: tuple[Vring, ...]) -> list[int]:
    """The indices of the rings that are not as they were.

    Halves that are equal are told by one comparison of tuples, which looks no further into a ring
    that is the very same: it costs next to nothing however many there are.
    """
    if before is after:
        return []
    if len(before) != len(after):
        return list(range(len(after)))
    found: list[int] = []
    halves = [(0, len(after))]
    while halves:
        start, end = halves.pop()
        if before[start:end] == after[start:end]:
            continue
        if end - start == 1:
            found.append(start)
            continue
        middle = (start + end) // 2
        halves += ((middle, end), (start, middle))
    return found


def changed_parts(before: State | None, after: State) -> list[int]:
    """The numbers of the parts in which two states differ; all of them without one before."""
    if before is after:
        return []
    if before is None:
        return [HEAD, MEMORY, *range(len(after.rings))]
    found = [] if _head(before) == _head(after) else [HEAD]
    if (before.regions, before.staged) != (after.regions, after.staged):
        found.append(MEMORY)
    return found + changed_rings(before.rings, after.rings)


def fds_of(state: State, number: int) -> Iterable[Fd]:
    """The descriptors that one part of a state keeps open."""
    if number == HEAD:
        return _head(state).roles()
    if number == MEMORY:
        return [region.fd for region in (*state.regions, *state.staged)]
    return [fd for _, fd in state.rings[number].roles() if fd is not None]


def part_of(state: State, number: int) -> Part:
    """One part of a state as bytes."""
    if number == HEAD:
        return _encoded(_Head(VERSION, _head(state)))
    if number == MEMORY:
        return _encoded(_Memory(state.regions, state.staged))
    return _encoded(state.rings[number])


def restore(offer: Offer, parts: Mapping[int, Part]) -> State:
    """The state whose parts these are, with their descriptors in it.

    Raises RestoreError if a part is missing, damaged or of another version, if a descriptor is not
    of its kind, or if the device is not the same any more. The descriptors stay the caller's then.
    """
    head = _part(parts, HEAD)
    version = decoded(head.data, _Version).version
    if version != VERSION:
        raise RestoreError(f"of version {version}, not {VERSION}")
    state = _filled(head, _Head).state
    memory = _filled(_part(parts, MEMORY), _Memory)
    rings = tuple(_filled(_part(parts, index), Vring) for index in range(len(parts) - 2))
    state = replace(state, rings=rings, regions=memory.regions, staged=memory.staged)
    return checked(offer, state)


def checked(offer: Offer, state: State) -> State:
    """The state, if this device can go on from it; else RestoreError."""
    problem = next(_problems(offer, state), None)
    if problem is not None:
        raise RestoreError(problem)
    return state


def decoded(data: bytes, kind: type[_T], hook: Callable[[type, Any], Any] | None = None) -> _T:
    """The bytes as one of `kind`; RestoreError if they are none.

    msgspec's own errors are not all: text that is not UTF-8 is a UnicodeDecodeError, what is nested
    too deep a RecursionError, and a name that cannot be a key, given to `hook`, a TypeError.
    """
    try:
        return msgspec.msgpack.decode(data, type=kind, dec_hook=hook)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError) as error:
        raise RestoreError(f"damaged: {error}") from error


def _head(state: State) -> State:
    return replace(state, rings=(), regions=(), staged=())


def _encoded(content: _Head | _Memory | Vring) -> Part:
    places: dict[Fd, int] = {}

    def encode(value: object) -> int:
        if isinstance(value, Fd):
            return places.setdefault(value, len(places))
        raise NotImplementedError(f"no bytes for a {type(value).__name__}")

    data = msgspec.msgpack.encode(content, enc_hook=encode)
    return Part(data, tuple(places))


def _part(parts: Mapping[int, Part], number: int) -> Part:
    if number not in parts:
        raise RestoreError(f"damaged: part {number} is missing")
    return parts[number]


def _filled(part: Part, kind: type[_T]) -> _T:
    used: set[int] = set()

    def decode(wanted: type, value: Any) -> Any:
        if wanted is not Fd or type(value) is not int or not 0 <= value < len(part.fds):
            raise ValueError(f"{value!r} is no descriptor of this part")
        used.add(value)
        return part.fds[value]

    content = decoded(part.data, kind, decode)
    if len(used) != len(part.fds):
        # Nobody would close the others.
        raise RestoreError(f"damaged: {len(used)} of {len(part.fds)} descriptors are used")
    return content


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
