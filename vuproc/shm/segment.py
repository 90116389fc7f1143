"""A named shared-memory segment: who owns it, its name, and when it is removed.

The owner (the process that creates it) has a lock on it as long as it lives, and removes it when it
is done. Should it be killed instead, the kernel lets go of the lock and the segment stays; the next
one with that name replaces it, and `sweep` finds all that were left behind. Process ids say nothing
here: those of another container that has the same /dev/shm mean other processes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import time
from types import TracebackType
from typing import NamedTuple

import posix_ipc

from vuproc.errors import SegmentInUse, SegmentUnavailable
from vuproc.fd import Fd

PREFIX = "/vuproc."
"""Every segment's name begins with it; the rest is the caller's."""
HEADER_BYTES = 64
"""The buffer begins this far into the segment, sharing no cache line with the header."""
VERSION = 2
"""Of the header and of what stands behind it."""
PATIENCE_S = 0.25
"""Seconds in which whoever looks whether a segment's owner is dead has let go of it again."""
LOOK_S = 0.002
"""Seconds between two attempts to lock a segment."""

_MAGIC = b"vuproc\0\0"
_HEADER = struct.Struct("=8sIIQ")
"""Magic, version, owner's pid (for people), size."""
_SHM_ROOT = "/dev/shm"


class Segment:
    """`size` bytes that any process of this user can map by `name`.

    Made by `create` or `attach`. `buffer` is the memory, writable, zero at first. `behind` is more
    of it, which those that attach do not map. As a context manager it is closed at the end, and
    unlinked too if it was created here.
    """

    def __init__(
        self, name: str, mapping: mmap.mmap, size: int, owner: int, lock: Fd | None = None
    ) -> None:
        self.name = name
        self.size = size
        self.owner = owner
        self._mapping = mapping
        self._lock = lock
        self.buffer = memoryview(mapping)[HEADER_BYTES : HEADER_BYTES + size]
        self.behind = memoryview(mapping)[HEADER_BYTES + size :]

    @classmethod
    def create(cls, name: str, size: int, behind: int = 0) -> Segment:
        """Make a segment of `size` bytes, and as many as `behind` says for the owner alone; one of
        the same name whose owner is dead is replaced.

        Raises SegmentInUse if its owner lives, ValueError for a bad name or size, and
        SegmentUnavailable if there is no room, or no shared memory.
        """
        _check_name(name)
        if size <= 0:
            raise ValueError(f"segment of {size} bytes")
        try:
            file = _own(name)
        except OSError as error:
            raise SegmentUnavailable(name, size, error) from error
        try:
            # Not ftruncate: without the pages a full /dev/shm would be a SIGBUS at first use.
            os.posix_fallocate(file.fileno(), 0, HEADER_BYTES + size + behind)
            mapping = mmap.mmap(file.fileno(), HEADER_BYTES + size + behind)
        except BaseException as error:
            _unlink(name)
            file.close()
            if isinstance(error, OSError):
                raise SegmentUnavailable(name, size, error) from error
            raise
        mapping[: _HEADER.size] = _HEADER.pack(_MAGIC, VERSION, os.getpid(), size)
        return cls(name, mapping, size, os.getpid(), file)

    @classmethod
    def attach(cls, name: str) -> Segment:
        """Map a segment that another process created.

        Raises FileNotFoundError if there is none of that name, ValueError if it is not one of ours.
        """
        _check_name(name)
        file = _open(name)
        if file is None:
            raise FileNotFoundError(f"no shared memory segment {name}")
        with file:
            header = _read_header(file)
            if header is None or header.version != VERSION:
                raise ValueError(f"{name} is not a segment of this version")
            if header.size + HEADER_BYTES > file.size:
                raise ValueError(f"{name} is shorter than its header says")
            mapping = mmap.mmap(file.fileno(), HEADER_BYTES + header.size)
        return cls(name, mapping, header.size, header.pid)

    @classmethod
    def left(cls, file: Fd) -> Segment:
        """Map all of one whose owner may be dead and whose name may be gone, by a copy of its file
        (`file`). Raises ValueError if it is not one of ours.
        """
        header = _read_header(file)
        if header is None or header.version != VERSION or file.size < HEADER_BYTES + header.size:
            raise ValueError("not a segment of this version")
        return cls("", mmap.mmap(file.fileno(), file.size), header.size, header.pid)

    def file(self) -> Fd:
        """The file of one that was created here, opened once more: without the owner's lock, which
        whoever keeps it longer than we live is not to have. Raises OSError.
        """
        assert self._lock is not None
        path = f"/proc/self/fd/{self._lock.fileno()}"
        return Fd(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def unlink(self) -> None:
        """Remove the name; what is mapped stays. Nothing happens if it is gone already."""
        _unlink(self.name)

    def close(self) -> None:
        """Unmap, or if parts of `buffer` are in use still, as soon as they are not. Idempotent."""
        # An exported buffer keeps the mapping alive, and its end unmaps it: nothing leaks.
        with contextlib.suppress(BufferError):
            self.behind.release()
            self.buffer.release()
            self._mapping.close()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Segment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._lock is not None:
            self.unlink()
        self.close()


def sweep() -> list[str]:
    """Remove the segments of this user whose owners are dead; return their names.

    Those of another version of vuproc are left to it.
    """
    removed = []
    for entry in _entries():
        name = "/" + entry
        if not name.startswith(PREFIX):
            continue
        try:
            if _sweep(name, os.path.join(_SHM_ROOT, entry)):
                removed.append(name)
        except OSError:
            # Gone in the meantime, or not to be opened: not ours to remove.
            continue
    return removed


def _sweep(name: str, path: str) -> bool:
    if os.lstat(path).st_uid != os.geteuid():
        return False
    file = _open(name)
    if file is None:
        return False
    with file:
        header = _read_header(file)
        if header is not None and header.version != VERSION:
            return False
        if not _locked(file) or not _is_at(name, file):
            return False
        _unlink(name)
        return True


def _entries() -> list[str]:
    try:
        return os.listdir(_SHM_ROOT)
    except OSError:
        return []  # no shared memory: whoever makes a segment will say so


class _Header(NamedTuple):
    version: int
    pid: int
    size: int


def _check_name(name: str) -> None:
    if not name.startswith(PREFIX) or "/" in name[1:] or len(name) > 250:
        raise ValueError(f"segment name {name!r} does not begin with {PREFIX} or is no plain name")


def _own(name: str) -> Fd:
    """A new, empty file of this name with our lock on it. Raises SegmentInUse and OSError."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        # Only a file that was made here is used: one that another user has made beforehand could be
        # changed under us.
        file = _open(name, create=True)
        if file is not None:
            with file:
                if _locked(file) and _is_at(name, file):
                    return Fd(file.take())
        elif _remove_dead(name):
            continue
        if time.monotonic() >= deadline:
            raise SegmentInUse(name, _owner(name))
        time.sleep(LOOK_S)


def _remove_dead(name: str) -> bool:
    """Whether the name is free, as it was already or as its owner is dead. Raises OSError."""
    file = _open(name)
    if file is None:
        if not os.path.isdir(_SHM_ROOT):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), _SHM_ROOT)
        return True
    with file:
        if not _locked(file) or not _is_at(name, file):
            return False
        _unlink(name)
        return True


def _owner(name: str) -> int:
    """The process that says of itself that the segment is its; 0: none does."""
    file = _open(name)
    if file is None:
        return 0
    with file:
        header = _read_header(file)
    return 0 if header is None else header.pid


def _open(name: str, *, create: bool = False) -> Fd | None:
    """The file of a segment, None if there is none; or a new one, None if there is one already.
    Raises OSError.
    """
    flags = posix_ipc.O_CREX if create else 0
    try:
        shared = posix_ipc.SharedMemory(name, flags, mode=0o600)
    except posix_ipc.ExistentialError:
        return None
    except posix_ipc.PermissionsError as error:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name) from error
    return Fd(shared.fd)


def _locked(file: Fd) -> bool:
    """Take the owner's lock; False if somebody has it.

    It belongs to the open file: it is there until every copy of the descriptor is closed.
    """
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(name: str, file: Fd) -> bool:
    """Whether this is still the file of that name: it may have been replaced meanwhile."""
    try:
        there = os.lstat(_SHM_ROOT + name)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(file.fileno()))


def _unlink(name: str) -> None:
    with contextlib.suppress(posix_ipc.ExistentialError):
        try:
            posix_ipc.unlink_shared_memory(name)
        except posix_ipc.PermissionsError as error:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name) from error


def _read_header(file: Fd) -> _Header | None:
    data = os.pread(file.fileno(), _HEADER.size, 0)
    if len(data) < _HEADER.size:
        return None
    magic, version, pid, size = _HEADER.unpack(data)
    return _Header(version, pid, size) if magic == _MAGIC else None
