"""A disk whose changes go back to an object store."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.devices.s3_server import BUCKET, S3, running
from tests.devices.test_blk import ranges
from tests.devices.test_blk_overlay import content
from vuproc.spec.blk import SECTOR_SIZE, BlkStatus, BlkType
from vuproc.testing.block import Block
from vuproc.testing.serve import Served, serve

pytestmark = pytest.mark.timeout(180)

PIECE = 64 << 10
SIZE = 16 * PIECE + 3 * SECTOR_SIZE
SECTORS = SIZE // SECTOR_SIZE
URL = f"s3://{BUCKET}/disk/"
BOUND_S = 60.0
NEVER = 86400


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with running() as s3:
        yield s3


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.gate.shut()
    server.gate.open()
    yield server
    server.delete_all()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """An image, with a hole in it."""
    path = tmp_path / "golden.raw"
    data = bytearray(content(0, SIZE))
    data[3 * PIECE : 5 * PIECE] = bytes(2 * PIECE)
    path.write_bytes(data)
    return path


@pytest.fixture
def pushed(s3: S3, raw: Path) -> bytes:
    vuproc("image", "push", str(raw), URL, "--piece-size", "64K")
    return raw.read_bytes()


def disk_of(tmp_path: Path, **options: Any) -> dict[str, Any]:
    image = str(tmp_path / "cache.overlay")
    return {"type": "blk", "url": URL, "image": image, "write_back": NEVER, **options}


def vuproc(*words: str, code: int = 0) -> str:
    """A command of vuproc's; what it says."""
    command = [sys.executable, "-m", "vuproc", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S)
    assert done.returncode == code, done
    return done.stdout + done.stderr


def write_back(served: Served) -> None:
    vuproc("write-back", str(served.socket), "--timeout", "50")


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def said(served: Served) -> dict[str, Any]:
    return dict(served.status().details["write-back"])


def scattered(disk: Block, expected: bytearray, order: random.Random, count: int) -> None:
    """Write here and there, across pieces, too."""
    for number in range(count):
        length = order.choice([1, 3, 8, 40])
        sector = order.randrange(SECTORS - length)
        data = content(order.randrange(1000) + number, length * SECTOR_SIZE)
        disk.write(sector, data)
        expected[sector * SECTOR_SIZE : sector * SECTOR_SIZE + len(data)] = data


def test_an_image_is_pushed_and_pulled(s3: S3, raw: Path, pushed: bytes, tmp_path: Path) -> None:
    assert s3.image("disk") == pushed
    assert s3.manifest("disk")["pieces"].count(-1) == 2
    vuproc("image", "pull", URL, str(tmp_path / "back.raw"))
    assert (tmp_path / "back.raw").read_bytes() == pushed
    assert "there is an image already" in vuproc("image", "push", str(raw), URL, code=1)
    assert s3.image("disk") == pushed


def test_what_is_written_goes_to_the_store(s3: S3, pushed: bytes, tmp_path: Path) -> None:
    expected = bytearray(pushed)
    with serve(disk_of(tmp_path)) as served, served.guest() as guest:
        disk = Block(guest)
        assert disk.read(0, PIECE) == pushed[:PIECE]
        scattered(disk, expected, random.Random(1), 12)
        assert s3.image("disk") == pushed
        write_back(served)
        assert s3.image("disk") == bytes(expected)
        before = set(s3.keys())
        write_back(served)  # nothing is new
        assert set(s3.keys()) == before
        scattered(disk, expected, random.Random(2), 12)
        write_back(served)
        assert s3.image("disk") == bytes(expected)
        assert disk.read(0, SIZE) == bytes(expected)
