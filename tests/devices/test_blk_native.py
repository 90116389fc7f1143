"""What is the native disk's alone: whose ring it serves, and when the handler in Python does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices.inline import Inline
from vuproc.devices.blk import Blk, BlkOptions
from vuproc.errors import RingError
from vuproc.shm.counters import BLOCK_SIZE, QueueCounters
from vuproc.shm.request import Request
from vuproc.spec.blk import BlkStatus, BlkType

SIZE = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture
def pair(image: Path) -> Iterator[tuple[Inline, Inline]]:
    options = BlkOptions(image=str(image), locking="off")
    made = Inline(Blk(options)), Inline(Blk(options))
    yield made
    for inline in made:
        inline.close()


def test_serves_one_ring_at_a_time(pair: tuple[Inline, Inline]) -> None:
    first, second = pair
    assert first.block(BlkType.IN, in_=[512]).status == BlkStatus.OK
    second.native = first.native
    with pytest.raises(RuntimeError, match="another ring"):
        second.block(BlkType.IN, in_=[512])
    first.ring.stop()
    assert second.ring.in_flight == 0
    second.ring.serve_native(second.native, second._fail, 16)
    assert second.block(BlkType.IN, in_=[512]).status == BlkStatus.OK


def test_ring_keeps_its_native_device(pair: tuple[Inline, Inline]) -> None:
    first, second = pair
    assert first.block(BlkType.IN, in_=[512]).status == BlkStatus.OK
    first.native = second.native
    with pytest.raises(RuntimeError, match="another native device"):
        first.block(BlkType.IN, in_=[512])


def test_broken_ring_lets_go_of_it(pair: tuple[Inline, Inline]) -> None:
    first, second = pair
    first.block(BlkType.IN, in_=[512])
    # The avail index, further on than the ring is long.
    first.memory.user_view(first.queue.avail + 2, 2)[:] = (40_000).to_bytes(2, "little")
    with pytest.raises(RingError):
        first.ring.serve_native(first.native, first._fail, 16)
    second.native = first.native
    assert second.block(BlkType.IN, in_=[512]).status == BlkStatus.OK


def test_budget_ends_a_turn_and_more_is_told(pair: tuple[Inline, Inline]) -> None:
    inline, _ = pair
    tokens = [inline.queue.submit([bytes(16)], [512, 1]) for _ in range(3)]
    assert inline.ring.serve_native(inline.native, inline._fail, 2) is True
    assert inline.queue.wait(tokens[1]).written == 513
    assert inline.ring.serve_native(inline.native, inline._fail, 2) is False
    assert inline.queue.wait(tokens[2]).written == 513


def test_command_ends_a_turn_after_one_request(image: Path) -> None:
    counters = QueueCounters(bytearray(BLOCK_SIZE), 0)
    inline = Inline(Blk(BlkOptions(image=str(image))), counters=counters)
    tokens = [inline.queue.submit([bytes(16)], [512, 1]) for _ in range(9)]
    counters.count_command()
    assert inline.ring.serve_native(inline.native, inline._fail, 16) is True
    assert counters.snapshot().requests == 1
    counters.note_commands()
    assert inline.ring.serve_native(inline.native, inline._fail, 16) is False
    assert [inline.queue.wait(token).written for token in tokens] == [513] * 9
    inline.close()


def test_handler_of_a_subclass_is_what_serves(image: Path) -> None:
    class Sub(Blk):
        def handle(self, request: Request) -> None:
            super().handle(request)

    inline = Inline(Sub(BlkOptions(image=str(image))))
    assert inline.native is None
    inline.close()
