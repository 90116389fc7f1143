"""A disk whose requests are served all at a time. A device file:

socket: ./disk.sock
device: {type: ./batch_disk.py:BatchDisk, image: disk.raw}
"""

import os
import struct

from vuproc import Batch, Device, FilePath, Options

IN, OUT, FLUSH = 0, 1, 4
OK, IOERR, UNSUPP = 0, 1, 2


class DiskOptions(Options, kw_only=True):
    """The options of the disk."""

    image: FilePath


class BatchDisk(Device):
    """virtio-blk: reads, writes and flushes of a raw file."""

    device_id = 2
    features = 1 << 9  # FLUSH
    options_type = DiskOptions
    options: DiskOptions

    def config_space(self) -> bytes:
        """The capacity in sectors."""
        return struct.pack("<Q", os.stat(self.options.image).st_size // 512)

    def setup(self, queue: int) -> None:
        """Open the image, in the worker."""
        self.file = os.open(self.options.image, os.O_RDWR | os.O_CLOEXEC)
        self.size = os.fstat(self.file).st_size

    def handle_batch(self, batch: Batch) -> None:
        """All that has come; what has no header, or no room for a status, is just given back."""
        rooms = zip(batch.readable, batch.writable, strict=True)
        batch = batch.where([out >= 16 and room for out, room in rooms])
        kinds = batch.column(0, "I")
        reads, writes, flushes = (batch.where(kinds, kind) for kind in (IN, OUT, FLUSH))
        batch.put(-1, bytes([UNSUPP]))
        # What has moved whole, but for the status, is good.
        reads.preadv(self.file, reads.column(8, "Q"), unit=512, spare=1, within=self.size)
        answer(reads, reads.where(reads.writable, 1))
        writes.skip(16)
        writes.pwritev(self.file, writes.column(8, "Q"), unit=512, within=self.size)
        answer(writes, writes.where(writes.readable, 0))
        if len(flushes):
            os.fdatasync(self.file)
            answer(flushes, flushes)


def answer(batch: Batch, good: Batch) -> None:
    """The statuses of a kind of requests."""
    batch.put(-1, bytes([IOERR]))
    good.put(-1, bytes([OK]))
