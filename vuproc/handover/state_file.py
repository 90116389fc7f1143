"""The state file: what a successor must know of the session, whole at any instant of our death.

It is a memfd with two areas and one root word. A write fills the area that the root does not name
and then moves the root, in one 8-byte store: whoever reads finds the write before or this one,
never a mixture. There is nothing to sync, since the memory outlives every process that has the
descriptor, and no order to enforce, since a killed process has carried out all stores up to some
point and none after it.

    offset 0   8s   magic               offset 16  u64  root: number of the last write, 0: none yet
           8   u32  version                    24  u64  reserved
          12   u32  bytes of an area           32  two areas; write number n is in area n % 2

    area   0   u64  number of the write        16  u32  bytes of the phase
           8   u64  effects begun              20  u32  bytes of the snapshot
          24   u32  CRC-32 of both             28  u32  reserved;  32: phase, then snapshot

What a successor does with what it finds is decided by `vuproc.handover.resume`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import zlib

import msgspec

from vuproc.errors import VuprocError
from vuproc.fd import Fd

AREA_BYTES = 1 << 20
"""Bytes of an area; pages that are never touched cost nothing. 509 regions and 256 rings with all
their descriptors' names need about 120 KiB.
"""
MAX_AREA_BYTES = 1 << 26
"""Bytes of an area of another vuproc that is still believed."""
VERSION = 1

_MAGIC = int.from_bytes(b"vuproc\0J", "little")
_HEADER = 32
_MAGIC_AT, _VERSION_AT, _AREA_BYTES_AT, _ROOT_AT = 0, 8, 12, 16
_NUMBER_AT, _BEGUN_AT, _PHASE_AT, _SNAPSHOT_AT, _CRC_AT = 0, 8, 16, 20, 24
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class StateUnreadable(VuprocError):
    """The file holds no state that this version understands; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"state file: {reason}")
        self.reason = reason


class StateFull(VuprocError):
    """A snapshot of `size` bytes is too large; what was written last is still there."""

    def __init__(self, size: int) -> None:
        super().__init__(f"state of {size} bytes, more than fits")
        self.size = size


class Idle(msgspec.Struct, frozen=True, tag=True):
    """No message is under way: the snapshot is all there is."""


class Receiving(msgspec.Struct, frozen=True, tag=True):
    """Part of a message was taken from the socket, and is nowhere else."""


class Applying(msgspec.Struct, frozen=True, tag=True):
    """A message is under way; the snapshot is the state before it.

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
    """The message has been applied and its answer is on its way; the snapshot is the state after.

    `exact`: what of the answer is not sent yet is in the outbox. Otherwise nobody can tell whether
    it was sent: it carries a descriptor.
    """

    exact: bool


Phase = Idle | Receiving | Applying | Replying
_DECODER = msgspec.msgpack.Decoder(Phase)


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
        self._snapshot = b""

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
        if version != VERSION:
            raise StateUnreadable(f"version {version}, not {VERSION}")
        size = _HEADER + 2 * area_bytes
        if area_bytes > MAX_AREA_BYTES or area_bytes % 8 or size != fd.size:
            raise StateUnreadable(f"{fd.size} bytes with areas of {area_bytes}")
        return cls(fd, mmap.mmap(fd.fileno(), size), area_bytes)

    def write(self, phase: Phase, snapshot: bytes | None = None) -> None:
        """Replace what the state file says; without a snapshot, the one written last stays.

        Raises StateFull, and then nothing has changed.
        """
        encoded = msgspec.msgpack.encode(phase)
        content = self._snapshot if snapshot is None else snapshot
        body = _HEADER + len(encoded)
        if body + len(content) > self._area_bytes:
            raise StateFull(len(encoded) + len(content))
        number = self._words[_ROOT_AT // 8] + 1
        area = self._area(number)
        self._store_word(area + _NUMBER_AT, number)
        self._store_word(area + _BEGUN_AT, phase.begun if isinstance(phase, Applying) else 0)
        self._store_half(area + _PHASE_AT, len(encoded))
        self._store_half(area + _SNAPSHOT_AT, len(content))
        self._store_half(area + _CRC_AT, zlib.crc32(content, zlib.crc32(encoded)))
        self._store_bytes(area + _HEADER, encoded)
        self._store_bytes(area + body, content)
        # From here on this write counts. A reader's load of the root pairs with it.
        self._store_word(_ROOT_AT, number)
        self._snapshot = content

    def begin_effect(self, count: int) -> None:
        """Note that `count` effects of the message under way have been begun, before the last is.

        One store: cheaper than a write, and as whole.
        """
        self._store_word(self._area(self._words[_ROOT_AT // 8]) + _BEGUN_AT, count)

    def read(self) -> tuple[Phase, bytes]:
        """What was written last: the phase and its snapshot.

        Raises StateUnreadable if nothing was, or if the memory is not as any death leaves it.
        """
        root = self._words[_ROOT_AT // 8]
        if root == 0:
            raise StateUnreadable("nothing was written")
        area = self._area(root)
        if self._words[(area + _NUMBER_AT) // 8] != root:
            raise StateUnreadable(f"write {root} is not in its area")
        sizes = self._halves[(area + _PHASE_AT) // 4], self._halves[(area + _SNAPSHOT_AT) // 4]
        if sum(sizes) > self._area_bytes - _HEADER:
            raise StateUnreadable(f"write {root} has {sum(sizes)} bytes")
        start = area + _HEADER
        encoded = bytes(self._bytes[start : start + sizes[0]])
        content = bytes(self._bytes[start + sizes[0] : start + sum(sizes)])
        if zlib.crc32(content, zlib.crc32(encoded)) != self._halves[(area + _CRC_AT) // 4]:
            raise StateUnreadable(f"write {root} fails its checksum")
        try:
            phase = _DECODER.decode(encoded)
        except msgspec.MsgspecError as error:
            raise StateUnreadable(f"write {root} has no phase: {error}") from error
        if isinstance(phase, Applying):
            begun = self._words[(area + _BEGUN_AT) // 8]
            phase = msgspec.structs.replace(phase, begun=begun)
        self._snapshot = content
        return phase, content

    def close(self) -> None:
        """Unmap, and close the descriptor. Idempotent."""
        for view in (self._words, self._halves, self._bytes):
            view.release()
        self._mapping.close()
        self.fd.close()

    def _area(self, number: int) -> int:
        return _HEADER + number % 2 * self._area_bytes

    # Every store to the memfd is one of these: the tests end the process between any two of them.

    def _store_word(self, offset: int, value: int) -> None:
        self._words[offset // 8] = value

    def _store_half(self, offset: int, value: int) -> None:
        self._halves[offset // 4] = value

    def _store_bytes(self, offset: int, data: bytes) -> None:
        self._bytes[offset : offset + len(data)] = data
