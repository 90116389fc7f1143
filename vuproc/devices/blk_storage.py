"""What a virtio disk is kept in: a raw file, a block device or shared memory."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
from types import MappingProxyType

from vuproc.fd import Fd

DIRECT_ALIGNMENT = 512
"""What the driver's memory must be aligned to for O_DIRECT to be tried."""
ZERO_CHUNK = 1 << 20
"""Bytes of zeros written at a time where the kernel cannot zero a range by itself."""

# linux/falloc.h
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10
# linux/fs.h: _IO(0x12, 119) and _IO(0x12, 127), each taking two u64: first byte and length.
_BLKDISCARD = 0x1277
_BLKZEROOUT = 0x127F

_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EINVAL})
"""What kernels and file systems say to an operation on a range which they do not have."""


class Storage:
    """An open file of a fixed size. Owns its descriptors, and is done with by `close`.

    `buffered` is the same file without O_DIRECT, if `fd` has that.
    """

    def __init__(self, fd: Fd, buffered: Fd | None = None) -> None:
        self.fd = fd
        self.buffered = fd if buffered is None else buffered
        self.syncs = 0
        self.block_device = stat.S_ISBLK(os.fstat(fd.fileno()).st_mode)

    def fileno(self) -> int:
        """The descriptor, for the verbs of a request."""
        return self.fd.fileno()

    def flush(self) -> None:
        """Return once all that was written is on stable storage. Raises OSError."""
        self.syncs += 1
        os.fdatasync(self.fileno())

    def discard(self, offset: int, length: int) -> None:
        """Give the range back to the file system if it takes it; its content is undefined then.

        A file system without holes keeps the data, which a discard allows. Raises OSError.
        """
        if self.block_device:
            self._ioctl(_BLKDISCARD, offset, length)
        else:
            self._fallocate(_PUNCH_HOLE | _KEEP_SIZE, offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make the range read as zeros; `unmap`: it may become a hole. Raises OSError."""
        if self.block_device:
            done = self._ioctl(_BLKZEROOUT, offset, length)
        else:
            done = (unmap and self._fallocate(_PUNCH_HOLE | _KEEP_SIZE, offset, length)) or (
                self._fallocate(_ZERO_RANGE | _KEEP_SIZE, offset, length)
            )
        if not done:
            self._write_zero_bytes(offset, length)

    def close(self) -> None:
        """Close the descriptor; a second time is fine."""
        self.fd.close()
        self.buffered.close()

    def _ioctl(self, operation: int, offset: int, length: int) -> bool:
        try:
            fcntl.ioctl(self.fileno(), operation, struct.pack("=QQ", offset, length))
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return False
            raise
        return True

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        """False if this file system has no such operation."""
        while True:
            if _libc.fallocate(self.fileno(), mode, offset, length) == 0:
                return True
            number = ctypes.get_errno()
            if number in _UNSUPPORTED:
                return False
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))

    def _write_zero_bytes(self, offset: int, length: int) -> None:
        zeros = memoryview(bytes(min(length, ZERO_CHUNK)))
        end = offset + length
        while offset < end:
            written = os.pwrite(self.buffered.fileno(), zeros[: end - offset], offset)
            if written == 0:
                raise OSError(errno.EIO, "nothing was written")
            offset += written


def check_direct(path: str, block_size: int) -> str | None:
    """Why an image cannot be served past the page cache in blocks of that size; None: it can.

    The file system is asked by reading a block. Raises OSError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return "its file system has no O_DIRECT"
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        with mmap.mmap(-1, 2 * mmap.PAGESIZE) as memory, memoryview(memory) as view:
            with view[DIRECT_ALIGNMENT : DIRECT_ALIGNMENT + block_size] as block:
                os.preadv(descriptor, [block], min(block_size, max(0, size - block_size)))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return f"it cannot be read in blocks of {block_size} with O_DIRECT; try a larger block_size"
    finally:
        os.close(descriptor)
    return None


def new_memory(size: int) -> Fd:
    """Memory of `size` bytes as a file, all zeros, which nobody can shrink. Raises OSError."""
    fd = Fd(os.memfd_create("vuproc-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        os.ftruncate(fd.fileno(), size)
        fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except OSError:
        fd.close()
        raise
    return fd


def image_size(path: str) -> int:
    """Bytes of a raw file or block device. Raises OSError, also if it is neither."""
    status = os.stat(path)
    if stat.S_ISREG(status.st_mode):
        return status.st_size
    if not stat.S_ISBLK(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "special file")
        raise OSError(errno.EINVAL, f"is a {kind}, not a raw file or block device")
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return open_size(descriptor)
    finally:
        os.close(descriptor)


def open_size(descriptor: int) -> int:
    """Bytes of an open raw file or block device at this moment. Raises OSError."""
    return os.lseek(descriptor, 0, os.SEEK_END)


_KINDS = MappingProxyType(
    {
        stat.S_IFDIR: "directory",
        stat.S_IFCHR: "character device",
        stat.S_IFIFO: "pipe",
        stat.S_IFSOCK: "socket",
    }
)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fallocate.restype = ctypes.c_int
