"""A named shared-memory segment: who owns it, its name, and when it is removed.

The owner (the process that creates it) removes it when it is done. Should it be killed instead, the
segment stays; the next one with that name replaces it, and `sweep` finds all that were left behind.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import time
from types import TracebackType
from typing import NamedTuple

import posix_ipc

from vuproc.errors import SegmentInUse

PREFIX = "/vuproc."
"""Every segment's name begins with it; the rest is the caller's."""
HEADER_BYTES = 64
"""The buffer begins this far into the segment, sharing no cache line with the header."""
VERSION = 1
"""Of the header and of what stands behind it."""
CREATION_BOUND_S = 5.0
"""A segment without a header that is younger than this belongs to somebody just making it."""

_MAGIC = b"vuproc\0\0"
_HEADER = struct.Struct("=8sIIQQQ")
"""Magic, version, owner's pid, its start time (clock ticks since boot), its pid namespace, size."""
_SHM_ROOT = "/dev/shm"


class Segment:
    """`size` bytes that any process of this user can map by `name`.

    Made by `create` or `attach`. `buffer` is the memory, writable, zero at first. As a context
    manager it is closed at the end, and unlinked too if this process created it.
    """

    def __init__(self, name: str, mapping: mmap.mmap, size: int, owner: int) -> None:
        self.name = name
        self.size = size
        self.owner = owner
        self._mapping = mapping
        self.buffer = memoryview(mapping)[HEADER_BYTES : HEADER_BYTES + size]

    @classmethod
    def create(cls, name: str, size: int) -> Segment:
        """Make a segment of `size` bytes; one of the same name whose owner is dead is replaced.

        Raises SegmentInUse if its owner lives, ValueError for a bad name or size, OSError if there
        is no room.
        """
        _check_name(name)
        if size <= 0:
            raise ValueError(f"segment of {size} bytes")
        try:
            shared = _open(name, create=True)
        except posix_ipc.ExistentialError:
            owner = _living_owner(name)
            if owner is not None:
                raise SegmentInUse(name, owner) from None
            _unlink(name)
            try:
                shared = _open(name, create=True)
            except posix_ipc.ExistentialError:
                # Somebody else was as quick.
                raise SegmentInUse(name, 0) from None
        try:
            # Not ftruncate: without the pages a full /dev/shm would be a SIGBUS at first use.
            os.posix_fallocate(shared.fd, 0, HEADER_BYTES + size)
            mapping = mmap.mmap(shared.fd, HEADER_BYTES + size)
        except BaseException:
            _unlink(name)
            raise
        finally:
            shared.close_fd()
        pid = os.getpid()
        start = _start_time(pid) or 0
        mapping[: _HEADER.size] = _HEADER.pack(_MAGIC, VERSION, pid, start, _pid_namespace(), size)
        return cls(name, mapping, size, pid)

    @classmethod
    def attach(cls, name: str) -> Segment:
        """Map a segment that another process created.

        Raises FileNotFoundError if there is none of that name, ValueError if it is not one of ours.
        """
        _check_name(name)
        try:
            shared = _open(name, create=False)
        except posix_ipc.ExistentialError:
            raise FileNotFoundError(f"no shared memory segment {name}") from None
        try:
            header = _read_header(shared.fd)
            length = os.fstat(shared.fd).st_size
            if header is None or header.version != VERSION:
                raise ValueError(f"{name} is not a segment of this version")
            if header.size + HEADER_BYTES > length:
                raise ValueError(f"{name} is shorter than its header says")
            mapping = mmap.mmap(shared.fd, HEADER_BYTES + header.size)
        finally:
            shared.close_fd()
        return cls(name, mapping, header.size, header.pid)

    def unlink(self) -> None:
        """Remove the name; what is mapped stays. Nothing happens if it is gone already."""
        _unlink(self.name)

    def close(self) -> None:
        """Unmap, or if parts of `buffer` are in use still, as soon as they are not. Idempotent."""
        # An exported buffer keeps the mapping alive, and its end unmaps it: nothing leaks.
        with contextlib.suppress(BufferError):
            self.buffer.release()
            self._mapping.close()

    def __enter__(self) -> Segment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.owner == os.getpid():
            self.unlink()
        self.close()


def sweep() -> list[str]:
    """Remove the segments of this user whose owners are dead; return their names."""
    removed = []
    for entry in os.listdir(_SHM_ROOT):
        name = "/" + entry
        if not name.startswith(PREFIX):
            continue
        try:
            if os.lstat(os.path.join(_SHM_ROOT, entry)).st_uid != os.geteuid():
                continue
            if _living_owner(name) is None:
                _unlink(name)
                removed.append(name)
        except OSError:
            # Gone in the meantime, or not to be opened: not ours to remove.
            continue
    return removed


class _Header(NamedTuple):
    version: int
    pid: int
    start: int
    namespace: int
    size: int


def _check_name(name: str) -> None:
    if not name.startswith(PREFIX) or "/" in name[1:] or len(name) > 250:
        raise ValueError(f"segment name {name!r} does not begin with {PREFIX} or is no plain name")


def _open(name: str, *, create: bool) -> posix_ipc.SharedMemory:
    return posix_ipc.SharedMemory(name, posix_ipc.O_CREX if create else 0, mode=0o600)


def _unlink(name: str) -> None:
    with contextlib.suppress(posix_ipc.ExistentialError):
        posix_ipc.unlink_shared_memory(name)


def _read_header(fd: int) -> _Header | None:
    data = os.pread(fd, _HEADER.size, 0)
    if len(data) < _HEADER.size:
        return None
    magic, version, pid, start, namespace, size = _HEADER.unpack(data)
    return _Header(version, pid, start, namespace, size) if magic == _MAGIC else None


def _living_owner(name: str) -> int | None:
    """Pid of the owner (0: not to be known), or None if it is dead or the segment is gone."""
    try:
        shared = _open(name, create=False)
    except posix_ipc.ExistentialError:
        return None
    except posix_ipc.PermissionsError:
        return 0
    try:
        header = _read_header(shared.fd)
        age = time.time() - os.fstat(shared.fd).st_mtime
    finally:
        shared.close_fd()
    if header is None:
        return 0 if age < CREATION_BOUND_S else None
    if header.namespace != _pid_namespace():
        # Pids of another container say nothing here.
        return header.pid
    return header.pid if _start_time(header.pid) == header.start else None


def _start_time(pid: int) -> int | None:
    """Clock ticks after boot at which the process began: pid and start name a process for ever."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    # Zombies are dead. Fields are counted from the state, the third (proc(5)).
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino
