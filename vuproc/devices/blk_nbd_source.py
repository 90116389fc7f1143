"""What the options of a disk say of its NBD export, and what workers and successors share of it."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vuproc import shared
from vuproc.devices.blk_nbd import NbdQueue, NbdStore
from vuproc.devices.nbd_address import Address
from vuproc.devices.nbd_handshake import Export, NbdError, leave, open_export
from vuproc.devices.nbd_link import CONNECT_S, NbdLink, reason_of
from vuproc.errors import FileRefused
from vuproc.fd import Fd
from vuproc.parking import Parking, lot
from vuproc.spec.blk import BlkFeature
from vuproc.spec.nbd import ExportFlag
from vuproc.spec.virtio import Feature

if TYPE_CHECKING:
    from vuproc.device import Device

OPTION = "nbd"
_NEEDED = {
    ExportFlag.SEND_TRIM: BlkFeature.DISCARD,
    ExportFlag.SEND_WRITE_ZEROES: BlkFeature.WRITE_ZEROES,
}


class NbdSource:
    """In the manner of `Image`. Nothing is connected in here for longer than a question takes.

    The shared files are what the server said of the export, when the master asked, and a place for
    the connection of each queue.
    """

    def __init__(self, uri: str, *, readonly: bool, queues: int, block_size: int) -> None:
        self._uri = uri
        self._readonly = readonly
        self._queues = queues
        self._block_size = block_size
        key = f"{zlib.crc32(uri.encode()):08x}"
        self._name = f"nbd.{'ro' if readonly else 'rw'}.{key}"
        self._found: Export | None = None

    def problems(self, block_size: int) -> Iterator[tuple[str, str]]:
        """What is wrong with the URI, or with what the server says of the export."""
        try:
            Address.of(self._uri)
            self._ask()
        except ValueError as error:
            yield OPTION, f"{self._uri}: {error}"
        except FileRefused as refused:
            yield refused.option, refused.reason

    def open(self) -> dict[str, Fd]:
        """Ask the server. Raises FileRefused, OSError."""
        export = self._ask()
        with shared.gathering() as files:
            memory = files[self._name] = Fd(os.memfd_create("vuproc-nbd", os.MFD_CLOEXEC))
            os.pwrite(memory.fileno(), export.pack(), 0)
            for queue in range(self._queues):
                files.update(zip(_places(queue), lot(), strict=True))
        return files

    def adopt(self, left: Mapping[str, Fd]) -> bool:
        """As `Image.adopt`: whether they are of this export. The server may be away just now."""
        return left.keys() == self._names

    def replaced(self, files: Mapping[str, Fd]) -> Iterator[tuple[str, str]]:
        """As `Image.replaced`: nothing that could be seen."""
        return iter(())

    def size(self, files: Mapping[str, Fd]) -> int:
        """Bytes of the export. Raises FileRefused."""
        return self.export(files).size

    def export(self, files: Mapping[str, Fd]) -> Export:
        """What the server said of it. Raises FileRefused."""
        if self._found is None:
            file = files.get(self._name)
            if file is None:
                return self._ask()
            try:
                self._found = Export.unpack(os.pread(file.fileno(), Export.PACKED_BYTES, 0))
            except struct.error as error:
                raise FileRefused(OPTION, f"{self._uri}: what is known of it is cut") from error
        return self._found

    def lacking(self, files: Mapping[str, Fd]) -> int:
        """What the export cannot do, and order: replies come as they like."""
        export = self.export(files)
        missing = int(Feature.IN_ORDER)
        for flag, feature in _NEEDED.items():
            if not export.can(flag):
                missing |= feature
        return missing

    def store(self, files: Mapping[str, Fd], device: Device) -> NbdStore:
        """What a worker serves from: a connection for each of its queues, once their rings run."""
        export, address = self.export(files), Address.of(self._uri)

        def connection(queue: int) -> NbdQueue:
            parking = Parking(*(files[name] for name in _places(queue)))
            return NbdQueue(NbdLink(device, queue, address, export, parking), device.call_later)

        return NbdStore(export, connection)

    @property
    def _names(self) -> set[str]:
        return {self._name}.union(*map(_places, range(self._queues)))

    def _ask(self) -> Export:
        if self._found is None:
            address = Address.of(self._uri)
            try:
                connected, export = open_export(address, CONNECT_S)
            except (NbdError, OSError) as error:
                raise FileRefused(OPTION, f"{address}: {reason_of(error)}") from error
            leave(connected)
            problem = self._problem(export)
            if problem is not None:
                raise FileRefused(OPTION, f"{address} {problem}")
            self._found = export
        return self._found

    def _problem(self, export: Export) -> str | None:
        if export.size < self._block_size or export.size % self._block_size:
            return f"has {export.size} bytes, which are no blocks of {self._block_size}"
        if export.least > self._block_size or self._block_size % export.least:
            return f"is for blocks of {export.least}: set block_size: {export.least}"
        if export.most < self._block_size:
            return f"takes {export.most} bytes at a time, and a block has {self._block_size}"
        if export.can(ExportFlag.READ_ONLY) and not self._readonly:
            return "is read-only; set readonly: true to serve it all the same"
        if self._queues > 1 and not export.can(ExportFlag.CAN_MULTI_CONN):
            return "is for one connection at a time, and so for queues: 1"
        return None


def _places(queue: int) -> tuple[str, str]:
    """Names of the two ends of the place where the connection of a queue is parked."""
    return f"nbd.put.{queue}", f"nbd.look.{queue}"
