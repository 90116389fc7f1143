"""The files of a disk in two layers: a base that is only read, here or far away, and an overlay.

They are opened once, in the master, as one image is, and passed on to workers and to whoever
follows the master. So is the table of what the overlay has, which is read from its file only then.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from vuproc import shared
from vuproc.devices.blk_image import Image, reason_of
from vuproc.devices.blk_overlay import Overlay
from vuproc.devices.blk_overlay_file import (
    Layout,
    NoOverlay,
    disk_size,
    initialise,
    read_bits,
    read_header,
)
from vuproc.devices.blk_overlay_table import ChunkTable, new_table
from vuproc.devices.blk_storage import new_memory
from vuproc.devices.blk_write_area import begun_runs, distrust
from vuproc.devices.host_paths import why_not_made
from vuproc.devices.image_lock import unlock
from vuproc.errors import FileRefused
from vuproc.fd import Fd
from vuproc.spec.blk import SECTOR_SIZE
from vuproc.spec.virtio import Feature

if TYPE_CHECKING:
    from vuproc.device import Device
    from vuproc.devices.blk_objects import ObjectBase
    from vuproc.devices.blk_pieces import PiecesBase
    from vuproc.devices.blk_write_files import WriteFiles

    FarBase = ObjectBase | PiecesBase

log = logging.getLogger("vuproc.device")

_TABLE = "overlay.table"
_MEMORY = "overlay.memory"
"""Of the shared files: which chunks there are, and the overlay of a disk without a file for it."""


class Layers:
    """What the options of a disk say of its two layers, in the manner of `Image`. Nothing is open
    in here. `path`: of the overlay, or None for one that lives as long as the device.
    """

    def __init__(self, base: Image | FarBase, path: str | None) -> None:
        self._base = base
        self._overlay = None if path is None else _OverlayFile(path)
        overlay = {_MEMORY} if self._overlay is None else self._overlay.names
        self._names = self._base.names | overlay | {_TABLE}
        self._writing = None
        if self._overlay is not None and not isinstance(base, Image):
            from vuproc.devices.blk_write_files import write_files

            self._writing = write_files(base, self._overlay)
        if self._writing is not None:
            self._names |= self._writing.names

    def problems(self, block_size: int) -> Iterator[tuple[str, str]]:
        """What is wrong with the files at the paths, as (option, message)."""
        wrong = list(self._base.problems(block_size))
        yield from wrong
        if self._overlay is not None and not wrong:
            yield from self._overlay.problems_over(_sectors(self._base.size({})))

    def open(self) -> dict[str, Fd]:
        """Open and lock both; an overlay is made if there is none. Raises FileRefused, OSError."""
        try:
            return self._open()
        except OSError as error:
            option = "image" if self._overlay is not None else self._base.option
            raise FileRefused(option, f"no overlay can be made: {reason_of(error)}") from error

    def _open(self) -> dict[str, Fd]:
        with shared.gathering() as files:
            files |= self._base.open()
            size = _sectors(self._base.size(files))
            if self._overlay is None:
                files[_MEMORY] = new_memory(size)
                files[_TABLE] = new_table(size, iter(()))
            else:
                files |= self._overlay.open()
                file = self._overlay.prepared(files, size, self._base)
                files[_TABLE] = new_table(size, read_bits(file, size))
                if self._writing is not None:
                    files |= self._writing.open(files, file, files[_TABLE])
                else:
                    distrust(file)
        return files

    def adopt(self, left: Mapping[str, Fd]) -> bool:
        """As `Image.adopt`."""
        if left.keys() != self._names:
            for fd in left.values():
                unlock(fd)
            return False
        for image in self._images():
            image.adopt({name: left[name] for name in image.names})
        return True

    def replaced(self, files: Mapping[str, Fd]) -> Iterator[tuple[str, str]]:
        """As `Image.replaced`, of both."""
        for image in self._images():
            yield from image.replaced(files)

    def size(self, files: Mapping[str, Fd]) -> int:
        """Bytes of the disk, which are those that the base had when the overlay was made."""
        if _MEMORY in files:
            return os.fstat(files[_MEMORY].fileno()).st_size
        if self._overlay is not None and self._overlay.names <= files.keys():
            return disk_size(self._overlay.file(files))
        return _sectors(self._base.size(files))

    def lacking(self, files: Mapping[str, Fd]) -> int:
        """Order, if requests wait for a base that is far away."""
        return 0 if isinstance(self._base, Image) else int(Feature.IN_ORDER)

    def store(self, files: Mapping[str, Fd], device: Device) -> Overlay:
        """What a worker serves from: duplicates of the descriptors in `files`. Raises OSError."""
        missing = self._names - files.keys()
        if missing:
            raise FileRefused(self._base.option, f"no {sorted(missing)[0]} among the shared files")
        size = self.size(files)
        if self._overlay is None:
            content, layout = files[_MEMORY], None
        else:
            content, layout = self._overlay.file(files), Layout(size)
        with ExitStack() as undo:
            table = ChunkTable(files[_TABLE], size)
            undo.callback(table.close)
            own = undo.enter_context(content.dup())
            store: Overlay
            if isinstance(self._base, Image):
                base = undo.enter_context(self._base.file(files).dup())
                store = Overlay(base, own, table, size, layout)
            else:
                from vuproc.devices.blk_fetching import FetchingOverlay

                reader = self._base.reader(files)
                undo.callback(reader.close)
                if self._writing is None:
                    store = FetchingOverlay(reader, device, own, table, size, layout)
                else:
                    from vuproc.devices.blk_writing_back import WritingBackOverlay

                    marks = self._writing.marks(files, own, table)
                    store = WritingBackOverlay(reader, device, own, table, size, layout, marks)
            undo.pop_all()
            return store

    @property
    def writing(self) -> WriteFiles | None:
        """What there is for writing back, if that is wanted."""
        return self._writing

    def helper(
        self, files: Mapping[str, Fd], device: Device, ending: Fd, interval_s: float
    ) -> None:
        """What the helper does: it writes back, until `ending` is readable. Raises OSError."""
        from vuproc.devices.blk_helper import BlkHelper

        assert self._writing is not None and self._overlay is not None
        size = self.size(files)
        with ExitStack() as undo:
            own = undo.enter_context(self._overlay.file(files).dup())
            table = ChunkTable(files[_TABLE], size)
            undo.callback(table.close)
            marks = self._writing.marks(files, own, table)
            undo.callback(marks.close)
            BlkHelper(self._writing, files, own, table, marks, device, ending, interval_s).run()

    def _images(self) -> list[Image | FarBase]:
        return [self._base] if self._overlay is None else [self._base, self._overlay]


class _OverlayFile(Image):
    """The overlay's own file: an image of its format, which is made if there is none.

    It is locked in any case: each program has a table of its own of what is in there.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, readonly=False, locking=True)

    def problems_over(self, size: int) -> Iterator[tuple[str, str]]:
        """As `problems`, over a base of `size` bytes."""
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                yield self.option, f"{self.path} is no file, as an overlay is"
                return
            descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            if problem := why_not_made(self.path):
                yield self.option, problem
            return
        except OSError as error:
            yield self.option, f"{self.path} is not writable: {reason_of(error)}"
            return
        with Fd(descriptor) as file:
            try:
                read_header(file, size)
            except NoOverlay as error:
                yield self.option, f"{self.path} {error}"
            except OSError as error:
                yield self.option, f"{self.path} is not readable: {reason_of(error)}"

    def prepared(self, files: Mapping[str, Fd], size: int, base: Image | FarBase) -> Fd:
        """The open file, with a header for a base of `size` bytes. Raises FileRefused, OSError."""
        file, base_changed = self.file(files), base.changed(files)
        try:
            of_old = read_header(file, size)
        except NoOverlay as error:
            raise FileRefused(self.option, f"{self.path} {error}") from error
        if of_old is None:
            initialise(file, size, base_changed)
            log.info("overlay %s is new", self.path)
        elif of_old != base_changed and base_changed in begun_runs(file):
            pass  # of ours: whoever wrote it had not time to note that
        elif of_old != base_changed and base.strict:
            reason = f"{self.path} is an overlay of another object than is at {base.path} now"
            raise FileRefused(self.option, reason)
        elif of_old != base_changed:
            log.warning(
                "the base was changed after the overlay %s was made, whose chunks may not fit the "
                "rest of it any more",
                self.path,
            )
        return file

    def _open(self) -> Fd:
        try:
            return Fd(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
        except OSError as error:
            reason = reason_of(error)
            raise FileRefused(self.option, f"{self.path} cannot be opened: {reason}") from error

    def _look_at(self, fd: Fd) -> None:
        pass  # its format is looked at by `prepared`


def _sectors(size: int) -> int:
    """Bytes of the whole sectors in there."""
    return size // SECTOR_SIZE * SECTOR_SIZE
