"""A disk whose base is an object: what is asked of its server, and when."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.devices.test_blk import ranges
from tests.devices.test_blk_overlay import content
from tests.devices.web_server import PATH, Web, serving
from vuproc.devices.blk import BlkOptions
from vuproc.devices.blk_fetching import FETCHERS, WINDOW
from vuproc.spec.blk import SECTOR_SIZE, BlkStatus, BlkType
from vuproc.testing.block import Block
from vuproc.testing.plugin import ServeDevice
from vuproc.testing.serve import serve

WINDOWS = 12
SIZE = WINDOWS * WINDOW + 5 * SECTOR_SIZE
SECTORS = SIZE // SECTOR_SIZE
A_WINDOW = WINDOW // SECTOR_SIZE
"""Sectors of one."""
OBJECT = content(0, SIZE)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    # Whatever proxy this machine goes out by, it is not asked for what is here.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(OBJECT) as web:
        yield web


def disk_of(web: Web, **options: Any) -> dict[str, Any]:
    return {"type": "blk", "url": web.url, **options}


def problems(url: str, **options: Any) -> list[tuple[str, str]]:
    return list(BlkOptions(url=url, **options).problems())


def whole(disk: Block, queue: int = 0) -> bytes:
    parts = [disk.read(at * A_WINDOW, WINDOW, queue=queue) for at in range(WINDOWS)]
    return b"".join(parts) + disk.read(WINDOWS * A_WINDOW, SIZE - WINDOWS * WINDOW, queue=queue)


def test_what_is_read_is_fetched_once(vuproc_device: ServeDevice, web: Web) -> None:
    with vuproc_device(disk_of(web)).guest() as guest:
        disk = Block(guest)
        assert disk.config()["capacity"] == SECTORS
        assert disk.read(3, 4096) == OBJECT[3 * 512 : 3 * 512 + 4096]
        assert web.asked == [(0, WINDOW)]
        assert disk.read(100, 4096) == OBJECT[51200 : 51200 + 4096]
        assert web.asked == [(0, WINDOW)]
        for _ in range(2):
            assert whole(disk) == OBJECT
    assert sorted(web.asked) == [(at, min(at + WINDOW, SIZE)) for at in range(0, SIZE, WINDOW)]


def test_what_is_written_covers_the_object(vuproc_device: ServeDevice, web: Web) -> None:
    expected = bytearray(OBJECT)
    with vuproc_device(disk_of(web)).guest() as guest:
        disk = Block(guest)
        for number, (sector, count) in enumerate([(5, 1), (A_WINDOW - 3, 9), (SECTORS - 2, 2)]):
            data = content(number + 1, count * SECTOR_SIZE)
            disk.write(sector, data)
            expected[sector * SECTOR_SIZE : sector * SECTOR_SIZE + len(data)] = data
        zeroed = [ranges((3 * A_WINDOW + 1, 17, 0))]
        assert disk.request(BlkType.WRITE_ZEROES, 0, zeroed).status == BlkStatus.OK
        at = (3 * A_WINDOW + 1) * SECTOR_SIZE
        expected[at : at + 17 * SECTOR_SIZE] = bytes(17 * SECTOR_SIZE)
        assert whole(disk) == bytes(expected)


def test_whole_chunks_are_written_without_asking(vuproc_device: ServeDevice, web: Web) -> None:
    with vuproc_device(disk_of(web)).guest() as guest:
        disk = Block(guest)
        disk.write(8, b"w" * 8192)
        disk.flush()
        assert disk.read(8, 8192) == b"w" * 8192
    assert web.asked == []


def test_what_came_while_a_window_was_fetched_stays(vuproc_device: ServeDevice, web: Web) -> None:
    web.open.clear()
    with vuproc_device(disk_of(web)).guest() as guest:
        disk = Block(guest)
        token = disk.submit(BlkType.IN, 0, in_=[4096])
        web.wait(lambda: len(web.asked) == 1)
        disk.write(8, b"n" * 4096)
        web.open.set()
        assert guest.wait(token).data[0] == OBJECT[:4096]
        assert disk.read(0, 12288) == OBJECT[:4096] + b"n" * 4096 + OBJECT[8192:12288]
    assert len(web.asked) == 1


def test_windows_are_fetched_at_the_same_time(vuproc_device: ServeDevice, web: Web) -> None:
    web.open.clear()
    with vuproc_device(disk_of(web)).guest() as guest:
        disk = Block(guest)
        tokens = [disk.submit(BlkType.IN, at * A_WINDOW, in_=[512]) for at in range(WINDOWS)]
        web.wait(lambda: len(web.asked) == FETCHERS)
        web.open.set()
        for at, token in enumerate(tokens):
            assert guest.wait(token).data[0] == OBJECT[at * WINDOW : at * WINDOW + 512]


def test_the_overlay_keeps_what_was_fetched_and_written(web: Web, tmp_path: Path) -> None:
    device = disk_of(web, image=str(tmp_path / "kept.overlay"))
    with serve(device) as served, served.guest() as guest:
        Block(guest).write(1, b"k" * 512)
    expected = OBJECT[:512] + b"k" * 512 + OBJECT[1024:WINDOW]
    asked = len(web.asked)
    with serve(device) as served, served.guest() as guest:
        assert Block(guest).read(0, WINDOW) == expected
    assert (asked, len(web.asked)) == (1, 1)


def test_workers_and_masters_that_die_lose_nothing(vuproc_device: ServeDevice, web: Web) -> None:
    served = vuproc_device(disk_of(web, queues=2), arguments=["--supervised"])
    expected = bytearray(OBJECT)
    with served.guest(queues=2) as guest:
        disk = Block(guest)
        for number in range(1, 5):
            tokens = []
            for at in range(16):
                sector = (number * 977 + at * 1531) % SECTORS
                data = bytes([number * 16 + at]) * SECTOR_SIZE
                expected[sector * SECTOR_SIZE : (sector + 1) * SECTOR_SIZE] = data
                tokens.append(disk.submit(BlkType.OUT, sector, [data], queue=at % 2))
            if number == 4:
                os.kill(served.status().pid, signal.SIGKILL)
            else:
                served.kill_worker(number % 2)
            for token in tokens:
                assert guest.wait(token).data[-1] == bytes([BlkStatus.OK])
        for queue in range(2):
            assert whole(disk, queue) == bytes(expected)


def test_a_ring_stops_though_the_server_does_not_answer(
    vuproc_device: ServeDevice, web: Web
) -> None:
    web.open.clear()
    served = vuproc_device(disk_of(web))
    with served.guest() as guest:
        disk = Block(guest)
        disk.submit(BlkType.IN, 0, in_=[512])
        web.wait(lambda: len(web.asked) == 1)
        worker = served.status().queues[0].pid
        assert guest.stop_queue(0) == 0
        web.open.set()
        guest.start_queue(0)
        assert Block(guest).read(0, 512) == OBJECT[:512]
        assert served.status().queues[0].pid == worker


def test_an_error_of_the_server_is_the_requests(vuproc_device: ServeDevice, web: Web) -> None:
    served = vuproc_device(disk_of(web))
    with served.guest() as guest:
        disk = Block(guest)
        web.status = 403
        assert disk.request(BlkType.IN, 0, in_=[512]).status == BlkStatus.IOERR
        assert disk.request(BlkType.OUT, 1, [bytes(512)]).status == BlkStatus.IOERR
        served.wait_for_line(f"{WINDOW} bytes at 0: ")
        web.status = 0
        assert disk.read(0, 512) == OBJECT[:512]


def test_another_object_at_the_url_is_not_mixed_with_the_first(
    vuproc_device: ServeDevice, web: Web
) -> None:
    served = vuproc_device(disk_of(web))
    with served.guest() as guest:
        disk = Block(guest)
        assert disk.read(0, 512) == OBJECT[:512]
        web.content, web.tag = bytes(SIZE), '"second"'
        assert disk.read(0, 4096) == OBJECT[:4096]
        assert disk.request(BlkType.IN, A_WINDOW, in_=[512]).status == BlkStatus.IOERR
        served.wait_for_line("precondition")
        served.kill_worker()
        assert disk.request(BlkType.IN, A_WINDOW, in_=[512]).status == BlkStatus.IOERR


def test_a_read_only_disk_is_kept_as_well(vuproc_device: ServeDevice, web: Web) -> None:
    with vuproc_device(disk_of(web, readonly=True)).guest() as guest:
        disk = Block(guest)
        assert disk.request(BlkType.OUT, 0, [bytes(512)]).status == BlkStatus.IOERR
        for _ in range(2):
            assert disk.read(0, 512) == OBJECT[:512]
    assert len(web.asked) == 1


def test_s3(vuproc_device: ServeDevice, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's protocol as far as reading goes, unsigned: a bucket is a folder."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.url.removesuffix(PATH))
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    with vuproc_device({"type": "blk", "url": f"s3:/{PATH}"}).guest() as guest:
        assert Block(guest).read(9, 512) == OBJECT[9 * 512 : 10 * 512]


def test_an_overlay_is_not_gone_on_with_over_another_object(web: Web, tmp_path: Path) -> None:
    device = disk_of(web, image=str(tmp_path / "kept.overlay"))
    with serve(device) as served, served.guest() as guest:
        assert Block(guest).read(0, 512) == OBJECT[:512]
    web.tag = '"second"'
    with pytest.raises(Exception, match="is an overlay of another object than is at"):
        with serve(device):
            pass  # pragma: no cover


@pytest.mark.parametrize("url", ["https://host/x?sig=1", "https://host/x#y", "http://[bad/x"])
def test_a_url_that_means_more_than_an_object(url: str) -> None:
    ((field, _),) = problems(url)
    assert field == "url"


@pytest.mark.parametrize(
    "url", ["ftp://host/disk.raw", "https://host", "https://host/", "disk.raw", "s3:///disk.raw"]
)
def test_a_url_that_is_none(url: str) -> None:
    ((field, message),) = problems(url)
    assert (field, "and an object" in message) == ("url", True)


def test_an_object_that_cannot_be_had(web: Web) -> None:
    ((field, message),) = problems(f"{web.url}.old")
    assert field == "url"
    assert "golden.raw.old" in message and "404" in message
    web.content = bytes(1000)
    ((field, message),) = problems(web.url)
    assert (field, message) == ("url", f"{web.url}: 1000 bytes are not a multiple of 512")


@pytest.mark.parametrize("options", [{"direct": True}, {"engine": "sync"}, {"ram": 512}])
def test_what_does_not_fit_an_object_is_refused(web: Web, options: dict[str, Any]) -> None:
    assert {field for field, _ in problems(web.url, **options)} >= set(options)
