"""Bytes read as messages of the table, so that whoever makes up bytes makes up conversations.

A message is some bytes: which row, how it is sent, its descriptors, and then one byte for each
field of its payload, the number of a value in POOL. Any bytes at all are a conversation; `seeds`
has the bytes of good ones, one for each message and some that set a device up.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.vhost_user.dialogue import FEATURES, GUEST, PROTOCOL_FEATURES, USER
from vuproc.spec.iotlb import IotlbType
from vuproc.spec.layout import Layout, LayoutError
from vuproc.spec.vhost_user import FRONT_END, VRING_NO_FD, MessageSpec, ProtocolFeature
from vuproc.spec.virtio import Feature

ROWS = tuple(FRONT_END)
MOST = 64
"""Messages of one conversation."""

PROTOCOL = (
    PROTOCOL_FEATURES
    | ProtocolFeature.BACKEND_SEND_FD
    | ProtocolFeature.DEVICE_STATE
    | ProtocolFeature.GET_VRING_BASE_INFLIGHT
    | ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN
    | ProtocolFeature.INBAND_NOTIFICATIONS
    | ProtocolFeature.MTU
    | ProtocolFeature.RARP
    | ProtocolFeature.SHARED_OBJECT
    | ProtocolFeature.SHMEM
)
TRANSLATED = int(FEATURES & ~Feature.LOG_ALL | Feature.ACCESS_PLATFORM)
USUAL = int(PROTOCOL & ~ProtocolFeature.INBAND_NOTIFICATIONS)

REGION_STEPS = (0, 0x1000, 0x2000, 0x4000, 0x10000, 1 << 20)
POOL: tuple[int, ...] = (
    *range(9),
    16,
    60,
    64,
    128,
    255,
    256,
    VRING_NO_FD | 1,
    1500,
    0x1000,
    0x4000,
    0x8000,
    0x8000_8000,
    0xFFFF,
    0x1_0000,
    1 << 20,
    0xFFFF_FFFF,
    *(base + step for base in (GUEST, USER) for step in REGION_STEPS),
    USER + 8,
    int(FEATURES),
    int(FEATURES | Feature.RING_PACKED),
    int(FEATURES & ~Feature.LOG_ALL),
    TRANSLATED,
    int(FEATURES & ~Feature.PROTOCOL_FEATURES),
    int(PROTOCOL),
    USUAL,
    (1 << 64) - 0x1000,
    (1 << 64) - 1,
)


class Shape(enum.IntFlag):
    """How a message is sent."""

    NEED_REPLY = 1
    RAW = 2
    """The payload is so many bytes as they are, not fields."""
    SHORT = 4
    LONG = 8
    FAILS = 16
    """One of its effects does."""
    UNKNOWN = 32
    """Its number is taken as it is."""
    BREAKS = 64
    """Before it, a ring breaks."""


class Kind(enum.IntEnum):
    """What a descriptor is."""

    EVENTFD = 0
    MEMORY = 1
    STREAM = 2
    EMPTY = 3
    PIPE = 4


@dataclass(frozen=True)
class Sent:
    """One message, as a front-end sends it, and what happens round it."""

    number: int
    payload: bytes
    fds: tuple[Kind, ...]
    shape: Shape
    chance: int
    """Picks the effect that fails, the ring that breaks, the position of a ring."""


class Source:
    """Gives bytes; zeros once there are none."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def empty(self) -> bool:
        return self._at >= len(self._data)

    def take(self, count: int) -> bytes:
        found = self._data[self._at : self._at + count]
        self._at += count
        return found.ljust(count, b"\0")

    def byte(self) -> int:
        return self.take(1)[0]


def conversation(data: bytes) -> Iterator[Sent]:
    """What these bytes say."""
    source = Source(data)
    for _ in range(MOST):
        if source.empty:
            return
        yield _message(source)


def _message(source: Source) -> Sent:
    row = ROWS[source.byte() % len(ROWS)]
    shape, chance = Shape(source.byte() & 0x7F), source.byte()
    fds = tuple(Kind(source.byte() % len(Kind)) for _ in range(source.byte() % 8))
    if shape & Shape.RAW:
        payload = source.take(source.byte())
    else:
        payload = _fields(row, source)
    if shape & Shape.SHORT:
        payload = payload[:-1]
    if shape & Shape.LONG:
        payload += b"\0"
    number = row.number
    if shape & Shape.UNKNOWN:
        number = int.from_bytes(source.take(4), "little")
    return Sent(number, payload, fds, shape, chance)


def _fields(row: MessageSpec, source: Source) -> bytes:
    form = row.payload
    if not form.heads:
        return b""
    values = _structure(form.heads[0], source)
    if form.item is not None:
        values.pop(form.count, None)
        values["items"] = [_structure(form.item, source) for _ in range(source.byte() % 5)]
    if form.raw:
        values.pop(form.raw, None)
        values["data"] = source.take(source.byte() % 70)
    return form.encode(**values)


def _structure(layout: Layout, source: Source) -> dict[str, Any]:
    return {name: _fitting(layout, name, POOL[source.byte() % len(POOL)]) for name in layout.fields}


