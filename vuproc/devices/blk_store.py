"""What a disk is kept in that is not one open file: it serves requests in its own way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from vuproc.fd import Fd
from vuproc.spec.blk import BlkStatus

if TYPE_CHECKING:
    from vuproc.device import Device
    from vuproc.shm.request import Request

Range = tuple[int, int, bool]
"""Offset and length in bytes, and whether what is zeroed may become a hole."""

_STATUS = {status: bytes((status,)) for status in BlkStatus}
OK = _STATUS[BlkStatus.OK]
"""The status byte of a request that went well."""


class Store(Protocol):
    """Each method completes the request, now or later, or raises OSError: then it is the caller's.

    Offsets and lengths are bytes, in whole blocks and inside the disk. `durable`: the request is
    complete once what it did is on stable storage.
    """

    def read(self, request: Request, offset: int, length: int) -> None:
        """Give the request `length` bytes of the disk."""

    def write(self, request: Request, offset: int, length: int, *, durable: bool) -> None:
        """Store the next `length` readable bytes of the request."""

    def flush(self, request: Request) -> None:
        """Bring all that was completed before to stable storage."""

    def discard(self, request: Request, ranges: Sequence[Range], *, durable: bool) -> None:
        """The content of the ranges is not needed any more."""

    def write_zeroes(self, request: Request, ranges: Sequence[Range], *, durable: bool) -> None:
        """Make the ranges read as zeros."""

    def ring_started(self, queue: int) -> None:
        """Requests of the queue may come from now on."""

    def ring_stopping(self, queue: int) -> None:
        """As `Device.ring_stopping`."""

    def close(self) -> None:
        """Give everything back that is this worker's."""


class Source(Protocol):
    """Where a disk has its store from, in the manner of `Image`: by the options, nothing is open.

    `files` are the shared files of the device, which `open` has made in the master.
    """

    def problems(self, block_size: int) -> Iterator[tuple[str, str]]:
        """What is wrong, as (option, message)."""

    def open(self) -> dict[str, Fd]:
        """The shared files. Raises FileRefused, OSError."""

    def adopt(self, left: Mapping[str, Fd]) -> bool:
        """Whether the files of a predecessor are what `open` would have made."""

    def replaced(self, files: Mapping[str, Fd]) -> Iterator[tuple[str, str]]:
        """As `Device.replaced_files`."""

    def size(self, files: Mapping[str, Fd]) -> int:
        """Bytes of the disk, also before there are files. Raises FileRefused, OSError."""

    def lacking(self, files: Mapping[str, Fd]) -> int:
        """The feature bits that a disk has and this one does not. Raises as `size`."""

    def store(self, files: Mapping[str, Fd], device: Device) -> Store:
        """What a worker serves from. Raises FileRefused, OSError."""


def complete(request: Request, status: BlkStatus = BlkStatus.OK) -> None:
    """Complete it, with its status as the last writable byte (virtio 1.3, 5.2.6)."""
    request.put(-1, _STATUS[status])
    request.finish()
