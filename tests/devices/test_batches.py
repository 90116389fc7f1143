"""Devices that are served by the batch: the examples, deaths in the middle, and real drivers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.devices.gathered import Deadly, Mixed
from vuproc.spec.blk import REQUEST_HEADER, SECTOR_SIZE, BlkStatus, BlkType
from vuproc.testing import Guest, Job, Served, serve
from vuproc.testing.block import Block, outcome

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZE = 1 << 20
LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])

pytestmark = pytest.mark.timeout(90)


@contextmanager
def disk(folder: Path) -> Iterator[tuple[Served, Path]]:
    image = folder / "disk.raw"
    image.write_bytes(os.urandom(SIZE))
    with serve({"type": f"{EXAMPLES}/batch_disk.py:BatchDisk", "image": str(image)}) as served:
        yield served, image


@LAYOUTS
def test_the_disk_of_the_examples(tmp_path: Path, packed: bool) -> None:
    with disk(tmp_path) as (served, image), served.guest(packed=packed) as guest:
        block, content = Block(guest), image.read_bytes()
        tokens = [
            block.submit(BlkType.IN, 8 * place, in_=[4096])
            if place % 2
            else block.submit(BlkType.OUT, 8 * place, [bytes([place]) * 4096])
            for place in range(16)
        ]
        for place, token in enumerate(tokens):
            done = guest.wait(token)
            assert done.data[-1] == bytes([BlkStatus.OK])
            if place % 2:
                assert done.data[0] == content[4096 * place :][:4096]
        for place in range(0, 16, 2):
            assert image.read_bytes()[4096 * place :][:4096] == bytes([place]) * 4096
        block.flush()
        refused = [
            (BlkType.IN, SIZE // SECTOR_SIZE, BlkStatus.IOERR),
            (BlkType.IN, 2**64 - 1, BlkStatus.IOERR),
            (BlkType.GET_ID, 0, BlkStatus.UNSUPP),
        ]
        for kind, sector, status in refused:
            token = block.submit(kind, sector, in_=[512])
            assert outcome(guest.wait(token)).status == status
        # Without a header, and without a place for the status: given back.
        assert guest.do(out=[REQUEST_HEADER.pack(type=BlkType.OUT)]).written == 0
        assert guest.do(out=[b"short"], in_=[1]).written == 0
        assert not [line for line in served.lines if "ERROR" in line], served.lines


@LAYOUTS
def test_the_disk_of_the_examples_over_deaths_under_load(tmp_path: Path, packed: bool) -> None:
    with disk(tmp_path) as (served, _), served.guest(memory=16 << 20, packed=packed) as guest:
        for round_ in range(3):
            for percent in (0, 100):
                job = Job(count=4000, span=SIZE, read_percent=percent, sequential=True, pattern=5)
                pid = served.wait_worker()
                stats = guest.load(0, job)
                assert (stats.completed, stats.failed, stats.corrupt) == (4000, 0, 0), round_
                served.kill_worker()
                served.wait_worker(other_than=pid)


def test_the_sink_of_the_examples(tmp_path: Path) -> None:
    with serve({"type": f"{EXAMPLES}/packet_sink.py:Sink"}) as served:
        with served.guest(queues=2) as guest:
            guest.keep_filled(0, count=4, size=2048)
            tokens = [guest.submit(1, [bytes(12), bytes(60 + n)]) for n in range(8)]
            for token in tokens:
                assert guest.wait(token).written == 0
        served.wait_for_line(f"8 frames, {8 * 60 + sum(range(8))} octets")


def together(guest: Guest, says: list[str]) -> list[bytes]:
    """What becomes of requests that are there at once."""
    queue = guest.queues[0]
    tokens = queue.submit_many([([text.encode()], [16]) for text in says])
    return [queue.wait(token, 60.0).content for token in tokens]


def test_what_is_deferred_and_what_raises() -> None:
    with serve(Mixed) as served, served.guest() as guest:
        assert together(guest, ["finish", "defer", "raise", "leave"]) == [
            b"finish",
            b"defer",
            b"failed",
            b"failed",
        ]
        served.wait_for_line("Mixed.handle_batch")
        assert together(guest, ["leave", "defer"]) == [b"leave", b"defer"]
        assert served.status().queues[0].restarts == 0


def test_one_that_kills_its_worker_is_failed_and_the_others_are_served() -> None:
    with serve(Deadly) as served, served.guest() as guest:
        assert together(guest, ["one", "two", "die", "three"]) == [
            b"one",
            b"two",
            b"failed",
            b"three",
        ]
        served.wait_for_line("3 workers died over it")
        assert together(guest, ["on"]) == [b"on"]
