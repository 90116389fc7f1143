"""A ring that is larger than `queue_size`: refused, with what to do about it, where it is seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.pool.scripted import Scripted
from vuproc.cli.hint import hint
from vuproc.device_file.check import load
from vuproc.ops.admin import Request, ask
from vuproc.ops.status import Status
from vuproc.testing.errors import Refused
from vuproc.testing.serve import Served, serve

BOUND_S = 20.0
ADVICE = "above 64; raise queue_size in the device file, or have the VMM's device take queues of 64"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve(Scripted, queue_size=64) as made:
        yield made


def status(served: Served) -> Status:
    return msgspec.convert(ask(served.socket, Request("status")), Status)


def test_c6_a_front_end_that_asks_is_told_that_its_ring_is_too_large(served: Served) -> None:
    after = len(served.lines)
    with served.guest(start=False) as guest:
        guest.setup()
        with pytest.raises(Refused):
            guest.start_queue(0, size=128)
        served.wait_for_line(ADVICE, BOUND_S, after=after)
        guest.start_queue(0, size=64)
        assert guest.do(0, [b"echo hello"], [64]).content == b"hello"
    assert status(served).ended == ""


def test_c6_one_that_does_not_ask_is_disconnected_and_the_status_says_why(served: Served) -> None:
    """As QEMU: it says "vhost start failed", and its guest goes on without the device."""
    after = len(served.lines)
    with served.guest(start=False) as guest:
        guest.setup()
        guest.front_end.request("SET_VRING_NUM", need_reply=False, index=0, num=128)
        assert guest.front_end.closed_by_peer(BOUND_S)
    assert "WARNING" in served.wait_for_line(f"ring size 128 is {ADVICE}", BOUND_S, after=after)
    assert ADVICE in status(served).table()
    with served.guest(queue_size=64) as guest:
        assert guest.do(0, [b"echo hello"], [64]).content == b"hello"


def test_c6_the_hint_says_how_large_a_queue_may_be(tmp_path: Path) -> None:
    path = tmp_path / "disk.yaml"
    path.write_text("socket: ./s\ndevice: {type: blk, ram: 1MiB, queue_size: 64}\n")
    text = hint("qemu", load(path))
    assert "queue-size=64" in text and "more than 64 entries are refused" in text
