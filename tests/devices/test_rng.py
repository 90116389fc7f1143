"""The entropy device with the built-in driver: where its bytes come from, how many at a time."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from vuproc.devices.rng import MOST, Rng, RngOptions
from vuproc.testing import Served, serve
from vuproc.testing.errors import ServeFailed
from vuproc.testing.guest import Guest

pytestmark = pytest.mark.timeout(90)


def rng(**options: Any) -> AbstractContextManager[Served]:
    return serve({"type": "rng", **options})


def read(guest: Guest, count: int) -> bytes:
    """So many bytes, in requests of 64."""
    came = b""
    while len(came) < count:
        completion = guest.do(in_=[min(64, count - len(came))])
        assert completion.written > 0
        came += completion.content
    return came


def stream(seed: int, count: int) -> bytes:
    """What a seed gives, as docs/devices/rng.md has it."""
    blocks = (
        hashlib.sha512(seed.to_bytes(8, "little") + number.to_bytes(8, "little")).digest()
        for number in range(count // 64 + 1)
    )
    return b"".join(blocks)[:count]


def test_the_systems_bytes_are_other_ones_each_time() -> None:
    with rng() as served, served.guest() as guest:
        chunks = {read(guest, 64) for _ in range(50)}
        assert len(chunks) == 50
        # However large a request is, at most so many come; a buffer of none is as good as any.
        assert guest.do(in_=[MOST, MOST]).written == MOST
        assert guest.do(out=[b"?"]).written == 0


@pytest.mark.parametrize("packed", [False, True])
def test_a_seed_gives_the_same_at_every_start(packed: bool) -> None:
    for _ in range(2):
        with rng(seed=42) as served, served.guest(packed=packed) as guest:
            assert read(guest, 1000) == stream(42, 1000)
    with rng(seed=43) as served, served.guest() as guest:
        assert read(guest, 100) == stream(43, 100)


def test_what_was_given_is_not_given_again_whoever_dies() -> None:
    with serve({"type": "rng", "seed": 7}, arguments=["--supervised"]) as served:
        with served.guest() as guest:
            assert read(guest, 100) == stream(7, 100)
            served.wait_worker(other_than=served.kill_worker())
            assert read(guest, 100) == stream(7, 200)[100:]
            before = served.status().pid
            os.kill(before, signal.SIGKILL)
            assert read(guest, 100) == stream(7, 300)[200:]
            assert served.status().pid != before
        with served.guest() as guest:
            assert read(guest, 10) == stream(7, 310)[300:]


def test_nobody_goes_on_with_the_place_of_another_stream(tmp_path: Path) -> None:
    """A master that follows another may have other options."""
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(os.urandom(100))
    streams = [
        RngOptions(),
        RngOptions(seed=1),
        RngOptions(seed=2),
        RngOptions(file=str(tmp_path / "one")),
        RngOptions(file=str(tmp_path / "two")),
    ]
    for one in streams:
        left = Rng(one).shared_files()
        for other in streams:
            assert Rng(other).goes_on_with(left) == (one == other)
        for file in left.values():
            file.close()


def test_a_file_begins_again_at_its_end(tmp_path: Path) -> None:
    content = os.urandom(150)
    (tmp_path / "bytes").write_bytes(content)
    with rng(file=str(tmp_path / "bytes")) as served, served.guest() as guest:
        assert [guest.do(in_=[64]).content for _ in range(6)] == [
            (content * 3)[n : n + 64] for n in range(0, 384, 64)
        ]


def test_a_device_is_read_as_it_comes() -> None:
    with rng(file="/dev/urandom") as served, served.guest() as guest:
        assert read(guest, 64) != read(guest, 64)


def test_a_device_that_ends_is_said_and_its_request_stays() -> None:
    with rng(file="/dev/null") as served, served.guest() as guest:
        guest.submit(0, [], [64])
        served.wait_for_line("/dev/null has come to its end")
        guest.stop_queue(0)
        queue = served.status().queues[0]
        assert (queue.restarts, queue.requests) == (0, 0)


def test_a_rate_is_kept() -> None:
    rate, bursts = 20_000, 4
    with rng(rate=rate) as served, served.guest() as guest:
        count = rate // 10 * bursts
        began = time.monotonic()
        read(guest, count)
        # The first burst is there at once.
        assert time.monotonic() - began >= (bursts - 1) * 0.1 * 0.9


def test_a_slow_one_stops_at_once_and_loses_no_request() -> None:
    with rng(rate=2, seed=1) as served, served.guest() as guest:
        # A request is filled whole, which is more than it may have: the next has to wait.
        assert guest.do(in_=[8]).content == stream(1, 8)
        guest.submit(0, [], [4])
        pid, began = served.status().queues[0].pid, time.monotonic()
        guest.stop_queue(0)
        assert time.monotonic() - began < 3
        assert served.status().queues[0].pid == pid
        guest.start_queue(0)
        assert guest.do(in_=[4]).content == stream(1, 12)[8:]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"file": "/nowhere"}, "/nowhere: No such file or directory"),
        ({"file": "/tmp"}, "neither a regular file nor a device"),
        ({"file": "/dev/null", "seed": 1}, "file and seed exclude each other"),
        ({"rate": 0}, ">= 1, got 0"),
        ({"seed": -1}, ">= 0, got -1"),
        ({"queues": 2}, "queues"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ServeFailed, match=reason), rng(**options):
        pass


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert list(RngOptions(file=str(tmp_path / "empty")).problems()) == [
        ("file", f"{tmp_path}/empty: an empty file")
    ]


def test_served_is_one_worker() -> None:
    with rng() as served:
        assert len(served.status().queues) == 1
