"""The state file: what a successor must know of the session, whole at any instant of our death.

It is a memfd with two areas and one root word. What is to be known has parts, and a message changes
few of them. So an area is a log: its first record has every part, each later one those that have
changed, and the phase. A write appends a record behind the last and then moves the root, in one
8-byte store: whoever reads finds the write before or this one, never a mixture. When a log has
grown, the next write begins another in the other area. There is nothing to sync, since the memory
outlives every process that has the descriptor, and no order to enforce, since a killed process has
carried out all stores up to some point and none after it.

    offset 0   8s   magic               offset 16  u64  root of version 1
           8   u32  version                    24  u64  root: end of the log, number of the log
          12   u32  bytes of an area                    in the upper half; 0: none yet
                                               32  two areas; log number n is in area n % 2

    area   0   u64  number of the log           8  records, up to the end

    record 0   u32  bytes of the phase          8  u64  effects begun, of the last record
           4   u32  bytes of the parts         16  u32  CRC-32 of both, 20 u32 reserved
                                               24  phase, then parts, then up to a multiple of 8

Version 1 had the phase and all the rest, in one piece, in an area of its own for each write:

    area   0   u64  number of the write        16  u32  bytes of the phase
           8   u64  effects begun              20  u32  bytes of the snapshot
          24   u32  CRC-32 of both             28  u32  reserved;  32: phase, then snapshot

A file of it is read, and the first write makes it one of this version: the log begins in the area
that the old root does not name, and counts once the new root is there.

What a successor does with what it finds is decided by `vuproc.handover.resume`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import TypeVar

import msgspec

from vuproc.errors import VuprocError
from vuproc.fd import Fd

AREA_BYTES = 1 << 20
"""Bytes of an area; pages that are never touched cost nothing. 509 regions and 256 rings with all
their descriptors' names need about 120 KiB.
"""
MAX_AREA_BYTES = 1 << 26
"""Bytes of an area of another vuproc that is still believed."""
LOG_BYTES = 1 << 16
"""A log is continued until what was appended takes so much, and as much as its first record: then
writing all of it anew is cheap for each of those writes.
"""
VERSION = 2
WHOLE = -1000
"""The number of the one part of a file of version 1."""

Parts = Mapping[int, bytes]

_T = TypeVar("_T")
_MAGIC = int.from_bytes(b"vuproc\0J", "little")
_HEADER = 32
_MAGIC_AT, _VERSION_AT, _AREA_BYTES_AT, _OLD_ROOT_AT, _ROOT_AT = 0, 8, 12, 16, 24
_FIRST = 8
"""Where the first record of an area is."""
_RECORD = 24
_PHASE_AT, _PARTS_AT, _BEGUN_AT, _CRC_AT = 0, 4, 8, 16
_OLD_NUMBER_AT, _OLD_BEGUN_AT, _OLD_PHASE_AT, _OLD_SNAPSHOT_AT, _OLD_CRC_AT = 0, 8, 16, 20, 24
_RECORD_HEAD = struct.Struct("<IIQI4x")
_END_BITS = 32
_END_MASK = (1 << _END_BITS) - 1
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class StateUnreadable(VuprocError):
    """The file holds no state that this version understands; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"state file: {reason}")
        self.reason = reason


class StateFull(VuprocError):
    """A state of `size` bytes is too large; what was written last is still there."""

    def __init__(self, size: int) -> None:
        super().__init__(f"state of {size} bytes, more than fits")
        self.size = size


class Idle(msgspec.Struct, frozen=True, tag=True):
    """No message is under way: the parts are all there is."""


class Receiving(msgspec.Struct, frozen=True, tag=True):
    """Part of a message was taken from the socket, and is nowhere else."""


class Applying(msgspec.Struct, frozen=True, tag=True):
    """A message is under way; the parts are the state before it.

    `fds` names the stored descriptors that came with it. None: the message was seen in the socket's
    queue but may be there still, and what comes with it is not known. `begun` is the number of its
    effects that were begun, the last of which may or may not have been carried out.
    """

    request: int
    flags: int
    payload: bytes
    fds: tuple[str, ...] | None = None
    begun: int = 0


class Replying(msgspec.Struct, frozen=True, tag=True):
    """The message has been applied and its answer is on its way; the parts are the state after it.

    `exact`: what of the answer is not sent yet is in the outbox. Otherwise nobody can tell whether
    it was sent: it carries a descriptor.
    """

    exact: bool


Phase = Idle | Receiving | Applying | Replying
_PHASE_DECODER = msgspec.msgpack.Decoder(Phase)
_PARTS_DECODER = msgspec.msgpack.Decoder(dict[int, bytes])


