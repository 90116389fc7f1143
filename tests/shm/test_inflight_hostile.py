"""The in-flight record is the front-end's memory and may hold anything (A36)."""

from __future__ import annotations

import pytest

from tests.shm.guest import Guest, take
from tests.shm.record import ENTRY, HEADER, Record, heads, restart, start, submit
from vuproc.errors import RingError


def expect_refused(guest: Guest, record: Record, cause: str) -> None:
    """No ring comes of it, and nothing is written anywhere."""
    memory, log = guest.bytes[:], record.bytes[:]
    with pytest.raises(RingError, match=cause):
        restart(guest, record)
    assert guest.bytes[:] == memory and record.bytes[:] == log
    # But a fresh start does not care.
    start(guest, record)


def in_flight(guest: Guest, record: Record) -> None:
    submit(guest, 5, 3, 1)
    ring = start(guest, record)
    take(ring)[0].finish()
    ring.publish()


@pytest.mark.parametrize("version", [2, 0x100, 0xFFFF])
def test_a36_unknown_version(guest: Guest, record: Record, version: int) -> None:
    in_flight(guest, record)
    record.set_header(version=version)
    expect_refused(guest, record, f"has version {version}")


def test_a36_unknown_features(guest: Guest, record: Record) -> None:
    in_flight(guest, record)
    record.set_header(features=1 << 63)
    expect_refused(guest, record, "has features 0x8000000000000000")


@pytest.mark.parametrize("number", [0, 7, 9, 16, 0xFFFF])
def test_a36_another_ring_size(guest: Guest, record: Record, number: int) -> None:
    in_flight(guest, record)
    record.set_header(desc_num=number)
    expect_refused(guest, record, f"is for {number} descriptors and the ring has 8")


@pytest.mark.parametrize("used", [2, 5, 32768, 0xFFF0, 1 - 9])
def test_a36_used_indices_too_far_apart(guest: Guest, record: Record, used: int) -> None:
    in_flight(guest, record)
    record.set_header(used_idx=used & 0xFFFF)
    expect_refused(guest, record, "more than its length away")


@pytest.mark.parametrize("link", [8, 9, 0x8000, 0xFFFF])
def test_a36_links_out_of_the_table(guest: Guest, record: Record, link: int) -> None:
    in_flight(guest, record)
    record.set_header(last_batch_head=link, used_idx=0)
    expect_refused(guest, record, f"links to descriptor {link}")
    record.set_header(last_batch_head=2, used_idx=(1 - 2) & 0xFFFF)
    guest.set_used_idx(1)
    record.set_entry(2, next=link)
    expect_refused(guest, record, f"links to descriptor {link}")


def test_a36_links_in_a_circle_are_walked_no_further_than_needed(
    guest: Guest, record: Record
) -> None:
    in_flight(guest, record)
    record.set_header(last_batch_head=3, used_idx=(1 - 8) & 0xFFFF)
    record.set_entry(3, next=3)
    # Request 3 counts as completed now, and the position with it; the driver gets what it wrote.
    ring = restart(guest, record)
    assert [found.head for found in ring.recovered] == [1] and ring.next_avail == 2


@pytest.mark.parametrize("mark", [2, 0x80, 0xFF])
def test_a36_marks_that_are_none(guest: Guest, record: Record, mark: int) -> None:
    in_flight(guest, record)
    record.set_entry(7, inflight=mark)
    expect_refused(guest, record, f"has a mark of {mark} at descriptor 7")


def test_a36_more_marks_than_the_driver_offered(guest: Guest, record: Record) -> None:
    in_flight(guest, record)
    record.set_entry(7, inflight=1)
    expect_refused(guest, record, "has 3 requests in flight behind used index 1")


def test_a36_a_position_beyond_the_drivers(guest: Guest, record: Record) -> None:
    in_flight(guest, record)
    record.set_entry(0, lead=1)
    expect_refused(guest, record, "which the avail index 3 does not cover")


def test_a36_counters_order_and_nothing_else(guest: Guest, record: Record) -> None:
    in_flight(guest, record)
    record.set_entry(3, counter=(1 << 64) - 1, attempts=0, stage=255)
    record.set_entry(1, counter=(1 << 64) - 1)
    ring = restart(guest, record)
    submit(guest, 0)
    assert heads(ring) == [1, 3, 0]
    assert record[0].counter == 0


def test_a36_noise(guest: Guest, record: Record) -> None:
    """Whatever is in there: a ring or a RingError."""
    source = bytes(range(1, 256)) * 3
    in_flight(guest, record)
    good = record.bytes[record.offset :]
    for at in range(HEADER.size + 8 * ENTRY.size):
        for byte in (0, 1, 2, 0x7F, 0x80, 0xFF, source[at]):
            record.bytes[record.offset :] = good
            record.bytes[record.offset + at] = byte
            before = guest.bytes[:]
            try:
                heads(restart(guest, record))
            except RingError as error:
                assert error.cause
            guest.bytes[:] = before
