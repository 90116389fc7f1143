"""The shared files of a disk whose changes are written back, beside those of its overlay."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vuproc import shared
from vuproc.devices.blk_overlay_table import ChunkTable
from vuproc.devices.blk_pieces import PiecesBase
from vuproc.devices.blk_write_area import PAGE, Area, prepare
from vuproc.devices.blk_write_marks import Marks, new_saved
from vuproc.devices.pieces_manifest import count_of
from vuproc.devices.pieces_map import PiecesMap
from vuproc.devices.write_back_status import CONFLICT, WriteBackStatus, described
from vuproc.errors import FileRefused
from vuproc.fd import Fd

if TYPE_CHECKING:
    from vuproc.devices.blk_image import Image

log = logging.getLogger("vuproc.device")

_SAVED, _STATUS, _BELL = "writeback.saved", "writeback.status", "writeback.bell"


class WriteFiles:
    """What workers, the helper and the master have of it, in the manner of `Image`."""

    names: frozenset[str] = frozenset({_SAVED, _STATUS, _BELL})

    def __init__(self, base: PiecesBase, overlay: Image) -> None:
        self.base = base
        self._overlay = overlay

    def open(self, files: Mapping[str, Fd], file: Fd, table: Fd) -> dict[str, Fd]:
        """Have room for marks in the overlay's file, too. Raises OSError."""
        lost = prepare(file, self._area(files), table)
        if lost:
            log.warning(
                "overlay %s: all that it has counts as changed, for it was last served without "
                "write_back, or power was lost: %d pieces",
                self._overlay.path,
                lost,
            )
        with shared.gathering() as made:
            made[_SAVED] = new_saved(self._area(files).size)
            made[_STATUS] = shared.struct_file(WriteBackStatus)
            made[_BELL] = Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        return made

    def marks(self, files: Mapping[str, Fd], file: Fd, table: ChunkTable) -> Marks:
        """The marks, which are the caller's; `file` and `table` stay its own. Raises OSError."""
        return Marks(file, files[_SAVED], table, self._area(files))

    def map(self, files: Mapping[str, Fd]) -> PiecesMap:
        """The map of pieces, which is the caller's. Raises OSError."""
        return self.base.map(files)

    def status(self, files: Mapping[str, Fd]) -> WriteBackStatus:
        """What is known of it."""
        return shared.struct(WriteBackStatus, files[_STATUS])

    def bell(self, files: Mapping[str, Fd]) -> Fd:
        """Readable when somebody wants a run now."""
        return files[_BELL]

    def ask(self, files: Mapping[str, Fd]) -> int:
        """Have the helper write back now; the number of the question. Raises FileRefused if it does
        not write any more.
        """
        status = self.status(files)
        if status.state == CONFLICT:
            raise FileRefused("write_back", f"stopped: {status.why}")
        status.asked += 1
        os.eventfd_write(self.bell(files).fileno(), 1)
        return int(status.asked)

    def details(self, files: Mapping[str, Fd]) -> dict[str, str | int]:
        """For `vuproc status`. Raises OSError."""
        return described(self.status(files), self._changed(files))

    def _changed(self, files: Mapping[str, Fd]) -> int:
        """Bytes of the pieces that have a mark in one of the rows."""
        area = self._area(files)
        file = self._overlay.file(files).fileno()
        half = (area.marks_bytes - PAGE) // 2
        count = count_of(area.size, area.piece)
        first = os.pread(file, count, area.marks_at + PAGE)
        second = os.pread(file, count, area.marks_at + PAGE + half)
        both = int.from_bytes(first, "little") | int.from_bytes(second, "little")
        return both.bit_count() * area.piece

    def _area(self, files: Mapping[str, Fd]) -> Area:
        pieces = self.map(files)
        try:
            return Area(pieces.size, pieces.piece)
        finally:
            pieces.close()


def write_files(base: object, overlay: Image) -> WriteFiles | None:
    """Those of a disk over this base; None: its changes are not written back."""
    if isinstance(base, PiecesBase) and base.writes_back:
        return WriteFiles(base, overlay)
    return None