class StateFile:
    """The state file, written by one process and read by the one that comes after it."""

    def __init__(self, fd: Fd, mapping: mmap.mmap, area_bytes: int) -> None:
        """Use `create` or `open`."""
        self.fd = fd
        self._mapping = mapping
        self._area_bytes = area_bytes
        self._bytes = memoryview(mapping)
        # A store through these is one move. struct.pack_into is not: it clears its target first.
        self._words = self._bytes.cast("Q")
        self._halves = self._bytes.cast("I")
        self._parts: dict[int, bytes] = {}
        """What the file says, as far as it is known here."""
        self._record = 0
        """Where the last record is in the file."""
        self._full_at = 0
        """Where in its area the log ends at the latest; 0: the next write begins another."""

    @classmethod
    def create(cls, area_bytes: int = AREA_BYTES) -> StateFile:
        """An empty state file in a new memfd whose size is sealed. Raises OSError."""
        fd = Fd(os.memfd_create("vuproc-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        try:
            size = _HEADER + 2 * area_bytes
            os.ftruncate(fd.fileno(), size)
            fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_SEAL)
            state_file = cls(fd, mmap.mmap(fd.fileno(), size), area_bytes)
        except BaseException:
            fd.close()
            raise
        state_file._store_half(_VERSION_AT, VERSION)
        state_file._store_half(_AREA_BYTES_AT, area_bytes)
        state_file._store_word(_MAGIC_AT, _MAGIC)
        return state_file

    @classmethod
    def open(cls, fd: Fd) -> StateFile:
        """The state file that another process left in `fd`, which is taken over.

        Raises StateUnreadable, and then `fd` is closed.
        """
        try:
            return cls._open(fd)
        except OSError as error:
            fd.close()
            raise StateUnreadable(error.strerror or str(error)) from error
        except BaseException:
            fd.close()
            raise

    @classmethod
    def _open(cls, fd: Fd) -> StateFile:
        # Without the seals, a file that shrinks later would be a SIGBUS.
        if fcntl.fcntl(fd.fileno(), fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise StateUnreadable("its size is not sealed")
        head = os.pread(fd.fileno(), _HEADER, 0)
        if len(head) < _HEADER or int.from_bytes(head[:8], "little") != _MAGIC:
            raise StateUnreadable("not a state file")
        version, area_bytes = (
            int.from_bytes(head[at : at + 4], "little") for at in (_VERSION_AT, _AREA_BYTES_AT)
        )
        if not 1 <= version <= VERSION:
            raise StateUnreadable(f"version {version}, not 1 to {VERSION}")
        size = _HEADER + 2 * area_bytes
        if area_bytes > MAX_AREA_BYTES or area_bytes % 8 or size != fd.size:
            raise StateUnreadable(f"{fd.size} bytes with areas of {area_bytes}")
        return cls(fd, mmap.mmap(fd.fileno(), size), area_bytes)

    def write(self, phase: Phase, changed: Parts | None = None) -> None:
        """Replace what the state file says: the phase, and those parts that have changed; all of
        them where `read` has found a file of version 1.

        Raises StateFull, and then nothing has changed.
        """
        encoded = msgspec.msgpack.encode(phase)
        begun = phase.begun if isinstance(phase, Applying) else 0
        parts = changed or {}
        root = self._words[_ROOT_AT // 8]
        record = _record(encoded, parts, begun)
        start = root & _END_MASK
        if start + len(record) > self._full_at:
            # There is no room, or we have just taken over and know no end: all of it, elsewhere.
            record = _record(encoded, {**self._parts, **parts}, begun)
            if _FIRST + len(record) > self._area_bytes:
                raise StateFull(len(record))
            self._begin_log(self._next_log(), record)
        else:
            area = self._area(root >> _END_BITS)
            self._store_bytes(area + start, record)
            self._commit(root >> _END_BITS, start, len(record))
        self._parts.update(parts)

    def begin_effect(self, count: int) -> None:
        """Note that `count` effects of the message under way have been begun, before the last is.

        One store: cheaper than a write, and as whole.
        """
        assert self._record, "nothing was written"
        self._store_word(self._record + _BEGUN_AT, count)

    def read(self) -> tuple[Phase, Parts]:
        """What was written last: the phase and all parts, by their numbers; of version 1 `WHOLE`.

        Raises StateUnreadable if nothing was, or if the memory is not as any death leaves it.
        """
        root = self._words[_ROOT_AT // 8]
        if root == 0:
            return self._read_old()
        number, end = root >> _END_BITS, root & _END_MASK
        area = self._area(number)
        if self._words[area // 8] != number:
            raise StateUnreadable(f"log {number} is not in its area")
        if end > self._area_bytes:
            raise StateUnreadable(f"log {number} has {end} bytes")
        parts: dict[int, bytes] = {}
        last = b""
        for at, encoded, content in self._records(number, end):
            changed = _decoded(content, _PARTS_DECODER, f"the record at {at} has no parts")
            parts.update(changed)
            self._record, last = area + at, encoded
        phase = _decoded(last, _PHASE_DECODER, f"log {number} has no phase")
        self._parts = parts
        return self._with_begun(phase, self._record + _BEGUN_AT), dict(parts)

    def close(self) -> None:
        """Unmap, and close the descriptor. Idempotent."""
        for view in (self._words, self._halves, self._bytes):
            view.release()
        self._mapping.close()
        self.fd.close()

    def _area(self, number: int) -> int:
        return _HEADER + number % 2 * self._area_bytes

    def _next_log(self) -> int:
        """The number of a log that is not in the area of what counts at the moment."""
        root = self._words[_ROOT_AT // 8]
        last = root >> _END_BITS if root else self._words[_OLD_ROOT_AT // 8]
        return (last + 1) & _END_MASK

    def _begin_log(self, number: int, record: bytes) -> None:
        area = self._area(number)
        self._store_word(area, number)
        self._store_bytes(area + _FIRST, record)
        if self._halves[_VERSION_AT // 4] != VERSION:
            # A program that knows version 1 alone would go on from the old root.
            self._store_half(_VERSION_AT, VERSION)
        self._commit(number, _FIRST, len(record))
        self._full_at = min(self._area_bytes, _FIRST + len(record) + max(LOG_BYTES, len(record)))

    def _commit(self, number: int, start: int, size: int) -> None:
        """From here on the record at `start` counts. A reader's load of the root pairs with it."""
        self._store_word(_ROOT_AT, number << _END_BITS | start + size)
        self._record = self._area(number) + start

    def _records(self, number: int, end: int) -> Iterator[tuple[int, bytes, bytes]]:
        """The place of each record in its area, its phase and its parts."""
        area, at = self._area(number), _FIRST
        while at < end:
            start = area + at
            sizes = [self._halves[(start + field) // 4] for field in (_PHASE_AT, _PARTS_AT)]
            size = _padded(_RECORD + sum(sizes))
            if at + size > end:
                raise StateUnreadable(f"the record at {at} of log {number} has {size} bytes")
            body = bytes(self._bytes[start + _RECORD : start + _RECORD + sum(sizes)])
            if zlib.crc32(body) != self._halves[(start + _CRC_AT) // 4]:
                raise StateUnreadable(f"the record at {at} of log {number} fails its checksum")
            yield at, body[: sizes[0]], body[sizes[0] :]
            at += size

    def _read_old(self) -> tuple[Phase, Parts]:
        root = self._words[_OLD_ROOT_AT // 8]
        if root == 0:
            raise StateUnreadable("nothing was written")
        area = self._area(root)
        if self._words[(area + _OLD_NUMBER_AT) // 8] != root:
            raise StateUnreadable(f"write {root} is not in its area")
        fields = _OLD_PHASE_AT, _OLD_SNAPSHOT_AT
        sizes = [self._halves[(area + field) // 4] for field in fields]
        if sum(sizes) > self._area_bytes - _HEADER:
            raise StateUnreadable(f"write {root} has {sum(sizes)} bytes")
        body = bytes(self._bytes[area + _HEADER : area + _HEADER + sum(sizes)])
        if zlib.crc32(body) != self._halves[(area + _OLD_CRC_AT) // 4]:
            raise StateUnreadable(f"write {root} fails its checksum")
        phase = _decoded(body[: sizes[0]], _PHASE_DECODER, f"write {root} has no phase")
        return self._with_begun(phase, area + _OLD_BEGUN_AT), {WHOLE: body[sizes[0] :]}

    def _with_begun(self, phase: Phase, at: int) -> Phase:
        if isinstance(phase, Applying):
            return msgspec.structs.replace(phase, begun=self._words[at // 8])
        return phase

    # Every store to the memfd is one of these: the tests end the process between any two of them.

    def _store_word(self, offset: int, value: int) -> None:
        self._words[offset // 8] = value

    def _store_half(self, offset: int, value: int) -> None:
        self._halves[offset // 4] = value

    def _store_bytes(self, offset: int, data: bytes) -> None:
        self._bytes[offset : offset + len(data)] = data


def _record(phase: bytes, parts: Parts, begun: int) -> bytes:
    content = msgspec.msgpack.encode(parts)
    body = phase + content
    size = _RECORD + len(body)
    head = _RECORD_HEAD.pack(len(phase), len(content), begun, zlib.crc32(body))
    return head + body + bytes(_padded(size) - size)


def _padded(size: int) -> int:
    return -(-size // 8) * 8


def _decoded(data: bytes, decoder: msgspec.msgpack.Decoder[_T], problem: str) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StateUnreadable(f"{problem}: {error}") from error
