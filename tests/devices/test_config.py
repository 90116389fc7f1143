"""A configuration space that the device answers for: after writes, changes, resets and deaths."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.devices.configured import (
    CONFIG,
    Elsewhere,
    Grows,
    Kept,
    Level,
    QueueTells,
    Selects,
    Static,
)
from vuproc.testing import Guest, NoConfigChange, Refused, Served, serve


@pytest.fixture(scope="module")
def selects() -> Iterator[Served]:
    with serve(Selects) as served:
        yield served


def select(guest: Guest, which: int, subsel: int = 0) -> bytes:
    """What the driver reads after it has written both bytes, one after the other."""
    guest.front_end.set_config(0, bytes([which]))
    guest.front_end.set_config(1, bytes([subsel]))
    return selected(guest)


def selected(guest: Guest) -> bytes:
    content = guest.config(CONFIG)
    return content[3 : 3 + content[2]]


@pytest.mark.proves("SET_CONFIG", front_end="built-in")
def test_what_the_driver_wrote_decides_what_it_reads_next(selects: Served) -> None:
    with selects.guest(queues=2) as guest:
        assert guest.config(CONFIG) == bytes(CONFIG)
        assert select(guest, 1) == b"a name"
        assert select(guest, 3) == b"no. 17"
        assert select(guest, 2) == b""
        for subsel in (1, 7, 0, 13):
            assert select(guest, 0x11, subsel) == bytes([subsel]) * subsel
        # In one message, and as QEMU does it: the whole space.
        guest.front_end.set_config(0, bytes([3, 0]).ljust(CONFIG, b"x"))
        assert guest.config(CONFIG) == (b"\3\0\6no. 17").ljust(CONFIG, b"\0")


@pytest.mark.parametrize("size", [CONFIG, 3])
def test_the_same_choice_again_is_answered_as_before(selects: Served, size: int) -> None:
    """QEMU writes bytes that the driver did not, as it last read them: zeros at first."""
    with selects.guest(queues=2) as guest:
        for which, name in ((1, b"a name"), (3, b"no. 17")):
            for _ in range(2):
                guest.front_end.set_config(0, bytes([which, 0]).ljust(size, b"\0"))
                assert selected(guest) == name


def test_answers_are_those_to_the_writes_before_them(selects: Served) -> None:
    """However many come, without a wait in between."""
    with selects.guest(queues=2) as guest:
        for turn in range(300):
            which = (1, 3)[turn % 2]
            guest.front_end.set_config(0, bytes([which]))
            assert selected(guest) == (b"a name", b"no. 17")[turn % 2]


def test_a_write_that_is_refused_changes_nothing(selects: Served) -> None:
    with selects.guest(queues=2) as guest:
        guest.front_end.set_config(0, b"\xee\0")
        before = guest.config(CONFIG)
        with pytest.raises(Refused):
            guest.front_end.set_config(0, b"\1")
        assert guest.config(CONFIG) == before


@pytest.mark.parametrize("queue", [0, 1])
def test_a_new_worker_has_the_writes_and_the_answers(selects: Served, queue: int) -> None:
    with selects.guest(queues=2) as guest:
        assert select(guest, 0x11, 5) == b"\5" * 5
        killed = selects.kill_worker(queue)
        assert selected(guest) == b"\5" * 5
        selects.wait_worker(queue, other_than=killed)
        assert guest.do(queue, in_=[3]).content[:2] == b"\x11\5"
        assert selected(guest) == b"\5" * 5
        assert select(guest, 1) == b"a name"


def test_a_write_while_there_is_no_worker_reaches_the_next(selects: Served) -> None:
    with selects.guest(queues=2) as guest:
        for which, name in ((1, b"a name"), (3, b"no. 17")) * 3:
            selects.kill_worker(0)
            assert select(guest, which) == name


def test_a_reset_begins_anew(selects: Served) -> None:
    with selects.guest(queues=2) as guest:
        assert select(guest, 1) == b"a name"
        guest.front_end.request("RESET_DEVICE")
        assert guest.config(CONFIG) == bytes(CONFIG)


def test_the_next_front_end_begins_anew(selects: Served) -> None:
    with selects.guest(queues=2) as guest:
        assert select(guest, 1) == b"a name"
    with selects.guest(queues=2) as guest:
        assert guest.config(CONFIG) == bytes(CONFIG)
        assert select(guest, 3) == b"no. 17"


def test_the_worker_of_queue_0_speaks() -> None:
    with serve(QueueTells) as served, served.guest(queues=2) as guest:
        for which in (1, 3, 2):
            guest.front_end.set_config(0, bytes([which]))
            assert guest.config(CONFIG)[-1] == 0
        # All have heard the same.
        assert {guest.do(queue, in_=[3]).content for queue in (0, 1)} == {b"\2\0\3"}


def test_a_space_of_another_length_is_logged_and_ignored() -> None:
    with serve(Grows) as served, served.guest(channel=True) as guest:
        before = guest.config(CONFIG + 4)
        for length in (CONFIG + 1, CONFIG - 1, 0):
            after = len(served.lines)
            guest.do(out=[b"grow %d" % length], in_=[4])
            served.wait_for_line(f"config_space() has {length} bytes now", after=after)
            assert guest.config(CONFIG + 4) == before
        with pytest.raises(NoConfigChange):
            guest.wait_config_change(0.1)
        after = len(served.lines)
        guest.front_end.set_config(0, bytes([CONFIG + 2]))
        served.wait_for_line(f"config_space() has {CONFIG + 2} bytes now", after=after)
        assert guest.do(out=[b"x"], in_=[4]).content == b"done"


def test_a_field_of_a_static_space_reads_back_what_was_written() -> None:
    first = bytes(range(CONFIG))
    with serve(Static) as served:
        with served.guest() as guest:
            assert guest.config(CONFIG) == first
            guest.front_end.set_config(4, b"\xff")
            written = first[:4] + b"\xff" + first[5:]
            assert guest.config(CONFIG) == written
            with pytest.raises(Refused):
                guest.front_end.set_config(5, b"\xff")
            assert guest.config(CONFIG) == written
            killed = served.kill_worker()
            served.wait_worker(other_than=killed)
            assert guest.do(in_=[4]).content == b"done"
            assert guest.config(CONFIG) == written
            guest.front_end.request("RESET_DEVICE")
            assert guest.config(CONFIG) == first
        with served.guest() as guest:
            assert guest.config(CONFIG) == first


# What the device says by itself.


def level(content: bytes) -> int:
    return int.from_bytes(content[:CONFIG], "little")


@pytest.mark.proves(
    "BACKEND_CONFIG_CHANGE_MSG",
    "SET_BACKEND_REQ_FD",
    "PROTOCOL_F_BACKEND_REQ",
    front_end="built-in",
)
@pytest.mark.parametrize("device", [Level, Kept])
def test_a_change_is_announced_and_read(device: type[Level]) -> None:
    with serve(device) as served, served.guest(channel=True) as guest:
        assert level(guest.config()) == 1
        for value in (7, 200, 3):
            guest.do(out=[b"set %d" % value], in_=[4])
            assert level(guest.wait_config_change()) == value
        # What it does not tell is not known.
        guest.do(out=[b"quietly 9"], in_=[4])
        assert level(guest.config()) == 3
        # What has not changed may have a meaning of its own: the driver is told.
        guest.do(out=[b"set 3"], in_=[4])
        assert level(guest.wait_config_change()) == 3


def test_after_a_death_what_was_kept_is_read(kept: Served) -> None:
    with kept.guest(channel=True) as guest:
        guest.do(out=[b"set 50"], in_=[4])
        assert level(guest.wait_config_change()) == 50
        killed = kept.kill_worker()
        kept.wait_worker(other_than=killed)
        guest.do(out=[b"x"], in_=[4])
        assert level(guest.config()) == 50
        guest.do(out=[b"set 51"], in_=[4])
        assert level(guest.wait_config_change()) == 51


@pytest.fixture
def kept() -> Iterator[Served]:
    with serve(Kept) as served:
        yield served


def test_after_a_death_what_the_new_worker_says_is_read() -> None:
    with serve(Level) as served, served.guest(channel=True) as guest:
        guest.do(out=[b"set 50"], in_=[4])
        assert level(guest.wait_config_change()) == 50
        killed = served.kill_worker()
        served.wait_worker(other_than=killed)
        guest.do(out=[b"x"], in_=[4])
        # It is another than the driver has read: it is told.
        assert level(guest.wait_config_change()) == Level.FIRST


def test_a_master_that_follows_another_has_what_was_kept() -> None:
    with serve(Kept, arguments=["--supervised"]) as served, served.guest(channel=True) as guest:
        guest.do(out=[b"set 50"], in_=[4])
        assert level(guest.wait_config_change()) == 50
        kill_master(served)
        guest.do(out=[b"x"], in_=[4])
        assert level(guest.config()) == 50


def test_a_master_that_follows_another_has_the_answers() -> None:
    with serve(Selects, arguments=["--supervised"]) as served:
        with served.guest(queues=2) as guest:
            assert select(guest, 0x11, 5) == b"\5" * 5
            kill_master(served)
            assert selected(guest) == b"\5" * 5
            assert select(guest, 1) == b"a name"


def kill_master(served: Served) -> None:
    master, after = served.status().pid, len(served.lines)
    os.kill(master, signal.SIGKILL)
    served.wait_for_line("went on with the session of the last master", after=after)


def test_another_worker_than_queue_0s_has_nothing_to_say() -> None:
    with serve(Elsewhere) as served, served.guest(queues=2) as guest:
        guest.do(1, out=[b"set 5"], in_=[4])
        served.wait_for_line("RuntimeError: config_changed is for the worker of queue 0")
        assert level(guest.config()) == Level.FIRST
