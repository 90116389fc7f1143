"""A front-end whose guest memory is its own: no ring can be served, and somebody is told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vuproc import Device, Request
from vuproc.spec.virtio import Status
from vuproc.testing.errors import Refused
from vuproc.testing.guest import Guest
from vuproc.testing.memory import Ram
from vuproc.testing.serve import Served, serve

BOUND_S = 20.0
FLAGS = ("memory-backend-memfd", "share=on", "<access mode='shared'/>", "shared=on", "crosvm")


class Greeter(Device):
    device_id = 42

    def handle(self, request: Request) -> None:
        request.write(b"hello")


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve(Greeter, queues=2) as made:
        yield made


def without_memory(served: Served) -> Guest:
    """As QEMU without share=on: it negotiates, and has no region to tell of."""
    guest = served.guest(start=False)
    guest.front_end.negotiate()
    guest.set_status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
    return guest


def warnings(served: Served, after: int) -> list[str]:
    return [line for line in served.lines[after:] if "WARNING" in line and "memory" in line]


def test_c1_a_front_end_that_shares_no_memory_is_told_of_in_the_log_once(served: Served) -> None:
    after = len(served.lines)
    with without_memory(served) as guest:
        for index in range(2):
            queue = guest.make_queue(index)
            guest.configure_queue(queue)
            assert queue.kick_bell is not None
            kick = [queue.kick_bell.theirs]
            # Neither asks for an answer, as in QEMU before 8.
            guest.front_end.request("SET_VRING_KICK", kick, need_reply=False, value=index)
            guest.front_end.request("SET_VRING_ENABLE", need_reply=False, index=index, num=1)
        assert guest.status() == Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
        line = served.wait_for_line("vring 0 is set up", BOUND_S, after=after)
        assert all(flag in line for flag in FLAGS), line
        # Late is not never.
        guest.front_end.set_memory(guest.ram.regions)
        assert guest.do(0, in_=[64]).content == b"hello"
    served.wait_for_line("disconnected", BOUND_S, after=after)
    assert len(warnings(served, after)) == 1
    after = len(served.lines)
    with without_memory(served) as guest:
        with pytest.raises(Refused):
            guest.start_queue(1)
    served.wait_for_line("disconnected", BOUND_S, after=after)
    (line,) = [line for line in warnings(served, after) if "refused" not in line]
    assert "vring 1" in line and all(flag in line for flag in FLAGS), line


def test_c1_a_front_end_that_asks_is_told_that_its_rings_have_no_memory(served: Served) -> None:
    with without_memory(served) as guest:
        queue = guest.make_queue(0)
        guest.configure_queue(queue)
        with pytest.raises(Refused) as refused:
            guest.kick_queue(queue)
        assert refused.value.message == "SET_VRING_KICK"
        guest.front_end.set_memory(guest.ram.regions)
        guest.kick_queue(queue)
        guest.enable_queue(0)
        assert guest.do(0, in_=[64]).content == b"hello"


def test_c1_memory_that_came_as_a_copy_is_told_of_once_the_driver_has_kicked(
    served: Served,
) -> None:
    """As QEMU's memory-backend-file with share=off: the file is passed, the guest writes elsewhere.

    QEMU kicks once by itself when it starts a ring, which says nothing.
    """
    after = len(served.lines)
    copy = Ram(16 << 20)
    with served.guest(start=False) as guest:
        guest.front_end.negotiate()
        guest.front_end.set_memory(copy.regions)
        copy.close()
        queue = guest.start_queue(0)
        queue.kick()
        guest.stop_queue(0)
        guest.kick_queue(queue)
        guest.enable_queue(0)
        assert warnings(served, after) == []
        guest.submit(0, in_=[64])
        queue.kick()
        line = served.wait_for_line("nothing in its ring", BOUND_S, after=after)
        assert all(flag in line for flag in FLAGS)
        guest.stop_queue(0)
        assert len(warnings(served, after)) == 1


def test_c1_kicks_before_a_ring_is_enabled_are_the_front_ends(served: Served) -> None:
    """QEMU 11 gives two: its queues may then be idle for as long as the guest likes."""
    after = len(served.lines)
    with served.guest(start=False) as guest:
        guest.setup()
        queue = guest.make_queue(0)
        guest.configure_queue(queue)
        queue.kick()
        guest.kick_queue(queue)
        queue.kick()
        guest.enable_queue(0)
        # A stop is answered when all that came before it was seen.
        guest.stop_queue(0)
        assert warnings(served, after) == []
        guest.start_queue(0)
        assert guest.do(0, in_=[64]).content == b"hello"
    assert warnings(served, after) == []


def test_c1_kicks_for_what_is_there_are_no_reason_for_doubt(served: Served) -> None:
    after = len(served.lines)
    with served.guest() as guest:
        for _ in range(3):
            assert guest.do(0, in_=[64]).content == b"hello"
            guest.queues[0].kick()
            guest.stop_queue(0)
            guest.queues[0].kick()
            guest.start_queue(0)
    assert warnings(served, after) == []
