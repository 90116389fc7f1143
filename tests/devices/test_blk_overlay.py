"""A disk in two layers on a real ring: what is read from where, and what is on the disk when."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.inline import Inline
from tests.devices.test_blk import ranges
from vuproc.devices import blk_overlay_table
from vuproc.devices.blk import Blk, BlkOptions
from vuproc.devices.blk_overlay import Overlay
from vuproc.devices.blk_overlay_file import HEADER, Layout
from vuproc.devices.blk_overlay_table import CHUNK, GROUP, ChunkTable, new_table
from vuproc.errors import FileRefused
from vuproc.spec.blk import DISCARD_F_UNMAP, SECTOR_SIZE, BlkStatus, BlkType

CHUNKS = 40
SIZE = CHUNKS * CHUNK + 3 * SECTOR_SIZE  # the last chunk is a part of one
SECTORS = SIZE // SECTOR_SIZE
BOUND_S = 30.0

Make = Callable[..., Inline]


def content(seed: int, length: int) -> bytes:
    """Sectors that differ from each other and from those of another seed."""
    return b"".join(
        (b"%08d%08d" % (seed, sector)) * (SECTOR_SIZE // 16)
        for sector in range(length // SECTOR_SIZE)
    )


BASE = content(0, SIZE)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.raw"
    path.write_bytes(BASE)
    return path


@contextmanager
def makes(base: Path) -> Iterator[Make]:
    made: list[Inline] = []

    def make(**options: Any) -> Inline:
        options.setdefault("image", str(base.parent / "top.overlay"))
        made.append(Inline(Blk(BlkOptions(base=str(base), **options))))
        return made[-1]

    try:
        yield make
    finally:
        for inline in made:
            with suppress(ValueError):
                inline.close()


@pytest.fixture
def make(base: Path) -> Iterator[Make]:
    with makes(base) as make:
        yield make


def whole(disk: Inline) -> bytes:
    """The disk as the driver sees it, in requests of an odd size."""
    data = b""
    while len(data) < SIZE:
        length = min(7 * SECTOR_SIZE * 5, SIZE - len(data))
        result = disk.block(BlkType.IN, len(data) // SECTOR_SIZE, in_=[length])
        assert (result.status, result.written) == (BlkStatus.OK, length + 1)
        data += result.data
    return data


def overlay(disk: Inline) -> Overlay:
    assert isinstance(disk.device._store, Overlay)
    return disk.device._store


def chunks(disk: Inline) -> int:
    """How many chunks the overlay has."""
    table, chunk, count = overlay(disk)._table, 0, 0
    for present, end in table.runs(0, table._chunks - 1):
        count += (end - chunk) * present
        chunk = end
    return count


# Which layer.


def test_a_new_overlay_shows_the_base(make: Make) -> None:
    assert whole(make()) == BASE


@pytest.mark.parametrize("length", [1, 3, 8, 13, 64])
@pytest.mark.parametrize("sector", [0, 5, 8, 17, SECTORS - 64])
def test_what_is_written_is_read_and_all_around_it_is_the_bases(
    make: Make, base: Path, sector: int, length: int
) -> None:
    disk = make()
    data = content(1, length * SECTOR_SIZE)
    result = disk.block(BlkType.OUT, sector, [data])
    assert (result.status, result.written) == (BlkStatus.OK, 1)
    at = sector * SECTOR_SIZE
    assert whole(disk) == BASE[:at] + data + BASE[at + len(data) :]
    assert base.read_bytes() == BASE


def test_a_request_may_be_of_many_runs_of_both_layers(make: Make) -> None:
    disk = make()
    expected = bytearray(BASE)
    for chunk in (1, 2, 5, 9, 10, 11, CHUNKS):
        data = content(chunk, SECTOR_SIZE)
        assert disk.block(BlkType.OUT, chunk * 8, [data]).status == BlkStatus.OK
        expected[chunk * CHUNK : chunk * CHUNK + SECTOR_SIZE] = data
    result = disk.block(BlkType.IN, 0, in_=[4096, 512, SIZE - 4608])
    assert (result.data, result.written) == (bytes(expected), SIZE + 1)


@pytest.mark.parametrize("flags", [0, DISCARD_F_UNMAP])
def test_zeros_cover_the_base(make: Make, flags: int) -> None:
    disk = make()
    disk.block(BlkType.OUT, 16, [content(2, CHUNK)])
    zeroed = [ranges((3, 20, flags), (SECTORS - 2, 2, flags))]
    assert disk.block(BlkType.WRITE_ZEROES, 0, zeroed).status == BlkStatus.OK
    expected = bytearray(BASE)
    expected[16 * SECTOR_SIZE : 24 * SECTOR_SIZE] = content(2, CHUNK)
    expected[3 * SECTOR_SIZE : 23 * SECTOR_SIZE] = bytes(20 * SECTOR_SIZE)
    expected[-2 * SECTOR_SIZE :] = bytes(2 * SECTOR_SIZE)
    assert whole(disk) == bytes(expected)


def test_a_discard_frees_what_the_overlay_has_and_nothing_of_the_base(make: Make) -> None:
    disk = make()
    disk.block(BlkType.OUT, 8, [content(3, CHUNK)])
    assert disk.block(BlkType.DISCARD, 0, [ranges((0, 24, 0))]).status == BlkStatus.OK
    expected = BASE[:CHUNK] + bytes(CHUNK) + BASE[2 * CHUNK :]
    assert whole(disk) == expected
    assert chunks(disk) == 1


def test_nothing_to_write_is_fine(make: Make) -> None:
    disk = make()
    assert disk.block(BlkType.OUT, 5).status == BlkStatus.OK
    assert disk.block(BlkType.IN, 5).status == BlkStatus.OK
    assert chunks(disk) == 0


def test_outside_the_disk_is_refused(make: Make) -> None:
    disk = make()
    assert disk.block(BlkType.OUT, SECTORS, [bytes(512)]).status == BlkStatus.IOERR
    assert disk.block(BlkType.IN, SECTORS - 1, in_=[1024]).status == BlkStatus.IOERR


# Kept and forgotten.


def test_the_overlay_is_kept_and_the_next_start_finds_it(make: Make, base: Path) -> None:
    disk = make()
    disk.block(BlkType.OUT, 3, [content(4, 3 * CHUNK)])
    seen = whole(disk)
    disk.close()
    assert whole(make()) == seen
    assert base.read_bytes() == BASE


def test_without_an_image_what_is_written_is_forgotten(make: Make, base: Path) -> None:
    disk = make(image=None)
    disk.block(BlkType.OUT, 3, [content(4, CHUNK)])
    assert whole(disk) != BASE
    assert disk.block(BlkType.FLUSH).status == BlkStatus.OK
    disk.close()
    assert whole(make(image=None)) == BASE
    assert [path.name for path in base.parent.iterdir()] == ["base.raw"]


def test_an_overlay_takes_the_room_of_what_was_written(make: Make, base: Path) -> None:
    make().block(BlkType.OUT, 80, [content(5, CHUNK)])
    assert (base.parent / "top.overlay").stat().st_blocks * 512 <= 4 * CHUNK


def test_many_groups_of_chunks(tmp_path: Path) -> None:
    """A larger disk, whose bits are more than one sector."""
    large = tmp_path / "large.raw"
    with large.open("wb") as file:
        file.truncate(3 * GROUP * CHUNK + 5 * CHUNK)
    places = [0, GROUP - 1, GROUP, 2 * GROUP + 7, 3 * GROUP + 4]
    for start in range(2):
        with makes(large) as make:
            disk = make()
            for chunk in places:
                if start == 0:
                    disk.block(BlkType.OUT, chunk * 8, [content(chunk, CHUNK)])
                found = disk.block(BlkType.IN, chunk * 8, in_=[CHUNK]).data
                assert found == content(chunk, CHUNK)
            assert chunks(disk) == len(places)


# On stable storage.


def test_a_chunk_is_in_the_file_once_the_driver_has_flushed(make: Make, base: Path) -> None:
    disk = make()
    disk.block(BlkType.OUT, 8, [content(6, CHUNK)])
    bits = Layout(SIZE).bits_at(0)
    file = base.parent / "top.overlay"
    assert file.read_bytes()[bits] == 0
    syncs = disk.syncs
    assert disk.block(BlkType.FLUSH).status == BlkStatus.OK
    assert file.read_bytes()[bits] == 0b10
    # The content first, then the bit; without news of chunks there is one thing to sync.
    assert disk.syncs == syncs + 2
    disk.block(BlkType.OUT, 9, [content(7, SECTOR_SIZE)])
    disk.block(BlkType.FLUSH)
    assert disk.syncs == syncs + 3


def test_writethrough_knows_each_write_of(make: Make, base: Path) -> None:
    disk = make(cache="writethrough")
    disk.block(BlkType.OUT, 8, [content(6, CHUNK)])
    assert (base.parent / "top.overlay").read_bytes()[Layout(SIZE).bits_at(0)] == 0b10


def test_a_flush_that_fails_is_made_up_for_by_the_next(
    make: Make, monkeypatch: pytest.MonkeyPatch, base: Path
) -> None:
    disk = make()
    disk.block(BlkType.OUT, 8, [content(6, CHUNK)])

    def full(file: int, data: bytes, at: int) -> None:
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patched:
        patched.setattr("vuproc.devices.blk_overlay._write_all", full)
        assert disk.block(BlkType.FLUSH).status == BlkStatus.IOERR
    assert disk.block(BlkType.FLUSH).status == BlkStatus.OK
    assert (base.parent / "top.overlay").read_bytes()[Layout(SIZE).bits_at(0)] == 0b10


# Deaths and neighbours.


def test_a_worker_that_dies_before_it_has_a_chunk_has_changed_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = make()

    def dies(self: ChunkTable, first: int, last: int) -> None:
        raise OSError(errno.EIO, "dead")

    with monkeypatch.context() as patched:
        patched.setattr(ChunkTable, "add", dies)
        assert disk.block(BlkType.OUT, 5, [content(8, CHUNK)]).status == BlkStatus.IOERR
    assert whole(disk) == BASE
    # The same request once more, which finds what the first has left in the file.
    assert disk.block(BlkType.OUT, 5, [content(8, SECTOR_SIZE)]).status == BlkStatus.OK
    assert whole(disk) == BASE[: 5 * 512] + content(8, SECTOR_SIZE) + BASE[6 * 512 :]


def test_two_workers_that_write_parts_of_one_chunk_take_turns(make: Make) -> None:
    first = make()
    second = Blk(first.device.options)
    second.shared = first.device.shared
    second.setup(1)
    store = second._store
    assert isinstance(store, Overlay)
    done = threading.Event()
    zeros = [(3 * CHUNK + 512, 512), (3 * CHUNK + 2048, 512)]

    def other() -> None:
        store.zero(*zeros[1], unmap=False)
        done.set()

    with overlay(first)._table.adding(3, 3):
        thread = threading.Thread(target=other)
        thread.start()
        assert not done.wait(0.2)
        # What the lock is for: its copy of the base must not cover what we write meanwhile.
        assert whole(first) == BASE
    assert done.wait(BOUND_S)
    thread.join(BOUND_S)
    overlay(first).zero(*zeros[0], unmap=False)
    expected = bytearray(BASE)
    for offset, length in zeros:
        expected[offset : offset + length] = bytes(length)
    assert whole(first) == bytes(expected)
    second.teardown()


def test_a_dead_workers_lock_is_nobodys(tmp_path: Path) -> None:
    memory = new_table(SIZE, iter(()))
    table = ChunkTable(memory, SIZE)
    child = os.fork()
    if child == 0:  # pragma: no cover
        theirs = ChunkTable(memory, SIZE)
        theirs.adding(0, CHUNKS).__enter__()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    taken = threading.Event()

    def take() -> None:
        with table.adding(0, CHUNKS):
            taken.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    assert taken.wait(BOUND_S)
    thread.join(BOUND_S)
    table.close()
    memory.close()


def test_chunks_that_are_added_during_a_flush_are_of_the_next(tmp_path: Path) -> None:
    memory = new_table(SIZE, iter(()))
    with memory:
        table = ChunkTable(memory, SIZE)
        table.add(1, 2)
        with table.flushing() as groups:
            table.add(4, 4)
        assert [(group, bits[0]) for group, bits in groups] == [(0, 0b110)]
        with table.flushing() as groups:
            pass
        assert [(group, bits[0]) for group, bits in groups] == [(0, 0b10110)]
        with table.flushing() as groups:
            assert groups == []
        table.close()


def test_a_flush_that_died_is_done_by_the_next(tmp_path: Path) -> None:
    memory = new_table(SIZE, iter(()))
    with memory:
        table = ChunkTable(memory, SIZE)
        table.add(1, 1)
        with pytest.raises(RuntimeError), table.flushing():
            raise RuntimeError("dies")
        with table.flushing() as groups:
            assert [group for group, _ in groups] == [0]
        table.close()


# Whatever is done.

SECTOR = st.integers(0, SECTORS - 1)
STEP = st.one_of(
    st.tuples(st.sampled_from(["write", "zero", "discard"]), SECTOR, st.integers(1, 30)),
    st.tuples(st.sampled_from(["flush", "reopen", "power"]), st.just(0), st.just(0)),
)


@given(st.lists(STEP, max_size=30))
@settings(deadline=None, max_examples=60)
def test_it_is_a_disk(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    """Against a plain one. After a loss of power each sector is as it was flushed last, or as it
    was written or discarded at some time since then.
    """
    base = tmp_path_factory.mktemp("layers") / "base.raw"
    base.write_bytes(BASE)
    plain = [{sector_of(BASE, n)} for n in range(SECTORS)]
    stable = [set(one) for one in plain]
    with makes(base) as make:
        disk = make()
        for number, (kind, sector, count) in enumerate(steps, 1):
            places = range(sector, min(sector + count, SECTORS))
            length = len(places) * SECTOR_SIZE
            if kind == "write":
                data = content(number, length)
                assert disk.block(BlkType.OUT, sector, [data]).status == BlkStatus.OK
                for at, place in enumerate(places):
                    plain[place] = {sector_of(data, at)}
                    stable[place] |= plain[place]
            elif kind in ("zero", "discard"):
                request = BlkType.WRITE_ZEROES if kind == "zero" else BlkType.DISCARD
                zeroed = [ranges((sector, len(places), 0))]
                assert disk.block(request, 0, zeroed).status == BlkStatus.OK
                for place in places:
                    empty = {bytes(SECTOR_SIZE)}
                    plain[place] = empty if kind == "zero" else plain[place] | empty
                    stable[place] |= plain[place]
            elif kind == "flush":
                assert disk.block(BlkType.FLUSH).status == BlkStatus.OK
                stable = [set(one) for one in plain]
            else:
                if kind == "power":
                    overlay(disk)._layout = None  # so that its end writes nothing
                    plain = [set(one) for one in stable]
                disk.close()
                disk = make()
                stable = [set(one) for one in plain]
            found = whole(disk)
            for place in range(SECTORS):
                one = sector_of(found, place)
                assert one in plain[place], f"sector {place} after {kind}"
                plain[place] = {one}


def sector_of(data: bytes, number: int) -> bytes:
    return data[number * SECTOR_SIZE : (number + 1) * SECTOR_SIZE]


# What is wrong.


def problems(base: Path, **options: Any) -> list[tuple[str, str]]:
    options.setdefault("image", str(base.parent / "top.overlay"))
    return list(BlkOptions(base=str(base), **options).problems())


def test_two_layers_that_can_be_had_are_right(base: Path, make: Make) -> None:
    assert problems(base) == []
    make()
    assert problems(base) == []


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"ram": 1 << 20, "image": None}, "ram"),
        ({"readonly": True}, "readonly"),
        ({"direct": True}, "direct"),
        ({"engine": "io_uring"}, "engine"),
        ({"engine": "sync"}, "engine"),
        ({"image": "/no such folder/top.overlay"}, "image"),
        ({"image": "/dev/zero"}, "image"),
        ({"image": "/"}, "image"),
        ({"block_size": 4096}, "base"),
    ],
)
def test_what_does_not_fit_a_base_is_refused(
    base: Path, options: dict[str, Any], option: str
) -> None:
    assert option in {field for field, _ in problems(base, **options)}


def test_a_missing_base_is_said_of_the_base(tmp_path: Path) -> None:
    (field, message), *more = problems(tmp_path / "none.raw")
    assert (field, more) == ("base", [])
    assert "none.raw: no such file" in message


def _raw(file: Path) -> None:
    file.write_bytes(b"x" * SIZE)


def _another_size(file: Path) -> None:
    edited(file, lambda fields: (*fields[:3], SIZE + 512, fields[4]))


def _another_version(file: Path) -> None:
    edited(file, lambda fields: (fields[0], 9, *fields[2:]))


def _cut(file: Path) -> None:
    os.truncate(file, Layout(SIZE).content_at + 512)


def edited(file: Path, change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> None:
    with file.open("r+b") as opened:
        fields = HEADER.unpack(opened.read(HEADER.size))
        opened.seek(0)
        opened.write(HEADER.pack(*change(fields)))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_raw, "is no overlay"),
        (_another_size, f"is an overlay of a base of {SIZE + 512} bytes, and this one has {SIZE}"),
        (_another_version, "is an overlay of version 9, not 1"),
        (_cut, "has been cut short"),
    ],
)
def test_a_file_that_is_no_overlay_of_this_base_is_refused_and_left_alone(
    base: Path, make: Make, damage: Callable[[Path], None], reason: str
) -> None:
    make().close()
    file = base.parent / "top.overlay"
    damage(file)
    before = file.read_bytes()
    assert [field for field, text in problems(base) if reason in text] == ["image"]
    with pytest.raises(FileRefused, match=reason):
        Blk(BlkOptions(base=str(base), image=str(file))).shared_files()
    assert file.read_bytes() == before


def test_a_base_that_was_changed_is_warned_of(
    base: Path, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    make().close()
    assert "was changed" not in caplog.text
    os.utime(base, ns=(1, 1))
    make()
    assert "the base was changed after the overlay" in caplog.text


def test_a_base_that_became_shorter_is_an_error_of_the_request(make: Make, base: Path) -> None:
    disk = make()
    os.truncate(base, 2 * CHUNK)
    assert disk.block(BlkType.IN, 24, in_=[512]).status == BlkStatus.IOERR
    assert disk.block(BlkType.OUT, 25, [bytes(512)]).status == BlkStatus.IOERR
    assert disk.block(BlkType.OUT, 24, [bytes(4096)]).status == BlkStatus.OK
    assert disk.block(BlkType.IN, 0, in_=[2 * CHUNK]).data == BASE[: 2 * CHUNK]


def test_a_full_overlay_is_an_error_of_the_request(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = make()

    def full(file: int, data: Any, at: int) -> int:
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        assert disk.block(BlkType.OUT, 3, [bytes(512)]).status == BlkStatus.IOERR
    assert whole(disk) == BASE


def test_the_table_of_a_large_disk_is_sparse() -> None:
    size = 1 << 40
    with new_table(size, iter(())) as memory:
        table = ChunkTable(memory, size)
        table.add(0, 0)
        table.add(blk_overlay_table.chunks_of(size) - 1, blk_overlay_table.chunks_of(size) - 1)
        with table.flushing() as groups:
            assert [group for group, _ in groups] == [0, blk_overlay_table.groups_of(size) - 1]
            assert groups[-1][1][-1] == 0b1000_0000
        assert os.fstat(memory.fileno()).st_blocks * 512 < 1 << 20
        table.close()
