"""A disk in two layers as it is served: several workers, and deaths of all kinds."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices import dying_layers
from tests.devices.test_blk_overlay import content
from vuproc.spec.blk import SECTOR_SIZE, BlkStatus, BlkType
from vuproc.testing.block import Block
from vuproc.testing.plugin import ServeDevice
from vuproc.testing.serve import serve

SIZE = 1 << 20
SECTORS = SIZE // SECTOR_SIZE
BASE = content(0, SIZE)
QUEUES = 2
ROUNDS = 6
REQUESTS = 64


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "base.raw"
    path.write_bytes(BASE)
    yield path
    assert path.read_bytes() == BASE


def layered(base: Path, name: str | None = "top.overlay", **options: object) -> dict[str, object]:
    image = {} if name is None else {"image": str(base.parent / name)}
    return {"type": "blk", "base": str(base), "queues": QUEUES, **image, **options}


def test_workers_that_are_killed_lose_nothing(base: Path) -> None:
    """Both queues write single sectors, so that they meet in the same chunks all the time."""
    order = random.Random(7)
    expected = bytearray(BASE)
    with serve(layered(base)) as served, served.guest(queues=QUEUES) as guest:
        disk = Block(guest)
        for number in range(1, ROUNDS + 1):
            tokens = []
            for at, sector in enumerate(order.sample(range(SECTORS), REQUESTS)):
                data = (b"%08d%08d" % (number, sector)) * (SECTOR_SIZE // 16)
                expected[sector * SECTOR_SIZE : (sector + 1) * SECTOR_SIZE] = data
                tokens.append(disk.submit(BlkType.OUT, sector, [data], queue=at % QUEUES))
                if at == REQUESTS // 2:
                    served.kill_worker(number % QUEUES)
            for token in tokens:
                assert guest.wait(token).data[-1] == bytes([BlkStatus.OK])
            disk.flush(queue=number % QUEUES)
        for queue in range(QUEUES):
            assert disk.read(0, SIZE, queue=queue) == bytes(expected)
    with serve(layered(base)) as served, served.guest(queues=QUEUES) as guest:
        assert Block(guest).read(0, SIZE) == bytes(expected)


def test_workers_that_die_at_every_step_lose_nothing(base: Path) -> None:
    """The device kills itself, a few steps further each time."""
    device = layered(base, type=f"{dying_layers.__file__}:DyingLayers")
    order = random.Random(11)
    expected = bytearray(BASE)
    with serve(device) as served, served.guest(queues=QUEUES) as guest:
        disk = Block(guest)
        for number in range(60):
            sector, count = order.randrange(SECTORS - 9), order.randrange(1, 9)
            data = content(number + 1, count * SECTOR_SIZE)
            disk.write(sector, data, queue=number % QUEUES)
            expected[sector * SECTOR_SIZE : sector * SECTOR_SIZE + len(data)] = data
            if number % 5 == 4:
                disk.flush(queue=number % QUEUES)
        assert disk.read(0, SIZE) == bytes(expected)
        deaths = sum(queue.restarts for queue in served.status().queues)
        assert deaths > 20
    with serve(layered(base)) as served, served.guest(queues=QUEUES) as guest:
        assert Block(guest).read(0, SIZE) == bytes(expected)


@pytest.mark.parametrize("name", ["top.overlay", None])
def test_a_master_that_is_killed_is_followed_by_one_that_has_all_chunks(
    vuproc_device: ServeDevice, base: Path, name: str | None
) -> None:
    served = vuproc_device(layered(base, name), arguments=["--supervised"])
    expected = bytearray(BASE)
    with served.guest(queues=QUEUES) as guest:
        disk = Block(guest)
        for number in range(1, 4):
            data = content(number, 3 * SECTOR_SIZE)
            at = number * 21
            disk.write(at, data, queue=number % QUEUES)
            expected[at * SECTOR_SIZE : at * SECTOR_SIZE + len(data)] = data
            os.kill(served.status().pid, signal.SIGKILL)
            for queue in range(QUEUES):
                if number == 2:
                    served.kill_worker(queue)
                assert disk.read(0, SIZE, queue=queue) == bytes(expected)


def test_what_was_not_flushed_is_kept_by_an_end_in_good_order(base: Path) -> None:
    with serve(layered(base)) as served, served.guest(queues=QUEUES) as guest:
        Block(guest).write(9, b"k" * SECTOR_SIZE)
    with serve(layered(base)) as served, served.guest(queues=QUEUES) as guest:
        assert Block(guest).read(9, SECTOR_SIZE) == b"k" * SECTOR_SIZE


def test_one_base_for_two_and_one_overlay_for_one(base: Path) -> None:
    with serve(layered(base)) as first, serve(layered(base, "other.overlay")) as second:
        with first.guest(queues=QUEUES) as one, second.guest(queues=QUEUES) as two:
            Block(one).write(0, b"1" * SECTOR_SIZE)
            Block(two).write(0, b"2" * SECTOR_SIZE)
            assert Block(one).read(0, SECTOR_SIZE) == b"1" * SECTOR_SIZE
            assert Block(two).read(0, SECTOR_SIZE) == b"2" * SECTOR_SIZE
        with pytest.raises(Exception, match=r"top.overlay: another program has it open"):
            with serve(layered(base)):
                pass  # pragma: no cover


def test_a_base_is_not_to_be_written_meanwhile(base: Path) -> None:
    with serve(layered(base)):
        with pytest.raises(Exception, match=r"base.raw: another program has it open"):
            with serve({"type": "blk", "image": str(base)}):
                pass  # pragma: no cover