def _fitting(layout: Layout, name: str, value: int) -> Any:
    """The value, or as much of it as there is room for."""
    forms: tuple[Any, ...] = (
        *(value & mask for mask in (~0, 0xFFFF_FFFF, 0xFFFF, 0xFF)),
        value.to_bytes(8, "little"),
        (value,) * 256,
    )
    for form in forms:
        try:
            layout.pack(**{name: form})
        except LayoutError:
            continue
        return form
    raise AssertionError(f"nothing fits {layout.name}.{name}")


# ---- the other way: bytes that are known conversations -------------------------------------------


def said(
    name: str,
    *fields: int,
    fds: Sequence[Kind] = (),
    items: Sequence[Sequence[int]] = (),
    data: bytes = b"",
    shape: Shape = Shape.NEED_REPLY,
) -> bytes:
    """The bytes which `conversation` reads as this message; `fields` are of POOL, in the order of
    the structure.
    """
    row = FRONT_END.named(name)
    found = bytearray([ROWS.index(row), shape, 0, len(fds), *fds])
    if row.payload.heads:
        head = row.payload.heads[0].fields
        found += bytes(POOL.index(value) for value in (*fields, *[0] * len(head))[: len(head)])
    if row.payload.item is not None:
        found.append(len(items))
        found += bytes(POOL.index(value) for item in items for value in item)
    if row.payload.raw:
        found.append(len(data))
        found += data
    return bytes(found)


def begin(features: int = int(FEATURES), protocol: int = USUAL) -> bytes:
    """A front-end that owns the device, and has told it of its memory."""
    region = (GUEST, 1 << 20, USER, 0)
    return b"".join(
        (
            said("GET_FEATURES"),
            said("SET_PROTOCOL_FEATURES", protocol),
            said("SET_OWNER"),
            said("SET_FEATURES", features),
            said("SET_MEM_TABLE", fds=[Kind.MEMORY], items=[region]),
        )
    )


def ring(index: int = 0) -> bytes:
    """All that starts a ring."""
    return b"".join(
        (
            said("SET_VRING_NUM", index, 128),
            said("SET_VRING_BASE", index, 0),
            said("SET_VRING_ADDR", index, 0, USER, USER + 0x2000, USER + 0x4000),
            said("SET_VRING_CALL", index, fds=[Kind.EVENTFD]),
            said("SET_VRING_KICK", index, fds=[Kind.EVENTFD]),
            said("SET_VRING_ENABLE", index, 1),
        )
    )


GOOD: Mapping[str, tuple[tuple[int, ...], tuple[Kind, ...]]] = {
    "SET_LOG_FD": ((), (Kind.EVENTFD,)),
    "SET_VRING_ERR": ((0,), (Kind.EVENTFD,)),
    "NET_SET_MTU": ((1500,), ()),
    "SET_BACKEND_REQ_FD": ((), (Kind.STREAM,)),
    "SET_INFLIGHT_FD": ((1 << 20, 0, 2, 128), (Kind.MEMORY,)),
    "GPU_SET_SOCKET": ((), (Kind.STREAM,)),
}
"""Fields and descriptors of messages that are refused with zeros and a memory file."""


def seeds() -> Mapping[str, bytes]:
    """Conversations by name: each message of the table on rings that run, and some of their own."""
    found = {"set up": begin() + ring(0) + ring(1)}
    for row in ROWS:
        fds = [Kind.MEMORY] * min(row.fds[1], 1)
        found[row.name] = begin() + ring() + said(row.name, fds=fds)
    for name, (fields, kinds) in GOOD.items():
        found[f"good {name}"] = begin() + said(name, *fields, fds=kinds)
    found["packed"] = begin(int(FEATURES | Feature.RING_PACKED)) + ring()
    moved = begin() + said("SET_DEVICE_STATE_FD", fds=[Kind.PIPE])
    found["state moved"] = moved + said("CHECK_DEVICE_STATE")
    behind = begin(TRANSLATED) + said("SET_BACKEND_REQ_FD", fds=[Kind.STREAM]) + ring()
    found["translated"] = behind + b"".join(
        said("IOTLB_MSG", iova, 0x1000, USER, 3, kind)
        for kind in (IotlbType.UPDATE, IotlbType.INVALIDATE)
        for iova in (0, USER)
    )
    found["in-band"] = begin(protocol=int(PROTOCOL)) + ring() + said("VRING_KICK", 0)
    found["stopped and started"] = begin() + ring() + said("GET_VRING_BASE", 0) + ring()
    found["reset"] = begin() + ring() + said("SET_STATUS", 0) + begin() + ring()
    region = (GUEST + (1 << 20), 0x4000, USER + (1 << 20), 0)
    grown = begin() + said("ADD_MEM_REG", *region, fds=[Kind.MEMORY])
    found["grown"] = grown + said("REM_MEM_REG", *region)
    found["records"] = begin() + said("GET_INFLIGHT_FD", 0, 0, 2, 128) + ring()
    found["logged"] = (
        begin(int(FEATURES & ~Feature.LOG_ALL))
        + ring()
        + said("SET_LOG_BASE", 0x4000, 0, fds=[Kind.MEMORY])
        + said("SET_FEATURES", int(FEATURES))
    )
    return found
