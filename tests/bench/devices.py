"""The devices that are measured beside blk: as little handler as there can be."""

from __future__ import annotations

import os
import struct

from tests.bench.alone import ignore
from vuproc.device import Device
from vuproc.options import FilePath, Options
from vuproc.shm.request import Request
from vuproc.spec.blk import REQUEST_HEADER, SECTOR_SIZE

_HEADER = struct.Struct(REQUEST_HEADER.format)


class ReaderOptions(Options, kw_only=True):
    """Where to read from."""

    image: FilePath


class Reader(Device):
    """Takes every request for a read inside the image: three verbs, no checks."""

    device_id = 2
    options_type = ReaderOptions
    options: ReaderOptions

    def setup(self, queue: int) -> None:
        self._file = os.open(self.options.image, os.O_RDONLY | os.O_CLOEXEC)

    def handle(self, request: Request) -> None:
        _, _, sector = _HEADER.unpack(request.read(16))
        request.preadv(self._file, sector * SECTOR_SIZE, request.writable - 1)
        request.write(b"\0")

    def teardown(self) -> None:
        os.close(self._file)


class Null(Device):
    """A handler in Python that does nothing."""

    device_id = 2

    def handle(self, request: Request) -> None:
        pass


class NativeNull(Device):
    """A handler in native code that does nothing."""

    device_id = 2
    handle = staticmethod(ignore)
