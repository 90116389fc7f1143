"""What the file of an overlay has beside the overlay, if its changes are to be written back.

    WRITE_BACK_AT              in the header's chunk: `WriteBackHeader`
    Layout.content_at + size   up to a whole page, then
    Area.saved_at              room for chunks as they were when a run began, at their places
    Area.marks_at              one page, whose first byte is the phase, then a byte for each piece,
                               twice: whether it was changed (`blk_write_marks`)

A death of processes costs nothing of this: it is in the file, though it may not be on the disk. A
loss of power does. So the header says in which life of the machine (boot_id) the marks were made,
or that all was synced at the end; if neither fits, all that the overlay has counts as changed.
"""

from __future__ import annotations

import os
import struct

from msgspec import Struct

from vuproc.devices.blk_overlay_file import HEADER, MAGIC, Layout
from vuproc.devices.blk_overlay_table import CHUNK, ChunkTable
from vuproc.devices.pieces_manifest import MOST_ABANDONED, count_of
from vuproc.fd import Fd

WRITE_BACK_AT = 512
"""Apart from the overlay's own header by a sector."""
_HEADER = struct.Struct(f"<8s16sII{MOST_ABANDONED}Q")
_MAGIC = b"wback 1\n"
_SYNCED = 1
PAGE = 64 << 10
"""Of any machine: marks are mapped."""
BOOT_ID = "/proc/sys/kernel/random/boot_id"
_BASE_CHANGED_AT = HEADER.size - 8


class Area(Struct, frozen=True):
    """Where things are in the file of a disk of `size` bytes, in pieces of `piece` bytes."""

    size: int
    piece: int

    @property
    def saved_at(self) -> int:
        """Offset of the first byte of the disk as it was."""
        return _up(Layout(self.size).content_at + self.size)

    @property
    def marks_at(self) -> int:
        """Offset of the marks."""
        return _up(self.saved_at + self.size)

    @property
    def marks_bytes(self) -> int:
        """Bytes of the marks."""
        return PAGE + 2 * _up(count_of(self.size, self.piece))

    @property
    def end(self) -> int:
        """Bytes of the file."""
        return self.marks_at + self.marks_bytes


class WriteBackHeader(Struct, frozen=True):
    """`boot`: the life of the machine that the marks are of. `synced`: they are on stable storage
    and nothing was changed since. `begun`: runs of ours that may be in the store, the last first.
    """

    boot: bytes
    synced: bool
    begun: tuple[int, ...] = ()


def boot_id() -> bytes:
    """This life of the machine, 16 bytes. Raises OSError."""
    with open(BOOT_ID, encoding="ascii") as file:
        return bytes.fromhex(file.read().strip().replace("-", ""))


def read_header(file: Fd) -> WriteBackHeader | None:
    """None: this overlay was never written back. Raises OSError."""
    data = os.pread(file.fileno(), _HEADER.size, WRITE_BACK_AT)
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        return None
    _, boot, flags, count, *runs = _HEADER.unpack(data)
    return WriteBackHeader(boot, bool(flags & _SYNCED), tuple(runs[: min(count, MOST_ABANDONED)]))


def write_header(file: Fd, header: WriteBackHeader) -> None:
    """Not on stable storage yet. Raises OSError."""
    runs = header.begun[:MOST_ABANDONED]
    room = (0,) * (MOST_ABANDONED - len(runs))
    flags = _SYNCED if header.synced else 0
    data = _HEADER.pack(_MAGIC, header.boot, flags, len(runs), *runs, *room)
    os.pwrite(file.fileno(), data, WRITE_BACK_AT)


def write_base(file: Fd, run: int) -> None:
    """The overlay is one of that run's image from now on. Raises OSError."""
    os.pwrite(file.fileno(), struct.pack("<Q", run), _BASE_CHANGED_AT)


def read_base(file: Fd) -> int:
    """Of which run's image it is. Raises OSError."""
    header = HEADER.unpack(os.pread(file.fileno(), HEADER.size, 0))
    assert header[0] == MAGIC
    return int(header[4])


def begun_runs(file: Fd) -> tuple[int, ...]:
    """Runs of ours that may be in the store. Raises OSError."""
    known = read_header(file)
    return () if known is None else known.begun


def prepare(file: Fd, area: Area, table: Fd) -> int:
    """Have the area there, in an overlay that nobody uses; the pieces that count as changed for
    want of marks that can be relied on. Raises OSError.
    """
    known = read_header(file)
    boot = boot_id()
    room = os.fstat(file.fileno()).st_size >= area.end
    kept = known is not None and room and (known.synced or known.boot == boot)
    lost = 0
    if not kept:
        if not room:
            os.ftruncate(file.fileno(), area.end)
        # A page of it that is written to must not find the disk full.
        os.posix_fallocate(file.fileno(), area.marks_at, area.marks_bytes)
        marks = bytearray(area.marks_bytes)
        lost = _mark_all(marks, area, table)
        _write_all(file, marks, area.marks_at)
    begun = () if known is None else known.begun
    write_header(file, WriteBackHeader(boot, synced=False, begun=begun))
    os.fdatasync(file.fileno())
    return lost


def distrust(file: Fd) -> None:
    """Somebody is to change the overlay without marks. Raises OSError."""
    known = read_header(file)
    if known is not None:
        write_header(file, WriteBackHeader(bytes(16), synced=False, begun=known.begun))
        os.fdatasync(file.fileno())


def _mark_all(marks: bytearray, area: Area, table: Fd) -> int:
    chunks = ChunkTable(table, area.size)
    each = area.piece // CHUNK
    marked = 0
    try:
        for piece in range(count_of(area.size, area.piece)):
            first = piece * each
            last = min(first + each, -(-area.size // CHUNK)) - 1
            if any(present for present, _ in chunks.runs(first, last)):
                marks[PAGE + piece] = 1
                marked += 1
    finally:
        chunks.close()
    return marked


def _write_all(file: Fd, data: bytearray, at: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(file.fileno(), left, at)
        at += written
        left = left[written:]


def _up(offset: int) -> int:
    return -(-offset // PAGE) * PAGE
