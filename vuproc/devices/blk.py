"""virtio-blk: a disk in a file, a block device, memory or elsewhere; the example of a device."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vuproc.devices.blk_description import (
    MAX_DISCARD_SECTORS,
    MAX_DISCARD_SEGMENTS,
    MAX_WRITE_ZEROES_SECTORS,
    MAX_WRITE_ZEROES_SEGMENTS,
    BlkDescription,
)
from vuproc.devices.blk_image import Image
from vuproc.devices.blk_map import MapBlk, is_memory
from vuproc.devices.blk_native import NativeBlk
from vuproc.devices.blk_options import BlkOptions as BlkOptions  # a part of the interface
from vuproc.devices.blk_ranges import Refused, ranges_of
from vuproc.devices.blk_storage import Storage
from vuproc.devices.blk_store import OK, Range, Store
from vuproc.devices.blk_uring import UringBlk
from vuproc.spec.blk import (
    CONFIG,
    DISCARD_F_UNMAP,
    ID_BYTES,
    REQUEST_HEADER,
    SECTOR_SIZE,
    BlkFeature,
    BlkStatus,
    BlkType,
)

if TYPE_CHECKING:
    from vuproc.shm.request import Request

# As plain integers: members of an enum take as long to compare as a verb takes to run.
_IN, _OUT = int(BlkType.IN), int(BlkType.OUT)
_FLUSH, _CONFIG_WCE = int(BlkFeature.FLUSH), int(BlkFeature.CONFIG_WCE)
_STORED = frozenset((BlkType.FLUSH, BlkType.DISCARD, BlkType.WRITE_ZEROES))
"""What a store does beside reading and writing."""
_HEADER = struct.Struct(REQUEST_HEADER.format)
_HEADER_BYTES = _HEADER.size
_unpack = _HEADER.unpack


class Blk(BlkDescription):
    """virtio-blk: a disk kept in a raw file, a block device or memory.

    Serves read, write, flush, get-id, discard and write-zeroes (virtio 1.3, 5.2). Queues share
    nothing but the file, so each has a worker of its own.
    """

    def __init__(self, options: BlkOptions) -> None:
        super().__init__(options)
        self._size = 0
        self._block_mask = options.block_size - 1
        self._readonly = options.readonly
        self._storage: Storage | None = None
        self._store: Store | None = None
        self._natives: list[NativeBlk] = []
        self._file = -1
        self._buffered: int | None = None
        self._forget_driver()

    def opens_nothing(self) -> bool:
        """An image is open, and what is far away is not."""
        return type(self) is Blk and (self._image is None or isinstance(self._image, Image))

    # What a worker calls.

    def setup(self, queue: int) -> None:
        """Take the image that the master has opened, once a worker."""
        if self._storage is not None or self._store is not None:
            return
        self._size = self._disk_size()
        image = self._image
        if image is not None and not isinstance(image, Image):
            self._store = image.store(self.shared, self)
            return
        self._storage = (
            Storage(self.shared["ram"].dup()) if image is None else image.storage(self.shared)
        )
        # As numbers: the verbs would ask the storage for them, in Python, at each request.
        self._file = self._storage.fileno()
        # None: it is the same. A request's memory is looked at only if it is not.
        buffered = self._storage.buffered.fileno()
        self._buffered = None if buffered == self._file else buffered

    def ring_started(self, queue: int) -> None:
        """Tell the store."""
        if self._store is not None:
            self._store.ring_started(queue)

    def ring_stopping(self, queue: int) -> None:
        """Tell the store."""
        if self._store is not None:
            self._store.ring_stopping(queue)

    def uring_files(self, queue: int) -> tuple[int, ...]:
        """The image, if it is open past the page cache; memory to memory is faster without."""
        return (self._file,) if self._wants_uring else ()

    def native(self, queue: int) -> NativeBlk | None:
        """The same in native code, unless the options or a subclass want `handle`, or it is not
        one open file.
        """
        if self.options.engine == "python" or type(self).handle is not Blk.handle:
            return None
        if self._store is not None:
            return None
        if self.uring_files(queue):
            made = self._native_by(UringBlk)
        elif self._wants_map:
            made = self._mapped()
        else:
            made = self._native_by(NativeBlk)
        self._natives.append(made)
        return made

    @property
    def _wants_map(self) -> bool:
        engine = self.options.engine
        return engine == "map" or (engine == "auto" and is_memory(self._file))

    def _mapped(self) -> NativeBlk:
        try:
            return self._native_by(MapBlk)
        except OSError as error:
            self.log.warning("the image is not mapped, and requests are calls: %s", error.strerror)
            return self._native_by(NativeBlk)

    def _native_by(self, kind: type[NativeBlk]) -> NativeBlk:
        return kind(
            self._file,
            self._size,
            block_size=self.options.block_size,
            block_device=self._open_storage.block_device,
            readonly=self.options.readonly,
            cached=self._cached,
            buffered=-1 if self._buffered is None else self._buffered,
            serial=self.options.serial.encode("ascii"),
            discard=(MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS),
            write_zeroes=(MAX_WRITE_ZEROES_SECTORS, MAX_WRITE_ZEROES_SEGMENTS),
        )

    def teardown(self) -> None:
        """Close the image; what was written is the kernel's already."""
        if self._storage is not None:
            self._file, self._buffered = -1, None
            self._storage.close()
            self._storage = None
        if self._store is not None:
            self._store.close()
            self._store = None

    def handle(self, request: Request) -> None:
        """Serve one request: header, data, and the status as the last writable byte."""
        header = request.read(_HEADER_BYTES)
        room = request.writable
        if room == 0:
            # Nowhere to put a status: the driver gets its descriptors back and nothing else.
            request.finish(0)
            return
        try:
            if len(header) < _HEADER_BYTES:
                raise Refused(BlkStatus.IOERR)
            kind, _, sector = _unpack(header)
            # As few calls as can be for reads and writes, which are what has to be fast.
            if kind == _IN:
                offset, length = sector * SECTOR_SIZE, room - 1
                if (offset | length) & self._block_mask or offset + length > self._size:
                    raise Refused(BlkStatus.IOERR)
                if self._store is not None:
                    self._store.read(request, offset, length)
                    return
                request.finish_preadv(self._file, offset, length, done=OK, buffered=self._buffered)
            elif kind == _OUT:
                self._write(request, sector * SECTOR_SIZE, request.readable)
            elif self._store is not None and kind in _STORED:
                self._serve_by(self._store, request, kind)
            elif kind == BlkType.FLUSH:
                self._open_storage.syncs += 1
                request.finish_fdatasync(self._file, done=OK)
            else:
                self._serve_rest(request, kind)
                request.put(-1, OK)
        except Refused as refused:
            request.put(-1, bytes((refused.status,)))

    def fail(self, request: Request, error: BaseException) -> None:
        """A request whose serving raised, an OSError of the image above all, is an I/O error."""
        if request.writable_total:
            request.put(-1, bytes((BlkStatus.IOERR,)))
        request.finish()

    def features_acked(self, features: int) -> None:
        """Remember which caching the driver knows of."""
        self._acked = features
        self._choose_cache()

    def config_written(self, offset: int, data: bytes) -> None:
        """Switch the write cache: the only field a driver may write (virtio 1.3, 5.2.5.2)."""
        if offset != CONFIG.offsets["wce"] or data not in (b"\0", b"\1"):
            raise ValueError(f"{len(data)} bytes at {offset} of the config space are read-only")
        self._writeback = data == b"\1"
        self._choose_cache()

    def reset(self) -> None:
        """Back to the cache mode of the options, all features."""
        self._forget_driver()

    # The requests.

    def _write(self, request: Request, offset: int, length: int) -> None:
        if (offset | length) & self._block_mask or offset + length > self._size or self._readonly:
            raise Refused(BlkStatus.IOERR)
        durable = not self._cached
        if self._store is not None:
            self._store.write(request, offset, length, durable=durable)
            return
        if durable:
            self._open_storage.syncs += 1
        request.finish_pwritev(
            self._file, offset, length, done=OK, durable=durable, buffered=self._buffered
        )

    def _serve_rest(self, request: Request, kind: int) -> None:
        if kind == BlkType.GET_ID:
            serial = self.options.serial.encode("ascii").ljust(ID_BYTES, b"\0")
            request.write(serial[: request.writable - 1])
        elif kind == BlkType.DISCARD and not self.options.readonly:
            self._discard(request)
        elif kind == BlkType.WRITE_ZEROES and not self.options.readonly:
            self._write_zeroes(request)
        elif kind in (BlkType.DISCARD, BlkType.WRITE_ZEROES):
            raise Refused(BlkStatus.IOERR)
        else:
            raise Refused(BlkStatus.UNSUPP)

    def _serve_by(self, store: Store, request: Request, kind: int) -> None:
        if kind == BlkType.FLUSH:
            store.flush(request)
        elif self.options.readonly:
            raise Refused(BlkStatus.IOERR)
        elif kind == BlkType.DISCARD:
            store.discard(request, self._discarded(request), durable=not self._cached)
        else:
            store.write_zeroes(request, self._zeroed(request), durable=not self._cached)

    def _discard(self, request: Request) -> None:
        for offset, length, _ in self._discarded(request):
            self._open_storage.discard(offset, length)
        self._flush_if_writethrough()

    def _write_zeroes(self, request: Request) -> None:
        for offset, length, unmap in self._zeroed(request):
            self._open_storage.write_zeroes(offset, length, unmap=unmap)
        self._flush_if_writethrough()

    def _discarded(self, request: Request) -> list[Range]:
        limit = MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS
        return ranges_of(request, *limit, flags=0, check=self._check_range)

    def _zeroed(self, request: Request) -> list[Range]:
        limit = MAX_WRITE_ZEROES_SECTORS, MAX_WRITE_ZEROES_SEGMENTS
        return ranges_of(request, *limit, flags=DISCARD_F_UNMAP, check=self._check_range)

    def _check_range(self, offset: int, length: int) -> None:
        """Refuse what is not whole blocks inside the disk; Python's integers do not wrap."""
        if (offset | length) & self._block_mask or offset + length > self._size:
            raise Refused(BlkStatus.IOERR)

    def _flush_if_writethrough(self) -> None:
        if not self._cached:
            self._open_storage.flush()

    def _forget_driver(self) -> None:
        self._acked = _FLUSH | _CONFIG_WCE
        self._writeback = self.options.cache == "writeback"
        self._choose_cache()

    def _choose_cache(self) -> None:
        """virtio 1.3, 5.2.6.2: without a cache that the driver knows of, a write is stable."""
        self._cached = self._writeback and bool(self._acked & (_FLUSH | _CONFIG_WCE))
        for native in self._natives:
            native.cached = self._cached

    @property
    def _open_storage(self) -> Storage:
        if self._storage is None:
            raise RuntimeError("setup was not called")
        return self._storage
