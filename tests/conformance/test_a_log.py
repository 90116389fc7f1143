"""Catalogue rows A32 and G8: dirty logs that are not what they say, and what becomes of marks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conformance.checks import (
    BROKEN_WITHIN_S,
    attached,
    closed,
    serves_newcomer,
    spare_fd,
    until,
    works,
)
from vuproc.fd import Fd
from vuproc.spec.vhost_user import FRONT_END, LOG, VRING_ADDR_F_LOG
from vuproc.spec.virtio import Feature, Status
from vuproc.testing.dirty import PAGE, DirtyBitmap
from vuproc.testing.errors import Refused
from vuproc.testing.guest import DRIVER_READY
from vuproc.testing.serve import Served
from vuproc.vhost_user.wire import encode

ROOM = 4096
MEMORY = 32 << 20
FAR = 1 << 63


@pytest.fixture
def log() -> Iterator[DirtyBitmap]:
    with DirtyBitmap(MEMORY) as made:
        yield made


def a_file() -> Fd:
    fd = Fd(os.memfd_create("log", os.MFD_CLOEXEC))
    os.ftruncate(fd.fileno(), ROOM)
    return fd


def for_reading_only() -> Fd:
    with a_file() as fd:
        return Fd(os.open(f"/proc/self/fd/{fd.fileno()}", os.O_RDONLY | os.O_CLOEXEC))


def an_eventfd() -> Fd:
    return Fd(os.eventfd(0, os.EFD_CLOEXEC))


def ends_the_connection(disk: Served, payload: bytes, *fds: Fd) -> None:
    """The reply has no form that says "failed". The device goes on, and keeps nothing of it."""
    with disk.guest(queues=2) as victim:
        with attached(fds):
            row = FRONT_END.named("SET_LOG_BASE")
            victim.front_end.send(encode(row.number, payload), fds)
        closed(victim.front_end)
    serves_newcomer(disk)


@pytest.mark.parametrize(
    ("size", "offset"),
    [
        (0, 0),
        (ROOM + 1, 0),
        (ROOM, 8),
        (8, ROOM),
        (FAR, FAR),
        ((1 << 64) - 1, 1),
        (8, (1 << 64) - 4),
    ],
)
def test_a32_a_log_that_is_not_in_its_file(disk: Served, size: int, offset: int) -> None:
    ends_the_connection(disk, LOG.pack(mmap_size=size, mmap_offset=offset), a_file())


@pytest.mark.parametrize("make", [spare_fd, an_eventfd, for_reading_only])
def test_a32_a_log_that_is_no_file_to_write_to(disk: Served, make: Callable[[], Fd]) -> None:
    ends_the_connection(disk, LOG.pack(mmap_size=8, mmap_offset=0), make())


def test_a32_a_log_without_its_descriptor_or_with_two(disk: Served) -> None:
    payload = LOG.pack(mmap_size=8, mmap_offset=0)
    ends_the_connection(disk, payload)
    ends_the_connection(disk, payload, a_file(), a_file())


def test_a32_a_used_ring_whose_log_address_wraps_around(disk: Served, log: DirtyBitmap) -> None:
    with disk.guest(queues=2) as guest:
        guest.log_writes(log)
        queue = guest.queues[0]
        fields: dict[str, Any] = {"desc": queue.desc, "avail": queue.avail, "used": queue.used}
        for address in ((1 << 64) - 1, (1 << 64) - 2):
            with pytest.raises(Refused):
                guest.front_end.request(
                    "SET_VRING_ADDR", index=0, flags=VRING_ADDR_F_LOG, log=address, **fields
                )
        # Far beyond the log is no error: nothing is written there.
        guest.front_end.request(
            "SET_VRING_ADDR", index=0, flags=VRING_ADDR_F_LOG, log=FAR, **fields
        )
        works(guest)
        assert log.pages()


def test_a32_a_log_for_less_than_the_guests_memory(disk: Served) -> None:
    with DirtyBitmap(1 << 20, offset=ROOM) as small, disk.guest(queues=2) as guest:
        # The guest's memory begins where the log ends.
        guest.log_writes(small)
        works(guest)
        assert small.pages() == set()
        around = os.pread(small.fd.fileno(), 2 * ROOM, 0)
        assert not any(around)


def test_a32_a_log_that_is_cut_off_breaks_the_rings_that_would_write_to_it(
    own_disk: Served, log: DirtyBitmap
) -> None:
    with own_disk.guest(queues=2) as guest:
        guest.log_writes(log)
        works(guest)
        os.ftruncate(log.fd.fileno(), 0)
        guest.submit(0, [bytes(16)], [512, 1])
        assert guest.queues[0].err_bell.wait(BROKEN_WITHIN_S)
        assert until(lambda: guest.status() & Status.NEEDS_RESET)
        own_disk.wait_for_line("the dirty log was truncated")
        # Such a log is refused later, too, and without one all is well.
        guest.front_end.log_writes(False)
        with pytest.raises(Refused):
            guest.front_end.log_writes()
        guest.front_end.features &= ~int(Feature.LOG_ALL)
        guest.reset()
        assert guest.status() == DRIVER_READY
        works(guest)


def test_g8_logs_come_and_go_without_pause(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        for turn in range(100):
            with DirtyBitmap(MEMORY, offset=8 * (turn % 3)) as log:
                guest.log_writes(log)
                works(guest, turn % 2)
                block = guest.queues[turn % 2].used_guest_addr // PAGE
                assert block in log.pages()
                if turn % 2:
                    guest.log_writes(None)
