"""The disk whose image is mapped: who has it, and what becomes of memory that is not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices.inline import Inline
from tests.field.test_b4_host import mounted
from vuproc.devices.blk import Blk, BlkOptions
from vuproc.devices.blk_map import MapBlk, is_memory
from vuproc.devices.blk_native import NativeBlk
from vuproc.spec.blk import DISCARD_SEGMENT, REQUEST_HEADER, SECTOR_SIZE, BlkStatus, BlkType
from vuproc.testing import serve
from vuproc.testing.block import Block
from vuproc.testing.memory import Ram, RamRegion

PAGE = 4096
SIZE = 64 * PAGE
CONTENT = os.urandom(SIZE)
IN_MEMORY = Path("/dev/shm")
SECTORS = PAGE // SECTOR_SIZE


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def in_memory() -> Iterator[Path]:
    path = IN_MEMORY / f"vuproc-test-{os.getpid()}.raw"
    path.write_bytes(CONTENT)
    yield path
    path.unlink()


@pytest.fixture
def disk(image: Path) -> Iterator[Inline]:
    inline = Inline(Blk(BlkOptions(image=str(image), engine="map")))
    yield inline
    inline.close()


def kind_of(**options: object) -> type:
    inline = Inline(Blk(BlkOptions(**options)))  # type: ignore[arg-type]
    try:
        return type(inline.native)
    finally:
        inline.close()


def test_what_lies_in_memory_is_mapped_by_itself(image: Path, in_memory: Path) -> None:
    assert kind_of(ram=SIZE) is MapBlk
    assert kind_of(image=str(in_memory)) is MapBlk
    assert kind_of(image=str(in_memory), readonly=True) is MapBlk
    assert kind_of(image=str(in_memory), engine="sync") is NativeBlk
    with image.open("rb") as file:
        expected = MapBlk if is_memory(file.fileno()) else NativeBlk
    assert kind_of(image=str(image)) is expected
    assert kind_of(image=str(image), engine="map") is MapBlk


def test_an_image_that_cannot_be_mapped_is_served_by_calls(
    image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_arguments: object, **_options: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("vuproc.devices.blk.MapBlk", refused)
    assert kind_of(image=str(image), engine="map") is NativeBlk
    assert "the image is not mapped, and requests are calls: Cannot allocate memory" in caplog.text


def test_a_mapped_image_is_not_direct(image: Path) -> None:
    problems = list(BlkOptions(image=str(image), engine="map", direct=True).problems())
    assert ("engine", "a mapped image is not direct") in problems


def test_a_truncated_image_is_an_error_of_the_requests_that_meet_it(
    disk: Inline, image: Path
) -> None:
    os.truncate(image, 8 * PAGE)
    for kind, parts in ((BlkType.IN, {"in_": [2 * PAGE]}), (BlkType.OUT, {"out": [bytes(PAGE)]})):
        lost = disk.block(kind, 8 * SECTORS, **parts)
        assert (lost.status, lost.written) == (BlkStatus.IOERR, 1)
    over = disk.block(BlkType.IN, 7 * SECTORS, in_=[PAGE, PAGE])
    assert (over.status, over.written) == (BlkStatus.IOERR, 1)
    assert disk.block(BlkType.IN, 7 * SECTORS, in_=[PAGE]).data == CONTENT[7 * PAGE : 8 * PAGE]
    assert [error.errno for error in disk.errors if isinstance(error, OSError)] == [5] * 3
    os.truncate(image, SIZE)
    assert disk.block(BlkType.IN, 8 * SECTORS, in_=[PAGE]).data == bytes(PAGE)


def test_b09_guest_memory_that_has_gone_is_an_error_of_its_request(image: Path) -> None:
    ram, doomed = RamRegion(1 << 20, 1 << 20), RamRegion(1 << 30, 16 * PAGE)
    disk = Inline(Blk(BlkOptions(image=str(image), engine="map")), ram=Ram([ram, doomed]))
    try:
        header, status = ram.allocate(16), ram.allocate(1)
        assert header is not None and status is not None
        os.ftruncate(doomed.fd.fileno(), 0)
        for kind in (BlkType.IN, BlkType.OUT):
            header.view[:] = kind.to_bytes(4, "little") + bytes(12)
            status.view[:] = b"\xff"
            token = disk.queue.ring.add(
                [
                    (header.guest_addr, 16, False),
                    (doomed.guest_addr, PAGE, kind is BlkType.IN),
                    (status.guest_addr, 1, True),
                ]
            )
            assert token is not None
            disk.queue.ring.publish()
            disk.ring.serve_native(disk.native, disk._fail, 16)
            assert status.view[0] == BlkStatus.IOERR
    finally:
        disk.close()


def test_b09_what_is_known_of_requests_to_come_is_hints(image: Path) -> None:
    # The disk looks at headers before it is their turn. Of some there is less than a header there,
    # others are no place of the disk, and one is gone for now.
    ram, doomed = RamRegion(1 << 20, 1 << 20), RamRegion(1 << 30, PAGE)
    disk = Inline(Blk(BlkOptions(image=str(image), engine="map")), ram=Ram([ram, doomed]))
    sectors = 0, 2**64 - 1, SIZE // SECTOR_SIZE, 8, (1 << 55) + 8, 0
    cuts = 16, 16, 16, 4, 16, 16
    last = len(sectors) - 1
    try:
        data = ram.allocate(PAGE)
        assert data is not None
        statuses = []
        for number, (sector, cut) in enumerate(zip(sectors, cuts, strict=True)):
            place = (doomed if number in (0, last) else ram).allocate(16)
            status = ram.allocate(1)
            assert place is not None and status is not None
            place.view[:] = REQUEST_HEADER.pack(type=BlkType.IN, sector=sector)
            status.view[:] = b"\xff"
            statuses.append(status)
            parts = [(place.guest_addr, cut, False), (place.guest_addr + cut, 16 - cut, False)]
            parts += [(data.guest_addr, PAGE, True), (status.guest_addr, 1, True)]
            assert disk.queue.ring.add([part for part in parts if part[1]]) is not None
        disk.queue.ring.publish()
        disk.ring.serve_native(disk.native, disk._fail, 1)
        os.ftruncate(doomed.fd.fileno(), 0)
        disk.ring.serve_native(disk.native, disk._fail, last - 1)
        assert [status.view[0] for status in statuses] == [0, 1, 1, 0, 1, 0xFF]
        os.ftruncate(doomed.fd.fileno(), PAGE)
        disk.ring.serve_native(disk.native, disk._fail, 16)
        assert statuses[last].view[0] == BlkStatus.OK
        assert data.view[:] == CONTENT[:PAGE]
    finally:
        disk.close()


@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "tables"])
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_many_that_are_there_at_once(in_memory: Path, packed: bool, indirect: bool) -> None:
    # The disk is told of those to come, in each form that a chain may have.
    with serve({"type": "blk", "image": str(in_memory)}) as served:
        with served.guest(packed=packed) as guest:
            queue = guest.queues[0]
            places = [(37 * number) % 64 for number in range(32)]
            reads = [
                ([REQUEST_HEADER.pack(type=BlkType.IN, sector=place * SECTORS)], [PAGE, 1])
                for place in places
            ]
            tokens = queue.submit_many(reads, indirect=indirect)
            for place, token in zip(places, tokens, strict=True):
                done = queue.wait(token)
                assert done.content == CONTENT[place * PAGE : (place + 1) * PAGE] + b"\0"
            writes = [
                (
                    [
                        REQUEST_HEADER.pack(type=BlkType.OUT, sector=place * SECTORS),
                        bytes([place]) * PAGE,
                    ],
                    [1],
                )
                for place in range(32)
            ]
            for token in queue.submit_many(writes, indirect=indirect):
                assert queue.wait(token).content == b"\0"
    written = b"".join(bytes([place]) * PAGE for place in range(32))
    assert in_memory.read_bytes() == written + CONTENT[len(written) :]


def test_holes_stay_holes(disk: Inline, image: Path) -> None:
    before = image.stat().st_blocks
    half = DISCARD_SEGMENT.pack(sector=0, num_sectors=32 * SECTORS, flags=0)
    assert disk.block(BlkType.DISCARD, out=[half]).status == BlkStatus.OK
    assert image.stat().st_blocks <= before // 2 + 8
    assert disk.block(BlkType.IN, 0, in_=[PAGE]).data == bytes(PAGE)
    zeroed = DISCARD_SEGMENT.pack(sector=40 * SECTORS, num_sectors=3, flags=0)
    assert disk.block(BlkType.WRITE_ZEROES, out=[zeroed]).status == BlkStatus.OK
    read = disk.block(BlkType.IN, 40 * SECTORS, in_=[PAGE]).data
    assert read == bytes(3 * SECTOR_SIZE) + CONTENT[40 * PAGE + 3 * SECTOR_SIZE : 41 * PAGE]


FULL = """
import os, sys
from tests.devices.inline import Inline
from vuproc.devices.blk import Blk, BlkOptions
from vuproc.spec.blk import BlkType
path = sys.argv[1] + "/disk.raw"
with open(path, "wb") as file:
    os.truncate(path, 1 << 20)
