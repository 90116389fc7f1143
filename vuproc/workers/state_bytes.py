"""The state of a device as the bytes that a migration carries: `HEAD`, a header, the device's own.

    8 bytes   `MAGIC`
    4 bytes   length of the header in bytes, little-endian
    header    msgpack, a map: `format`, `device_id`, `device`, `version`, `size`
    `size` bytes of the device's, to the very end

Keys of the header that a reader does not know are none of its business; `format` rises when it
must not go on without knowing them. All of it comes from outside when it is read.
"""

from __future__ import annotations

import struct
from typing import TypeVar

import msgspec

from vuproc import texts
from vuproc.errors import ReasonedError

_T = TypeVar("_T")

MAGIC = b"VUPSTATE"
HEAD = struct.Struct("<8sI")
FORMAT = 1
"""The newest format that is read, and the one that is written."""
HEADER_MAX = 1024
"""Bytes of the longest header; ours takes about a hundred."""
STATE_MAX = 64 << 20
"""Bytes of the largest state: it is kept in memory whole, and moved while a guest stands still."""
ALL_MAX = HEAD.size + HEADER_MAX + STATE_MAX
"""Bytes of the longest transfer."""
NAME_BYTES = 128
"""Bytes of a device's name."""


class StateError(ReasonedError):
    """A state that cannot be given or taken; `reason` says why."""


class Kind(msgspec.Struct, frozen=True):
    """Whose state it is. `device`: the name of the class. `version`: its `state_version`."""

    device_id: int
    device: str
    version: int


class _Header(msgspec.Struct, frozen=True):
    format: int
    device_id: int
    device: str
    version: int
    size: int


class _Format(msgspec.Struct, frozen=True):
    """What every format has."""

    format: int


def kind_of(device: object) -> Kind:
    """Whose state the one of a `vuproc.Device` is."""
    name = texts.line(type(device).__name__, NAME_BYTES)
    return Kind(getattr(device, "device_id", 0), name, getattr(device, "state_version", 1))


def pack(kind: Kind, data: bytes) -> bytes:
    """The state `data` of a device as it is moved. Raises StateError if it is too large."""
    if len(data) > STATE_MAX:
        raise StateError(f"a state of {len(data)} bytes, at most {STATE_MAX} are moved")
    header = _Header(FORMAT, kind.device_id, kind.device, kind.version, len(data))
    encoded = msgspec.msgpack.encode(header)
    return b"".join((HEAD.pack(MAGIC, len(encoded)), encoded, data))


def unpack(kind: Kind, moved: bytes | bytearray) -> tuple[bytes, int]:
    """The state in what was moved, and its version, for a device of this kind. Raises StateError
    unless it is whole, of such a device, and of a version up to the device's own.
    """
    header, begins = _header(moved)
    if (header.device_id, header.device) != (kind.device_id, kind.device):
        theirs = texts.line(header.device, NAME_BYTES)
        raise StateError(
            f"the state is one of {theirs} (device_id {header.device_id}), "
            f"not of {kind.device} (device_id {kind.device_id})"
        )
    if not 0 < header.version <= kind.version:
        raise StateError(
            f"the state is of version {header.version}, this device reads 1 to {kind.version}"
        )
    follow = len(moved) - begins
    if follow != header.size:
        raise StateError(f"{follow} bytes follow the header, which says {header.size}")
    return bytes(memoryview(moved)[begins:]), header.version


def _header(moved: bytes | bytearray) -> tuple[_Header, int]:
    """The header, and where it ends."""
    if len(moved) < HEAD.size:
        raise StateError(f"{len(moved)} bytes are no state of a device")
    magic, length = HEAD.unpack_from(moved)
    if magic != MAGIC:
        raise StateError("it does not begin as the state of a device does")
    ends = HEAD.size + length
    if length > HEADER_MAX or ends > len(moved):
        raise StateError(f"a header of {length} bytes, of at most {HEADER_MAX}, is not there")
    encoded = bytes(moved[HEAD.size : ends])
    known = _decoded(encoded, _Format).format
    if known != FORMAT:
        raise StateError(f"the state is of format {known}, this vuproc reads {FORMAT}")
    return _decoded(encoded, _Header), ends


def _decoded(encoded: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.msgpack.decode(encoded, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        # msgspec leaves text that is not UTF-8, and nesting without end, to Python's errors.
        raise StateError(f"its header is damaged: {texts.described(error)}") from error
