"""The block device on a real ring: every request type, its refusals and its used lengths."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.devices.inline import QUEUE_SIZE, Inline
from vuproc.devices import blk_description
from vuproc.devices.blk import Blk, BlkOptions
from vuproc.devices.blk_storage import Storage, check_direct
from vuproc.spec.blk import (
    CONFIG,
    DISCARD_SEGMENT,
    ID_BYTES,
    REQUEST_HEADER,
    SECTOR_SIZE,
    BlkFeature,
    BlkStatus,
    BlkType,
)

DISK = 1 << 20
SECTORS = DISK // SECTOR_SIZE
PATTERN = bytes(range(256)) * 2  # one sector

Disk = Callable[..., Inline]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(PATTERN * SECTORS)
    return path


ENGINES: dict[str, dict[str, object]] = {
    "sync": {"engine": "sync"},
    "map": {"engine": "map"},
    "python": {"engine": "python"},
    "io_uring": {"engine": "io_uring"},
    "direct-sync": {"engine": "sync", "direct": True},
    "direct-python": {"engine": "python", "direct": True},
    "direct-auto": {"engine": "auto", "direct": True},
}
"""What serves the disk: each is to do the same."""
MOST_PIECES = 1024
"""Of one system call (UIO_MAXIOV)."""


CALLS = [name for name in ENGINES if name != "map"]
"""Those that ask the kernel, which sees each byte that is missing; a mapping sees pages."""


@contextmanager
def made_by(name: str, image: Path) -> Iterator[Disk]:
    made: list[Inline] = []

    def make(**options: object) -> Inline:
        engine = dict(ENGINES[name])
        if "ram" in options:
            engine.pop("direct", None)
            if engine == {"engine": "auto"} and name in CALLS:
                engine = {"engine": "sync"}  # it would be mapped
        else:
            options.setdefault("image", str(image))
            problem = check_direct(str(image), 512) if "direct" in engine else None
            if problem is not None:
                print(f"not direct: {problem}")
                del engine["direct"]
        options = {**engine, **options}
        made.append(Inline(Blk(BlkOptions(**options))))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for inline in made:
        inline.close()


@pytest.fixture(params=ENGINES)
def disk(image: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    with made_by(request.param, image) as make:
        yield make


@pytest.fixture(params=CALLS)
def called(image: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    with made_by(request.param, image) as make:
        yield make


def ranges(*parts: tuple[int, int, int]) -> bytes:
    return b"".join(
        DISCARD_SEGMENT.pack(sector=sector, num_sectors=count, flags=flags)
        for sector, count, flags in parts
    )


# Reading and writing.


def test_read_gives_the_image(disk: Disk) -> None:
    result = disk().block(BlkType.IN, 3, in_=[4096])
    assert (result.status, result.data) == (BlkStatus.OK, PATTERN * 8)
    assert result.written == 4096 + 1


def test_write_lands_in_the_image(disk: Disk, image: Path) -> None:
    data = os.urandom(4096)
    result = disk().block(BlkType.OUT, 5, [data])
    assert (result.status, result.written) == (BlkStatus.OK, 1)
    assert image.read_bytes()[5 * 512 : 5 * 512 + 4096] == data


def test_memory_disk_starts_empty_and_keeps_what_is_written(disk: Disk) -> None:
    inline = disk(ram=DISK)
    assert inline.block(BlkType.IN, 0, in_=[512]).data == bytes(512)
    inline.block(BlkType.OUT, SECTORS - 1, [PATTERN])
    assert inline.block(BlkType.IN, SECTORS - 1, in_=[512]).data == PATTERN


def test_memory_disk_is_shared_by_the_devices_of_all_workers() -> None:
    options = BlkOptions(ram=DISK)
    first = Inline(Blk(options))
    second = Blk(options)
    second.shared = first.device.shared
    second.setup(1)
    first.block(BlkType.OUT, 7, [PATTERN])
    assert isinstance(second._storage, Storage)
    assert os.pread(second._storage.fileno(), 512, 7 * 512) == PATTERN
    second.teardown()
    first.close()


@pytest.mark.parametrize("indirect", [False, True])
def test_request_of_as_many_segments_as_seg_max_says(disk: Disk, indirect: bool) -> None:
    inline = disk(queue_size=QUEUE_SIZE)
    count = CONFIG.unpack(inline.device.config_space())["seg_max"]
    assert count == QUEUE_SIZE - 2
    data = [os.urandom(512) for _ in range(count)]
    assert inline.block(BlkType.OUT, 0, data, indirect=indirect).status == BlkStatus.OK
    result = inline.block(BlkType.IN, 0, in_=[512] * count, indirect=indirect)
    assert result.data == b"".join(data)
    assert result.written == 512 * count + 1


@pytest.mark.parametrize("engine", ENGINES)
def test_request_of_more_pieces_than_one_call_takes(image: Path, engine: str) -> None:
    pieces = 2 * MOST_PIECES - 100
    inline = Inline(Blk(BlkOptions(image=str(image), engine=engine)), size=4096)  # type: ignore[arg-type]
    data = [os.urandom(512) for _ in range(pieces)]
    assert inline.block(BlkType.OUT, 0, data).status == BlkStatus.OK
    result = inline.block(BlkType.IN, 0, in_=[512] * pieces)
    assert (result.status, result.written) == (BlkStatus.OK, 512 * pieces + 1)
    assert result.data == b"".join(data)
    inline.close()


def test_segments_need_not_be_whole_sectors(disk: Disk) -> None:
    inline = disk()
    data = os.urandom(1024)
    assert inline.block(BlkType.OUT, 0, [data[:100], data[100:1000], data[1000:]]).status == 0
    assert inline.block(BlkType.IN, 0, in_=[1, 511, 512]).data == data


def test_c14_header_spread_over_descriptors_is_gathered(disk: Disk) -> None:
    header = REQUEST_HEADER.pack(type=BlkType.IN, sector=2)
    parts = [header[:3], header[3:15], header[15:]]
    result = disk().chain(parts, [512, 1])
    assert result.data == (PATTERN, bytes([BlkStatus.OK]))


def test_header_and_data_in_one_descriptor(disk: Disk, image: Path) -> None:
    data = os.urandom(512)
    header = REQUEST_HEADER.pack(type=BlkType.OUT, sector=9)
    assert disk().chain([header + data], [1]).data == (bytes([BlkStatus.OK]),)
    assert image.read_bytes()[9 * 512 : 10 * 512] == data


def test_data_and_status_in_one_descriptor(disk: Disk) -> None:
    header = REQUEST_HEADER.pack(type=BlkType.IN, sector=0)
    result = disk().chain([header], [513])
    assert result.data == (PATTERN + bytes([BlkStatus.OK]),)


def test_flush_syncs_the_image(disk: Disk) -> None:
    inline = disk()
    assert inline.block(BlkType.FLUSH).status == BlkStatus.OK
    assert inline.syncs == 1


def test_get_id_is_the_serial_padded_with_zeros(disk: Disk) -> None:
    result = disk(serial="demo-0").block(BlkType.GET_ID, in_=[ID_BYTES])
    assert result.data == b"demo-0".ljust(ID_BYTES, b"\0")
    assert result.written == ID_BYTES + 1


def test_get_id_fills_a_shorter_buffer_as_far_as_it_goes(disk: Disk) -> None:
    result = disk(serial="x" * 20).block(BlkType.GET_ID, in_=[4])
    assert (result.status, result.data, result.written) == (BlkStatus.OK, b"xxxx", 5)


# What is refused.


@pytest.mark.parametrize(
    ("sector", "size"),
    [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (2**64 - 1, 512),
        (2**64 - 1, 1024),
        (2**55, 512),
        (0, 511),
        (0, 513),
        (SECTORS + 1, 0),
    ],
)
@pytest.mark.parametrize("kind", [BlkType.IN, BlkType.OUT])
def test_c32_range_outside_the_disk_or_unaligned_is_ioerr(
    disk: Disk, image: Path, kind: BlkType, sector: int, size: int
) -> None:
    before = image.read_bytes()
    if kind == BlkType.IN:
        result = disk().block(kind, sector, in_=[size])
    else:
        result = disk().block(kind, sector, [bytes(size)])
    assert (result.status, result.written) == (BlkStatus.IOERR, 1)
    assert image.read_bytes() == before


def test_c32_blocks_larger_than_sectors_must_be_aligned(disk: Disk) -> None:
    inline = disk(block_size=4096)
    assert inline.block(BlkType.IN, 8, in_=[4096]).status == BlkStatus.OK
    assert inline.block(BlkType.IN, 1, in_=[4096]).status == BlkStatus.IOERR
    assert inline.block(BlkType.IN, 8, in_=[512]).status == BlkStatus.IOERR


@pytest.mark.parametrize("kind", [2, 3, 5, 10, 14, 99, 2**32 - 1])
def test_c33_unknown_type_is_unsupp(disk: Disk, kind: int) -> None:
    result = disk().block(kind, in_=[512])
    assert (result.status, result.written) == (BlkStatus.UNSUPP, 1)


@pytest.mark.parametrize(
    ("kind", "payload", "status"),
    [
        (BlkType.DISCARD, ranges((0, 0, 0)), BlkStatus.IOERR),
        (BlkType.DISCARD, ranges((0, 2**32 - 1, 0)), BlkStatus.IOERR),
        (BlkType.DISCARD, ranges((SECTORS, 1, 0)), BlkStatus.IOERR),
        (BlkType.DISCARD, ranges((2**64 - 1, 1, 0)), BlkStatus.IOERR),
        (BlkType.DISCARD, ranges((0, 1, 1)), BlkStatus.UNSUPP),
        (BlkType.DISCARD, ranges((0, 1, 2)), BlkStatus.UNSUPP),
        (BlkType.DISCARD, ranges(*[(0, 1, 0)] * 65), BlkStatus.IOERR),
        (BlkType.DISCARD, b"", BlkStatus.IOERR),
        (BlkType.DISCARD, bytes(15), BlkStatus.IOERR),
        (BlkType.WRITE_ZEROES, ranges((0, 0, 0)), BlkStatus.IOERR),
        (BlkType.WRITE_ZEROES, ranges((0, 2**32 - 1, 1)), BlkStatus.IOERR),
        (BlkType.WRITE_ZEROES, ranges((0, 1, 2)), BlkStatus.UNSUPP),
        (BlkType.WRITE_ZEROES, ranges(*[(0, 1, 0)] * 9), BlkStatus.IOERR),
        # Nothing is done before all of it is checked.
        (BlkType.WRITE_ZEROES, ranges((0, 1, 0), (SECTORS, 1, 0)), BlkStatus.IOERR),
    ],
)
def test_c33_bad_ranges_are_refused_whole(
    disk: Disk, image: Path, kind: BlkType, payload: bytes, status: BlkStatus
) -> None:
    before = image.read_bytes()
    result = disk().block(kind, out=[payload])
    assert (result.status, result.written) == (status, 1)
    assert image.read_bytes() == before


def test_c13_only_readable_descriptors_complete_with_nothing_written(
    disk: Disk, image: Path
) -> None:
    before = image.read_bytes()
    header = REQUEST_HEADER.pack(type=BlkType.OUT, sector=0)
    assert disk().chain([header, bytes(512)]).written == 0
    assert image.read_bytes() == before


def test_c13_only_writable_descriptors_are_ioerr(disk: Disk) -> None:
    result = disk().chain([], [512, 1])
    assert result.data == (bytes(512), bytes([BlkStatus.IOERR]))
    assert result.written == 1


def test_c14_short_header_is_ioerr(disk: Disk) -> None:
    result = disk().chain([REQUEST_HEADER.pack(type=BlkType.IN)[:15]], [512, 1])
    assert result.data[-1] == bytes([BlkStatus.IOERR])
    assert result.written == 1


@pytest.mark.parametrize("kind", [BlkType.OUT, BlkType.DISCARD, BlkType.WRITE_ZEROES])
def test_read_only_disk_refuses_changes(disk: Disk, image: Path, kind: BlkType) -> None:
    before = image.read_bytes()
    payload = ranges((0, 1, 0)) if kind != BlkType.OUT else bytes(512)
    result = disk(readonly=True).block(kind, out=[payload])
    assert (result.status, result.written) == (BlkStatus.IOERR, 1)
    assert image.read_bytes() == before


def test_read_only_disk_needs_no_permission_to_write(disk: Disk, image: Path) -> None:
    inline = disk(readonly=True)
    assert inline.block(BlkType.IN, 0, in_=[512]).data == PATTERN
    assert inline.block(BlkType.FLUSH).status == BlkStatus.OK


# When the image fails.


def test_c39_short_read_is_ioerr_and_counts_only_what_was_read(called: Disk, image: Path) -> None:
    inline = called()
    os.truncate(image, 512)
    result = inline.block(BlkType.IN, 0, in_=[1024])
    assert (result.status, result.data) == (BlkStatus.IOERR, PATTERN + bytes(512))
    assert result.written == 512 + 1


def test_f11_full_disk_is_ioerr(called: Disk) -> None:
    inline = called(ram=DISK)
    with FileSizeLimit(DISK // 2):
        assert inline.block(BlkType.OUT, 0, [PATTERN]).status == BlkStatus.OK
        result = inline.block(BlkType.OUT, SECTORS // 2, [PATTERN])
    assert (result.status, result.written) == (BlkStatus.IOERR, 1)
    (error,) = inline.errors
    assert isinstance(error, OSError)
    assert error.errno == errno.EFBIG
    assert inline.block(BlkType.OUT, SECTORS // 2, [PATTERN]).status == BlkStatus.OK


def test_f11_error_of_flush_is_ioerr(disk: Disk) -> None:
    inline = disk()
    storage = inline.device._storage
    kept = os.dup(storage.fileno())
    # What cannot be synced.
    reading, writing = os.pipe()
    os.dup2(reading, storage.fileno(), inheritable=False)
    inline.register_files()
    assert inline.block(BlkType.FLUSH).status == BlkStatus.IOERR
    os.dup2(kept, storage.fileno(), inheritable=False)
    inline.register_files()
    for number in (kept, reading, writing):
        os.close(number)
    (error,) = inline.errors
    assert isinstance(error, OSError)
    assert error.errno == errno.EINVAL
    assert inline.block(BlkType.IN, 0, in_=[512]).status == BlkStatus.OK


# Discard and write-zeroes.


def test_discard_gives_the_range_back(disk: Disk, image: Path) -> None:
    before = image.stat().st_blocks
    result = disk().block(BlkType.DISCARD, out=[ranges((0, 1024, 0), (1024, 512, 0))])
    assert (result.status, result.written) == (BlkStatus.OK, 1)
    assert image.stat().st_blocks < before
    assert image.stat().st_size == DISK
    assert image.read_bytes()[1536 * 512 :] == PATTERN * (SECTORS - 1536)


@pytest.mark.parametrize("flags", [0, 1])
@pytest.mark.parametrize("store", ["image", "ram"])
def test_write_zeroes_reads_back_as_zeros(disk: Disk, flags: int, store: str) -> None:
    inline = disk() if store == "image" else disk(ram=DISK)
    inline.block(BlkType.OUT, 0, [PATTERN * 24])
    result = inline.block(BlkType.WRITE_ZEROES, out=[ranges((8, 8, flags))])
    assert (result.status, result.written) == (BlkStatus.OK, 1)
    data = inline.block(BlkType.IN, 0, in_=[512 * 24]).data
    assert data == PATTERN * 8 + bytes(512 * 8) + PATTERN * 8


def test_payload_spread_over_descriptors_is_gathered(disk: Disk, image: Path) -> None:
    payload = ranges((4, 1, 0))
    assert disk().block(BlkType.WRITE_ZEROES, out=[payload[:5], payload[5:]]).status == 0
    assert image.read_bytes()[4 * 512 : 5 * 512] == bytes(512)


# The write cache.


def test_writeback_leaves_syncing_to_flush(disk: Disk) -> None:
    inline = disk()
    inline.block(BlkType.OUT, 0, [PATTERN])
    assert inline.syncs == 0


def test_writethrough_syncs_each_change(disk: Disk) -> None:
    inline = disk(cache="writethrough")
    inline.block(BlkType.OUT, 0, [PATTERN])
    inline.block(BlkType.DISCARD, out=[ranges((0, 8, 0))])
    inline.block(BlkType.WRITE_ZEROES, out=[ranges((0, 8, 0))])
    assert inline.syncs == 3


def test_driver_switches_the_cache_by_config_space(disk: Disk) -> None:
    inline = disk()
    wce = CONFIG.offsets["wce"]
    inline.device.config_written(wce, b"\0")
    inline.block(BlkType.OUT, 0, [PATTERN])
    assert inline.syncs == 1
    inline.device.config_written(wce, b"\1")
    inline.block(BlkType.OUT, 0, [PATTERN])
    assert inline.syncs == 1
    inline.device.config_written(wce, b"\0")
    inline.device.reset()
    inline.block(BlkType.OUT, 0, [PATTERN])
    assert inline.syncs == 1


def test_driver_without_any_cache_feature_gets_writethrough(disk: Disk) -> None:
    inline = disk()
    inline.device.features_acked(int(BlkFeature.BLK_SIZE))
    inline.block(BlkType.OUT, 0, [PATTERN])
    inline.device.features_acked(int(BlkFeature.FLUSH))
    inline.block(BlkType.OUT, 0, [PATTERN])
    assert inline.syncs == 1


@pytest.mark.parametrize(
    ("offset", "data"),
    [(0, b"\0"), (31, b"\0"), (33, b"\0"), (32, b"\2"), (32, b"\0\0"), (32, b""), (0, bytes(60))],
)
def test_other_config_fields_are_read_only(disk: Disk, offset: int, data: bytes) -> None:
    assert CONFIG.offsets["wce"] == 32
    with pytest.raises(ValueError, match="read-only"):
        disk().device.config_written(offset, data)


# What it says of itself.


def test_config_space_describes_the_disk(image: Path) -> None:
    options = BlkOptions(image=str(image), queues=4, queue_size=128, block_size=1024)
    config = CONFIG.unpack(Blk(options).config_space())
    assert config == {
        "capacity": SECTORS,
        "size_max": blk_description.MAX_SEGMENT_SIZE,
        "seg_max": 126,
        "cylinders": SECTORS // (16 * 63),
        "heads": 16,
        "sectors": 63,
        "blk_size": 1024,
        "physical_block_exp": 2,
        "alignment_offset": 0,
        "min_io_size": 4,
        "opt_io_size": 0,
        "wce": 1,
        "num_queues": 4,
        "max_discard_sectors": blk_description.MAX_DISCARD_SECTORS,
        "max_discard_seg": blk_description.MAX_DISCARD_SEGMENTS,
        "discard_sector_alignment": 2,
        "max_write_zeroes_sectors": blk_description.MAX_WRITE_ZEROES_SECTORS,
        "max_write_zeroes_seg": blk_description.MAX_WRITE_ZEROES_SEGMENTS,
        "write_zeroes_may_unmap": 1,
    }


def test_read_only_disk_offers_ro_and_nothing_that_changes_it(image: Path) -> None:
    writable = Blk(BlkOptions(image=str(image))).offered_features()
    readonly = Blk(BlkOptions(image=str(image), readonly=True)).offered_features()
    changing = BlkFeature.DISCARD | BlkFeature.WRITE_ZEROES
    assert writable & BlkFeature.RO == 0
    assert writable & changing == changing
    assert readonly & (BlkFeature.RO | changing) == BlkFeature.RO


def test_each_queue_may_have_its_own_worker(image: Path) -> None:
    device = Blk(BlkOptions(image=str(image), queues=3))
    assert device.queue_groups() == [(0,), (1,), (2,)]


class FileSizeLimit:
    """Writes past `limit` bytes of any file fail with EFBIG, as on a full file system."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def __enter__(self) -> None:
        self._old = resource.getrlimit(resource.RLIMIT_FSIZE)
        self._handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._limit, self._old[1]))

    def __exit__(self, *exception: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._old)
        signal.signal(signal.SIGXFSZ, self._handler)
