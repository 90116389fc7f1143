"""Disks with as little handler in Python as there can be: what a device's author could reach."""

from __future__ import annotations

import os
import struct
import zlib
from typing import Any

from vuproc.device import Device
from vuproc.options import FilePath, Options
from vuproc.shm.batch import Batch
from vuproc.shm.request import Request
from vuproc.spec.blk import CONFIG, REQUEST_HEADER, SECTOR_SIZE, BlkFeature, BlkStatus, BlkType

NULL_BYTES = 1 << 30
"""Size of a disk without an image."""

_OUT, _IN = int(BlkType.OUT), int(BlkType.IN)
_OK = bytes((BlkStatus.OK,))
_HEADER = struct.Struct(REQUEST_HEADER.format)


class DiskOptions(Options, kw_only=True):
    """What to serve."""

    image: FilePath | None = None
    direct: bool = False
    """Open it with O_DIRECT."""


class Nothing(Device):
    """Completes every request and moves no data."""

    device_id = 2
    options_type = DiskOptions
    options: DiskOptions

    def offered_features(self) -> int:
        return BlkFeature.MQ | BlkFeature.SEG_MAX | BlkFeature.FLUSH

    def config_space(self) -> bytes:
        image = self.options.image
        size = NULL_BYTES if image is None else os.stat(image).st_size
        return CONFIG.pack(
            capacity=size // SECTOR_SIZE, seg_max=126, blk_size=512, num_queues=self.options.queues
        )

    def handle(self, request: Request) -> None:
        request.put(-1, _OK)


class Verbs(Nothing):
    """Reads and writes by three verbs, without a check."""

    def setup(self, queue: int) -> None:
        assert self.options.image is not None
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_DIRECT if self.options.direct else 0)
        self._file = os.open(self.options.image, flags)

    def teardown(self) -> None:
        os.close(self._file)

    def handle(self, request: Request) -> None:
        kind, _, sector = _HEADER.unpack(request.read(16))
        if kind == _OUT:
            request.pwritev(self._file, sector * SECTOR_SIZE)
        elif kind == _IN:
            request.preadv(self._file, sector * SECTOR_SIZE, request.writable - 1)
        request.put(-1, _OK)


class Together(Nothing):
    """Completes all that has come, and moves no data."""

    def handle_batch(self, batch: Batch) -> None:
        batch.put(-1, _OK)


class Gathered(Verbs):
    """Reads and writes all that has come, a call for each of the two."""

    def handle_batch(self, batch: Batch) -> None:
        kinds = batch.column(0, "I")
        reads, writes = batch.where(kinds, _IN), batch.where(kinds, _OUT)
        if len(reads):
            reads.preadv(self._file, reads.column(8, "Q"), unit=SECTOR_SIZE, spare=1)
        if len(writes):
            writes.skip(_HEADER.size)
            writes.pwritev(self._file, writes.column(8, "Q"), unit=SECTOR_SIZE)
        batch.put(-1, _OK)


class Queued(Verbs):
    """The same through io_uring, for a vuproc whose requests have the verbs that finish them."""

    def uring_files(self, queue: int) -> list[int]:
        return [self._file]

    def handle(self, request: Any) -> None:
        kind, _, sector = _HEADER.unpack(request.read(16))
        if kind == _IN:
            request.finish_preadv(self._file, sector * SECTOR_SIZE, request.writable - 1, done=_OK)
        elif kind == _OUT:
            request.finish_pwritev(self._file, sector * SECTOR_SIZE, done=_OK)
        else:
            request.put(-1, _OK)


class Summing(Verbs):
    """The same with work for a CPU: the CRC-32 of what was read."""

    def handle(self, request: Request) -> None:
        kind, _, sector = _HEADER.unpack(request.read(16))
        if kind == _IN:
            request.preadv(self._file, sector * SECTOR_SIZE, request.writable - 1)
            for segment in request.writable_segments:
                zlib.crc32(segment)
        request.put(-1, _OK)
