"""An overlay whose changes are to be written back: each is marked before it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vuproc.devices.blk_fetching import FetchingOverlay, Reader
from vuproc.devices.blk_overlay import Overlay, pwritev_all
from vuproc.devices.blk_overlay_file import Layout
from vuproc.devices.blk_overlay_table import ChunkTable
from vuproc.devices.blk_write_marks import Marks
from vuproc.fd import Fd

if TYPE_CHECKING:
    from vuproc.device import Device
    from vuproc.shm.request import Request


class MarkedOverlay(Overlay):
    """As `Overlay`, between it and what fetches."""

    marks: Marks

    def write(self, request: Request, offset: int, length: int, *, durable: bool) -> None:
        """The same, in a call of its own: it is over when the mark's lock is given up."""
        with self.marks.changing(offset, length):
            at = self._at + offset
            self._store(offset, length, lambda: pwritev_all(request, self._file, at, length))
        self._complete(request, durable)

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """The same."""
        with self.marks.changing(offset, length):
            super().zero(offset, length, unmap=unmap)

    def _punch(self, offset: int, length: int) -> None:
        # What is just being written back would have to be saved first, for a mere hint.
        if not self.marks.unsaved(offset, length):
            with self.marks.changing(offset, length):
                super()._punch(offset, length)


class WritingBackOverlay(FetchingOverlay, MarkedOverlay):
    """Owns the marks, too."""

    def __init__(
        self,
        reader: Reader,
        device: Device,
        content: Fd,
        table: ChunkTable,
        size: int,
        layout: Layout | None,
        marks: Marks,
    ) -> None:
        super().__init__(reader, device, content, table, size, layout)
        self.marks = marks

    def close(self) -> None:
        """As that of `FetchingOverlay`."""
        try:
            super().close()
        finally:
            self.marks.close()
