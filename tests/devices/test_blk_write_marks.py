"""Marks of what was changed, and what the disk was like when a run began."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vuproc.devices.blk_overlay_file import Layout, initialise
from vuproc.devices.blk_overlay_table import CHUNK, ChunkTable, new_table
from vuproc.devices.blk_write_area import Area, distrust, prepare, read_header
from vuproc.devices.blk_write_marks import Marks, new_saved
from vuproc.fd import Fd

PIECE = 64 << 10
EACH = PIECE // CHUNK
CHUNKS = 3 * EACH + 5
SIZE = CHUNKS * CHUNK - 512
AREA = Area(SIZE, PIECE)
PIECES = 4
BOUND_S = 30.0


class Disk:
    """An overlay's file and tables, with what a worker does to them; `now` is what it should have:
    a byte a chunk, or None.
    """

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.file = stack.enter_context(Fd(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)))
        initialise(self.file, SIZE, 1)
        self.table_memory = stack.enter_context(new_table(SIZE, iter(())))
        self.saved = stack.enter_context(new_saved(SIZE))
        assert prepare(self.file, AREA, self.table_memory) == 0
        self._stack = stack
        self.now: list[int | None] = [None] * CHUNKS
        self.changed: set[int] = set()
        self.workers = [self.opened() for _ in range(2)]

    def opened(self) -> tuple[ChunkTable, Marks]:
        table = ChunkTable(self.table_memory, SIZE)
        self._stack.callback(table.close)
        marks = Marks(self.file, self.saved, table, AREA)
        self._stack.callback(marks.close)
        return table, marks

    def write(self, worker: int, first: int, count: int, value: int) -> None:
        table, marks = self.workers[worker]
        offset = first * CHUNK
        length = min(count * CHUNK, SIZE - offset)
        with marks.changing(offset, length):
            os.pwrite(self.file.fileno(), bytes([value]) * length, Layout(SIZE).content_at + offset)
            last = first + count - 1
            with table.adding(first, last):
                table.add(first, last)
        self.now[first : first + count] = [value] * count
        self.changed |= {chunk // EACH for chunk in range(first, first + count)}


@contextmanager
def a_disk(path: Path) -> Iterator[Disk]:
    with ExitStack() as stack:
        yield Disk(path, stack)


def check(helper: Marks, then: list[int | None], piece: int) -> None:
    """A piece as it was."""
    data, missing = helper.piece(piece)
    start = piece * EACH
    absent = {chunk for at, to in missing for chunk in range(at // CHUNK, -(-to // CHUNK))}
    for place in range(min(EACH, CHUNKS - start)):
        was = then[start + place]
        assert (place in absent) == (was is None)
        if was is not None:
            part = data[place * CHUNK : (place + 1) * CHUNK]
            assert part == bytes([was]) * len(part)


_WRITE = st.tuples(
    st.just("write"),
    st.integers(0, 1),
    st.integers(0, CHUNKS - 1),
    st.integers(1, 20),
    st.integers(1, 255),
)
_STEPS = st.lists(
    _WRITE
    | st.sampled_from([("begin",), ("finish",), ("die",)])
    | st.tuples(st.just("piece"), st.integers(0, PIECES - 1)),
    max_size=40,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(_STEPS)
def test_a_run_has_the_disk_of_its_moment(tmp_path: Path, steps: list[tuple[object, ...]]) -> None:
    with a_disk(tmp_path / "overlay") as disk:
        _, helper = disk.opened()
        then: list[int | None] | None = None
        wanted: set[int] = set()
        for step in steps:
            match step:
                case ("write", int(worker), int(first), int(count), int(value)):
                    disk.write(worker, first, min(count, CHUNKS - first), value)
                case ("begin",) if then is None:
                    assert set(helper.changed()) == disk.changed
                    wanted = set(helper.begin())
                    assert wanted == disk.changed
                    then, disk.changed = list(disk.now), set()
                case ("piece", int(piece)) if then is not None and piece in wanted:
                    check(helper, then, piece)
                case ("finish",) if then is not None:
                    for piece in wanted:
                        check(helper, then, piece)
                    helper.finish()
                    then = None
                case ("die",):
                    _, helper = disk.opened()
                    helper.give_up()
                    if then is not None:
                        disk.changed |= wanted
                        then = None
        if then is None:
            assert set(helper.changed()) == disk.changed


def test_a_change_that_is_under_way_is_waited_for_and_one_that_comes_is_not(
    tmp_path: Path,
) -> None:
    with a_disk(tmp_path / "overlay") as disk:
        _, helper = disk.opened()
        disk.write(0, 0, 1, 1)
        begun: list[list[int]] = []
        thread = threading.Thread(target=lambda: begun.append(helper.begin()))
        with disk.workers[0][1].changing(2 * PIECE, CHUNK):
            thread.start()
            # It has begun once another's change has to be saved.
            while not disk.workers[1][1].unsaved(0, CHUNK):
                assert thread.is_alive()
            disk.write(1, 0, 1, 2)
            assert thread.is_alive() and not begun
        thread.join(BOUND_S)
        # The piece of the change that had begun before is of this run, and the other's is not.
        assert begun == [[0, 2]]
        data, _ = helper.piece(0)
        assert data[:CHUNK] == b"\1" * CHUNK
        assert helper.changed() == [0]


@pytest.mark.parametrize("lost", [False, True])
def test_marks_are_relied_on_for_one_life_of_the_machine(tmp_path: Path, lost: bool) -> None:
    with a_disk(tmp_path / "overlay") as disk:
        disk.write(0, EACH, 1, 7)
        _, helper = disk.opened()
        helper.begin()
        helper.finish()
        assert helper.changed() == []
        if lost:
            distrust(disk.file)
        assert prepare(disk.file, AREA, disk.table_memory) == int(lost)
        header = read_header(disk.file)
        assert header is not None and not header.synced
        _, helper = disk.opened()
        assert helper.changed() == ([1] if lost else [])
