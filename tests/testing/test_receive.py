"""Receive queues that are kept filled, on devices which answer there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.testing.echo import RECEIVE, TRANSMIT, VSOCK_HEADER, Console, Vsock
from tests.testing.toy_split import ToySplit
from vuproc.testing import DriverQueue, Guest, NoCompletion, Ram, RingFull
from vuproc.testing.plugin import ServeDevice
from vuproc.testing.split_ring import split_layout


def send(guest: Guest, *lines: bytes) -> None:
    for line in lines:
        guest.do(TRANSMIT, [line])


def test_what_is_typed_at_a_console_is_printed(vuproc_device: ServeDevice) -> None:
    with vuproc_device(Console).guest(queues=2) as guest:
        guest.keep_filled(RECEIVE, count=4, size=64)
        send(guest, b"one", b"two")
        assert guest.receive(RECEIVE) == b"one"
        send(guest, b"three", b"drop", b"x" * 100)
        assert guest.receive(RECEIVE) == b"two"
        assert guest.receive(RECEIVE) == b"three"
        assert guest.receive(RECEIVE) == b""
        assert guest.receive(RECEIVE) == b"x" * 64


def test_a_vsock_packet_comes_back_with_its_sides_exchanged(vuproc_device: ServeDevice) -> None:
    fields = {"src_cid": 3, "dst_cid": 2, "src_port": 1024, "dst_port": 80, "len": 5, "op": 5}
    with vuproc_device(Vsock).guest(queues=2) as guest:
        guest.keep_filled(RECEIVE, count=8, size=4096)
        send(guest, VSOCK_HEADER.pack(**fields) + b"hello")
        packet = guest.receive(RECEIVE)
        header = VSOCK_HEADER.unpack(packet)
        assert (header["src_cid"], header["dst_cid"]) == (2, 3)
        assert (header["src_port"], header["dst_port"]) == (80, 1024)
        assert packet[VSOCK_HEADER.size :] == b"hello"


def test_many_more_lines_than_buffers_go_through_in_order(vuproc_device: ServeDevice) -> None:
    lines = [b"%d" % number for number in range(300)]
    with vuproc_device(Console).guest(queues=2, queue_size=16) as guest:
        guest.keep_filled(RECEIVE, count=3, size=16)
        received = []
        for line in lines:
            token = guest.submit(TRANSMIT, [line])
            received.append(guest.receive(RECEIVE))
            guest.wait(token)
        assert received == lines


def test_a_buffer_is_offered_anew_once_it_was_received(vuproc_device: ServeDevice) -> None:
    with vuproc_device(Console).guest(queues=2) as guest:
        guest.keep_filled(RECEIVE, count=2, size=16)
        send(guest, b"one", b"two")
        third = guest.submit(TRANSMIT, [b"three"])
        with pytest.raises(NoCompletion):
            guest.wait(third, timeout_s=0.1)
        assert guest.receive(RECEIVE) == b"one"
        guest.wait(third)
        assert [guest.receive(RECEIVE) for _ in range(2)] == [b"two", b"three"]


def test_buffers_that_a_dead_worker_held_are_filled_by_the_next(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Console)
    with served.guest(queues=2) as guest:
        guest.keep_filled(RECEIVE, count=4, size=16)
        send(guest, b"before")
        # Of two queues one is shown to the driver first: what is not shown by now may be lost.
        assert guest.receive(RECEIVE) == b"before"
        served.wait_worker(other_than=served.kill_worker())
        send(guest, b"after")
        assert guest.receive(RECEIVE) == b"after"


def test_nothing_received_says_which_queue(vuproc_device: ServeDevice) -> None:
    with vuproc_device(Console).guest(queues=2) as guest:
        guest.keep_filled(RECEIVE, count=1, size=16)
        with pytest.raises(NoCompletion) as caught:
            guest.receive(RECEIVE, timeout_s=0.1)
        assert caught.value.queue == RECEIVE


@pytest.fixture
def ram() -> Iterator[Ram]:
    ram = Ram(1 << 16)
    yield ram
    ram.close()


@pytest.fixture
def queue(ram: Ram) -> Iterator[DriverQueue]:
    queue = DriverQueue(ram, 0, 8)
    yield queue
    queue.close()


def test_other_requests_go_on_beside_the_buffers(ram: Ram, queue: DriverQueue) -> None:
    desc, avail, used, _ = split_layout(8)
    at = queue.block.offset
    device = ToySplit(ram.regions[0], 8, desc=at + desc, avail=at + avail, used=at + used)
    queue.keep_filled(2, 16)
    token = queue.submit(in_=[4])
    first, second, mine = device.fetch()
    for head, written in (second, 3), (mine, 4), (first, 0):
        device.complete(head, written)
    assert queue.receive(0) == bytes(3)
    assert queue.wait(token, 0).written == 4
    assert queue.receive(0) == b""
    assert queue.in_flight == 2


def test_more_buffers_than_the_ring_has_room_for_are_refused(queue: DriverQueue) -> None:
    with pytest.raises(RingFull):
        queue.keep_filled(9, 16)
    assert queue.in_flight == 0
    queue.keep_filled(8, 16)
    with pytest.raises(ValueError, match="already"):
        queue.keep_filled(1, 16)


@pytest.mark.parametrize(("count", "size"), [(0, 16), (1, 0)])
def test_buffers_that_cannot_be_are_refused(queue: DriverQueue, count: int, size: int) -> None:
    with pytest.raises(ValueError, match="cannot be kept filled"):
        queue.keep_filled(count, size)
    with pytest.raises(ValueError, match="not kept filled"):
        queue.receive(0)
