"""What the options of a disk say of its NBD export, and what workers and successors share of it."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vuproc import shared
from vuproc.devices.blk_export_source import ExportSource
from vuproc.devices.blk_nbd import NbdQueue, NbdStore
from vuproc.devices.nbd_address import Address
from vuproc.devices.nbd_handshake import Export, NbdError, reason_of
from vuproc.devices.nbd_link import NbdLink
from vuproc.devices.nbd_question import ask
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


class NbdSource(ExportSource):
    """In the manner of `Image`. Nothing is connected in here.

    The shared files are what the server said of the export, when the master asked, and a place for
    the connection of each queue.
    """

    option = OPTION

    def __init__(self, uri: str, *, readonly: bool, queues: int, block_size: int) -> None:
        name = f"nbd.{'ro' if readonly else 'rw'}.{zlib.crc32(uri.encode()):08x}"
        super().__init__(uri, name, readonly=readonly, block_size=block_size)
        self._queues = queues

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
        export, address = self.export(files), Address.of(self._text)

        def connection(queue: int) -> NbdQueue:
            parking = Parking(*(files[name] for name in _places(queue)))
            return NbdQueue(NbdLink(device, queue, address, export, parking), device.call_later)

        return NbdStore(export, connection)

    @property
    def _names(self) -> set[str]:
        return {self._name}.union(*map(_places, range(self._queues)))

    def _check_name(self) -> None:
        Address.of(self._text)

    def _asked(self) -> tuple[str, Export]:
        address = Address.of(self._text)
        try:
            return str(address), ask(self._text)
        except (NbdError, OSError) as error:
            raise FileRefused(OPTION, f"{address}: {reason_of(error)}") from error

    def _problem(self, export: Export) -> str | None:
        problem = super()._problem(export)
        if problem is not None:
            return problem
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
