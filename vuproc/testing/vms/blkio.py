"""libblkio by ctypes: a virtio-blk driver in a library, which needs no machine at all."""

from __future__ import annotations

import ctypes
import functools
import os
import select
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vuproc.testing.vms import clients
from vuproc.testing.vms.errors import ClientMissing, GuestFailed

DRIVER = b"virtio-blk-vhost-user"
IO_TIMEOUT_S = 10.0
COMPLETIONS = 64


class _Region(ctypes.Structure):
    """struct blkio_mem_region of <blkio.h>."""

    _fields_ = (
        ("addr", ctypes.c_void_p),
        ("len", ctypes.c_size_t),
        ("iova", ctypes.c_uint64),
        ("fd_offset", ctypes.c_int64),
        ("fd", ctypes.c_int),
        ("flags", ctypes.c_uint32),
    )


class _Completion(ctypes.Structure):
    """struct blkio_completion of <blkio.h>."""

    _fields_ = (
        ("user_data", ctypes.c_void_p),
        ("error_msg", ctypes.c_char_p),
        ("ret", ctypes.c_int),
        ("reserved", ctypes.c_uint8 * 12),
    )


@functools.cache
def _library() -> Any:
    """The library with its functions' types. `ClientMissing` if it does not load."""
    try:
        library = ctypes.CDLL(clients.libblkio())
    except OSError as error:
        raise ClientMissing("libblkio", f"it does not load: {error}") from error
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    size, wide, flags = ctypes.c_size_t, ctypes.c_uint64, ctypes.c_uint32
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "blkio_get_error_msg": (text, []),
        "blkio_create": (number, [text, pointer]),
        "blkio_connect": (number, [pointer]),
        "blkio_start": (number, [pointer]),
        "blkio_destroy": (None, [pointer]),
        "blkio_set_str": (number, [pointer, text, text]),
        "blkio_set_int": (number, [pointer, text, number]),
        "blkio_get_int": (number, [pointer, text, pointer]),
        "blkio_get_uint64": (number, [pointer, text, pointer]),
        "blkio_alloc_mem_region": (number, [pointer, pointer, size]),
        "blkio_free_mem_region": (None, [pointer, pointer]),
        "blkio_map_mem_region": (number, [pointer, pointer]),
        "blkio_unmap_mem_region": (None, [pointer, pointer]),
        "blkio_get_queue": (pointer, [pointer, number]),
        "blkioq_read": (None, [pointer, wide, pointer, size, pointer, flags]),
        "blkioq_write": (None, [pointer, wide, pointer, size, pointer, flags]),
        "blkioq_write_zeroes": (None, [pointer, wide, wide, pointer, flags]),
        "blkioq_discard": (None, [pointer, wide, wide, pointer, flags]),
        "blkioq_flush": (None, [pointer, pointer, flags]),
        "blkioq_do_io": (number, [pointer, pointer, number, number, pointer]),
        "blkioq_get_completion_fd": (number, [pointer]),
        "blkioq_set_completion_fd_enabled": (None, [pointer, ctypes.c_bool]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


def _checked(what: str, code: int) -> None:
    if code < 0:
        message = (_library().blkio_get_error_msg() or b"").decode(errors="replace")
        raise GuestFailed(f"libblkio {what}: {os.strerror(-code)}: {message}")


@dataclass
class BlkioMemory:
    """A region of memory for buffers, known to the device while it is mapped."""

    region: _Region = field(repr=False)

    def view(self, offset: int = 0, size: int | None = None) -> memoryview:
        """The bytes themselves; not to be used after the region was freed."""
        size = self.region.len - offset if size is None else size
        array = (ctypes.c_uint8 * size).from_address(self.region.addr + offset)
        return memoryview(array).cast("B")

    def address(self, offset: int) -> int:
        """Where byte `offset` lies in this process."""
        return int(self.region.addr) + offset


class BlkioQueue:
    """One queue. Requests go out at `wait`, which sleeps on the completion descriptor."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._fd = _library().blkioq_get_completion_fd(handle)
        _library().blkioq_set_completion_fd_enabled(handle, True)

    def read(self, start: int, memory: BlkioMemory, offset: int, size: int, tag: int = 0) -> None:
        """Asks for `size` bytes at byte `start` of the disk, into the memory at `offset`."""
        _library().blkioq_read(self._handle, start, memory.address(offset), size, tag, 0)

    def write(self, start: int, memory: BlkioMemory, offset: int, size: int, tag: int = 0) -> None:
        """The other way."""
        _library().blkioq_write(self._handle, start, memory.address(offset), size, tag, 0)

    def write_zeroes(self, start: int, size: int, tag: int = 0) -> None:
        """Asks for zeros in a range of bytes."""
        _library().blkioq_write_zeroes(self._handle, start, size, tag, 0)

    def discard(self, start: int, size: int, tag: int = 0) -> None:
        """Gives up the contents of a range of bytes."""
        _library().blkioq_discard(self._handle, start, size, tag, 0)

    def flush(self, tag: int = 0) -> None:
        """Asks for everything that was completed to be on the disk."""
        _library().blkioq_flush(self._handle, tag, 0)

    def submit(self) -> None:
        """Sends out what was asked for, and waits for nothing."""
        _checked("submit", _library().blkioq_do_io(self._handle, None, 0, 0, None))

    def wait(self, count: int = 1, timeout_s: float = IO_TIMEOUT_S) -> dict[int, int]:
        """Sends out and waits for `count` completions: tag -> 0 or a negative errno."""
        done: dict[int, int] = {}
        batch = (_Completion * COMPLETIONS)()
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        left = count
        while True:
            most = min(left, COMPLETIONS)
            got = _library().blkioq_do_io(self._handle, ctypes.addressof(batch), 0, most, None)
            _checked("do_io", got)
            done |= {int(each.user_data or 0): int(each.ret) for each in batch[:got]}
            left -= got
            if left == 0:
                return done
            if got == 0:
                if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    late = f"{left} of {count} requests open after {timeout_s:g} s"
                    raise GuestFailed(f"libblkio: {late}")
                os.read(self._fd, 8)


class Blkio:
    """A connection to a vhost-user-blk socket. A context manager: at its end it is closed."""

    def __init__(self, path: Path, *, queues: int = 1) -> None:
        library = _library()
        self._handle = ctypes.c_void_p()
        _checked("create", library.blkio_create(DRIVER, ctypes.addressof(self._handle)))
        try:
            self._set(b"path", str(path.absolute()).encode())
            _checked("connect", library.blkio_connect(self._handle))
            _checked("num-queues", library.blkio_set_int(self._handle, b"num-queues", queues))
            _checked("start", library.blkio_start(self._handle))
            self.queues: Sequence[BlkioQueue] = [
                BlkioQueue(library.blkio_get_queue(self._handle, index)) for index in range(queues)
            ]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops the queues, unmaps and frees every region and disconnects."""
        if self._handle:
            _library().blkio_destroy(ctypes.addressof(self._handle))

    def _set(self, name: bytes, value: bytes) -> None:
        _checked(name.decode(), _library().blkio_set_str(self._handle, name, value))

    def number(self, name: str) -> int:
        """A property that is an `int`, such as max-queues or max-segments."""
        value = ctypes.c_int()
        address = ctypes.addressof(value)
        _checked(name, _library().blkio_get_int(self._handle, name.encode(), address))
        return value.value

    @property
    def capacity(self) -> int:
        """The size of the disk in bytes."""
        value = ctypes.c_uint64()
        address = ctypes.addressof(value)
        _checked("capacity", _library().blkio_get_uint64(self._handle, b"capacity", address))
        return value.value

    def allocate(self, size: int) -> BlkioMemory:
        """Allocates and maps a region: the device is told of it while its queues run."""
        region = _Region()
        address = ctypes.addressof(region)
        _checked("allocate", _library().blkio_alloc_mem_region(self._handle, address, size))
        _checked("map", _library().blkio_map_mem_region(self._handle, address))
        return BlkioMemory(region)

    def free(self, memory: BlkioMemory) -> None:
        """Takes a region away from the device, then frees it. No request may use it any more."""
        address = ctypes.addressof(memory.region)
        _library().blkio_unmap_mem_region(self._handle, address)
        _library().blkio_free_mem_region(self._handle, address)
