"""The file of an overlay: a header, a bit for each chunk that it has, and the chunks' content.

    0                    header, one chunk
    CHUNK                bits, a group after the other, up to a whole chunk
    Layout.content_at    the content, at the place that it has on the disk; holes where it has none

All numbers are little-endian.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

from msgspec import Struct

from vuproc.devices.blk_overlay_table import CHUNK, GROUP_BYTES, groups_of
from vuproc.fd import Fd

MAGIC = b"vuproc overlay\r\n"
VERSION = 1
HEADER = struct.Struct("<16sIIQQ")
"""Magic, version, bytes of a chunk, bytes of the disk, and when the base was changed last, in ns
since 1970, or 0."""


class NoOverlay(Exception):
    """The file is not the overlay that is wanted; the text says why."""


class Layout(Struct, frozen=True):
    """Where things are in the file of a disk of `size` bytes."""

    size: int

    @property
    def content_at(self) -> int:
        """Offset of the disk's first byte."""
        bits = groups_of(self.size) * GROUP_BYTES
        return CHUNK + -(-bits // CHUNK) * CHUNK

    def bits_at(self, group: int) -> int:
        """Offset of the bits of a group of chunks."""
        return CHUNK + group * GROUP_BYTES


def initialise(file: Fd, size: int, base_changed: int) -> None:
    """Make an empty file an overlay without chunks, on stable storage. Raises OSError."""
    os.ftruncate(file.fileno(), Layout(size).content_at + size)
    # Whoever dies before has left a file that begins with zeros, which `read_header` takes as new.
    os.fdatasync(file.fileno())
    os.pwrite(file.fileno(), HEADER.pack(MAGIC, VERSION, CHUNK, size, base_changed), 0)
    os.fdatasync(file.fileno())


def read_header(file: Fd, size: int) -> int | None:
    """When the base was changed last, as the header says; None: the file is new and has none.

    `size`: bytes of the base. Raises NoOverlay, or OSError.
    """
    begin = os.pread(file.fileno(), HEADER.size, 0)
    if not any(begin) and _is_empty(file):
        return None
    if len(begin) < HEADER.size or not begin.startswith(MAGIC):
        raise NoOverlay("is no overlay; give the name of a file that does not exist yet")
    _, version, chunk, disk, base_changed = HEADER.unpack(begin)
    if (version, chunk) != (VERSION, CHUNK):
        raise NoOverlay(f"is an overlay of version {version}, not {VERSION}")
    if disk != size:
        raise NoOverlay(f"is an overlay of a base of {disk} bytes, and this one has {size}")
    if os.fstat(file.fileno()).st_size < Layout(size).content_at + size:
        raise NoOverlay("is an overlay that has been cut short")
    return int(base_changed)


def disk_size(file: Fd) -> int:
    """Bytes of the disk, of a file whose header was looked at before. Raises OSError."""
    header = os.pread(file.fileno(), HEADER.size, 0)
    if len(header) < HEADER.size:
        raise OSError(errno.EIO, "the overlay has been cut short")
    return int(HEADER.unpack(header)[3])


def read_bits(file: Fd, size: int) -> Iterator[tuple[int, bytes]]:
    """(group, bits) of each group that has chunks. Raises OSError."""
    layout = Layout(size)
    for group in range(groups_of(size)):
        bits = os.pread(file.fileno(), GROUP_BYTES, layout.bits_at(group))
        if len(bits) < GROUP_BYTES:
            raise OSError(errno.EIO, "the overlay has been cut short")
        if any(bits):
            yield group, bits


def _is_empty(file: Fd) -> bool:
    """Whether there is not a byte of content: the file has no length, or is one hole."""
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        return True
    try:
        return os.lseek(file.fileno(), 0, os.SEEK_DATA) >= size
    except OSError as error:
        return error.errno == errno.ENXIO