disk = Inline(Blk(BlkOptions(image=path)))
statuses = [disk.block(BlkType.OUT, 8 * page, [b"x" * 4096]).status for page in range(256)]
assert 0 < statuses.count(1) < 256, statuses
assert disk.block(BlkType.IN, 0, in_=[4096]).data == b"x" * 4096
room = statuses.index(1)
# Nothing is there yet, and nothing needs to be for that to be read.
assert disk.block(BlkType.IN, room * 8, in_=[4096]).data == bytes(4096)
assert disk.block(BlkType.OUT, 0, [b"y" * 4096]).status == 0
print("room for", room)
"""


def test_f11_a_full_tmpfs_is_an_error_of_the_requests_that_find_no_room(tmp_path: Path) -> None:
    before = mounted(f"mount -t tmpfs -o size=512k none {tmp_path}")
    done = subprocess.run(
        [*before, sys.executable, "-c", FULL, tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("room for")


def test_a_truncated_image_costs_no_worker(in_memory: Path) -> None:
    with serve({"type": "blk", "image": str(in_memory)}) as served, served.guest() as guest:
        disk, pid = Block(guest), served.status().queues[0].pid
        os.truncate(in_memory, PAGE)
        with pytest.raises(OSError, match="status 1"):
            disk.read(8 * SECTORS, PAGE)
        assert disk.read(0, PAGE) == CONTENT[:PAGE]
        assert served.status().queues[0].pid == pid
        served.wait_for_line("Input/output error")


def test_a_sent_sigbus_ends_a_worker_as_ever(in_memory: Path) -> None:
    with serve({"type": "blk", "image": str(in_memory)}) as served, served.guest() as guest:
        pid = served.wait_worker()
        os.kill(pid, signal.SIGBUS)
        served.wait_worker(other_than=pid)
        assert Block(guest).read(0, PAGE) == CONTENT[:PAGE]


def test_a_larger_image_is_mapped_as_a_whole_after_a_reload(in_memory: Path) -> None:
    with serve({"type": "blk", "image": str(in_memory)}) as served:
        os.truncate(in_memory, 2 * SIZE)
        served.reload()
        served.wait_for_line("reload: every worker is new")
        with served.guest() as guest:
            disk = Block(guest)
            assert disk.config()["capacity"] == 2 * SIZE // SECTOR_SIZE
            disk.write(SIZE // SECTOR_SIZE, CONTENT[:PAGE])
            assert disk.read(SIZE // SECTOR_SIZE, PAGE) == CONTENT[:PAGE]
    assert in_memory.read_bytes()[SIZE : SIZE + PAGE] == CONTENT[:PAGE]
