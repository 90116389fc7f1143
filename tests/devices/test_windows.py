"""Shared memory: a device maps files into regions of the guest's, by the front-end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices.windows import PAGES, AwaitedWindows, Windows
from vuproc.fd import Fd
from vuproc.mapping import PAGE
from vuproc.spec.vhost_user import (
    BACK_END,
    MMAP,
    U64,
    BackendRequest,
    ProtocolFeature,
)
from vuproc.testing.channel import BackEndChannel, wait_readable
from vuproc.testing.guest import Guest
from vuproc.testing.serve import Served, serve
from vuproc.testing.shmem import SharedRegions
from vuproc.vhost_user.wire import Message, Receiver, encode, reply, send

MAP, UNMAP = BackendRequest.SHMEM_MAP, BackendRequest.SHMEM_UNMAP
ANSWER = 200
"""Bytes for the device's words."""
BOUND_S = 30.0
HELD = b"a ring is to stop, or memory to change"

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def served() -> Iterator[Served]:
    with serve(Windows) as served:
        yield served


@pytest.fixture
def guest(served: Served) -> Iterator[Guest]:
    with served.guest(queues=2, channel=True) as guest:
        guest.front_end.get_shmem_config()
        yield guest


def channel_of(guest: Guest) -> BackEndChannel:
    assert guest.front_end.channel is not None
    return guest.front_end.channel


def regions(guest: Guest) -> SharedRegions:
    return channel_of(guest).regions


def heard(guest: Guest) -> tuple[int, int, int, int]:
    """The device's next message, which is carried out: number, region, page and pages."""
    message = channel_of(guest).receive()
    assert message is not None
    fields = message.fields()
    return message.request, fields["shmid"], fields["shm_offset"] // PAGE, fields["len"] // PAGE


def say(guest: Guest, words: str, queue: int = 0) -> tuple[int, int]:
    return guest.submit(queue, out=[words.encode()], in_=[ANSWER])


def say_and_wait(guest: Guest, words: str) -> tuple[int, int]:
    """The same, until the front-end is asked; it does not look yet."""
    token = say(guest, words)
    assert wait_readable(channel_of(guest).socket, time.monotonic() + BOUND_S)
    return token


def answer(guest: Guest, token: tuple[int, int]) -> bytes:
    done = guest.wait(token)
    return done.data[0][: done.written]


def do(guest: Guest, words: str) -> bytes:
    """One thing that the front-end is asked, and does or refuses."""
    token = say(guest, words)
    heard(guest)
    return answer(guest, token)


@pytest.mark.proves(
    "GET_SHMEM_CONFIG",
    "BACKEND_SHMEM_MAP",
    "BACKEND_SHMEM_UNMAP",
    "PROTOCOL_F_SHMEM",
    "PROTOCOL_F_BACKEND_SEND_FD",
    front_end="built-in",
)
@pytest.mark.parametrize("device", [Windows, AwaitedWindows])
def test_what_is_mapped_is_seen_written_to_and_taken_away(device: type[Windows]) -> None:
    with serve(device) as served, served.guest(queues=2, channel=True) as guest:
        assert guest.front_end.get_shmem_config() == {0: PAGES * PAGE, 200: 2 * PAGE}
        assert do(guest, "map 0 1 2 a") == b"done"
        assert do(guest, "map 200 0 1 W") == b"done"
        assert regions(guest).read(0, PAGE, 2 * PAGE) == b"a" * (2 * PAGE)
        with pytest.raises(TypeError):
            regions(guest).write(0, PAGE, b"x")
        regions(guest).write(200, 10, b"theirs")
        assert regions(guest).read(200, 9, 8) == b"WtheirsW"
        assert do(guest, "unmap 0 1 2") == b"done"
        assert len(regions(guest)) == 1
        # The same place again, in the same session.
        assert do(guest, "map 0 2 1 b") == b"done"
        assert regions(guest).read(0, 2 * PAGE, 1) == b"b"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("map 0 2 1 b", b"0x1000+0x2000 is mapped in region 0 already"),
        ("map 0 0 2 b", b"0x1000+0x2000 is mapped in region 0 already"),
        ("unmap 0 1 1", b"0x1000+0x1000 is no mapping of region 0"),
        ("unmap 0 2 1", b"0x2000+0x1000 is no mapping of region 0"),
    ],
)
def test_what_cannot_be_is_refused_before_it_is_sent(guest: Guest, words: str, why: bytes) -> None:
    assert do(guest, "map 0 1 2 a") == b"done"
    assert answer(guest, say(guest, words)) == why
    assert channel_of(guest).receive(0.0) is None


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("map 1 0 1 a", "there is no shared memory region 1"),
        (f"map 0 {PAGES} 1 a", "is not in shared memory region 0"),
        ("map 0 0 0 a", "is not in shared memory region 0"),
        (f"unmap 0 0 {PAGES + 1}", "is not in shared memory region 0"),
        ("unmap 0 -1 1", "is not in shared memory region 0"),
    ],
)
def test_a_place_that_is_not_there_is_the_authors_mistake(
    served: Served, guest: Guest, words: str, why: str
) -> None:
    guest.do(0, out=[words.encode()], in_=[ANSWER])
    served.wait_for_line(why)
    assert channel_of(guest).receive(0.0) is None


def test_a_file_that_is_too_short_is_the_authors_mistake() -> None:
    device = Windows()
    with Fd(os.memfd_create("short", os.MFD_CLOEXEC)) as file:
        os.ftruncate(file.fileno(), PAGE)
        with pytest.raises(ValueError, match="of a file with 0x1000"):
            device.shmem_map(0, 0, file, PAGE, PAGE)
        with pytest.raises(ValueError, match="is not one of a page"):
            device.shmem_map(0, 0, file, 1, PAGE)


def test_a_front_end_that_refuses_is_believed(guest: Guest) -> None:
    regions(guest).sizes.clear()
    assert do(guest, "map 0 1 2 a") == b"the front-end refused"
    guest.front_end.get_shmem_config()
    assert do(guest, "map 0 1 2 a") == b"done"


# Both wait for each other.


@pytest.mark.parametrize("device", [Windows, AwaitedWindows])
def test_a_ring_stops_though_a_request_waits_for_the_front_end(device: type[Windows]) -> None:
    """The front-end answers nothing on the channel while it waits for the stop."""
    with serve(device) as served, served.guest(queues=2, channel=True) as guest:
        guest.front_end.get_shmem_config()
        worker = served.status().queues[0].pid
        token = say_and_wait(guest, "map 0 1 2 a")
        guest.stop_queue(0)
        assert answer(guest, token) == HELD
        assert served.status().queues[0].pid == worker
        # It does so now, and what nobody knows of is taken away.
        assert heard(guest) == (MAP, 0, 1, 2)
        assert heard(guest) == (UNMAP, 0, 1, 2)
        assert len(regions(guest)) == 0
        guest.start_queue(0)
        assert do(guest, "map 0 1 2 b") == b"done"
        assert regions(guest).read(0, PAGE, 1) == b"b"


def test_a_front_end_may_ask_us_before_it_answers(guest: Guest) -> None:
    token = say_and_wait(guest, "map 0 1 2 a")
    guest.front_end.request("GET_FEATURES")
    guest.front_end.set_memory(guest.ram.regions)
    assert answer(guest, token) == HELD
    token = say(guest, "map 0 4 1 b")
    guest.front_end.request("GET_FEATURES")
    assert heard(guest) == (MAP, 0, 1, 2)
    # Nobody wants that any more, and what is wanted may be asked for before it is taken back.
    assert {heard(guest), heard(guest)} == {(MAP, 0, 4, 1), (UNMAP, 0, 1, 2)}
    assert answer(guest, token) == b"done"
    assert regions(guest).read(0, 4 * PAGE, 1) == b"b"


def test_nothing_is_sent_while_no_ring_runs(guest: Guest) -> None:
    token = say_and_wait(guest, "map 0 1 2 a")
    guest.stop_queue(0)
    assert answer(guest, token) == HELD
    guest.stop_queue(1)
    assert heard(guest) == (MAP, 0, 1, 2)
    guest.front_end.request("GET_FEATURES")
    assert channel_of(guest).receive(0.0) is None
    guest.start_queue(1)
    assert heard(guest) == (UNMAP, 0, 1, 2)


# What outlives what.


def test_mappings_outlive_the_worker_and_the_master() -> None:
    with (
        serve(Windows, arguments=("--supervised",)) as served,
        served.guest(queues=2, channel=True) as guest,
    ):
        guest.front_end.get_shmem_config()
        assert do(guest, "map 0 1 2 a") == b"done"
        served.wait_worker(other_than=served.kill_worker(0))
        assert answer(guest, say(guest, "known")) == b"0:1"
        before = served.status()
        os.kill(before.pid, signal.SIGKILL)
        # The next master has a worker of its own: the last one's does not begin anything.
        served.wait_worker(other_than=before.queues[0].pid)
        assert answer(guest, say(guest, "known")) == b"0:1"
        assert regions(guest).read(0, PAGE, 1) == b"a"
        assert answer(guest, say(guest, "map 0 2 1 b")).endswith(b"mapped in region 0 already")
        assert do(guest, "unmap 0 1 2") == b"done"


def test_what_a_dead_worker_never_heard_of_is_taken_away(served: Served, guest: Guest) -> None:
    say(guest, "map 0 1 2 a")
    message = unanswered(guest)
    served.wait_worker(other_than=served.kill_worker(0))
    assert regions(guest).map(message.fields(), message.fds[0])
    say_back(guest, message, 0)
    # The request is run again, by another worker, once its place is empty.
    assert heard(guest) == (UNMAP, 0, 1, 2)
    assert heard(guest) == (MAP, 0, 1, 2)
    assert len(regions(guest)) == 1


def test_a_master_that_dies_before_the_answer_has_it_taken_away() -> None:
    with (
        serve(Windows, arguments=("--supervised",)) as served,
        served.guest(queues=2, channel=True) as guest,
    ):
        guest.front_end.get_shmem_config()
        say(guest, "map 0 1 2 a")
        message = unanswered(guest)
        assert regions(guest).map(message.fields(), message.fds[0])
        message.close()
        os.kill(served.status().pid, signal.SIGKILL)
        assert heard(guest) == (UNMAP, 0, 1, 2)
        assert heard(guest) == (MAP, 0, 1, 2)


def test_a_reset_empties_everything(guest: Guest) -> None:
    assert do(guest, "map 0 1 2 a") == b"done"
    guest.set_status(0)
    assert len(regions(guest)) == 0
    guest.front_end.set_features(guest.front_end.features)
    guest.start_queue(0)
    assert do(guest, "map 0 1 2 b") == b"done"
    assert regions(guest).read(0, PAGE, 1) == b"b"


# A hostile front-end.


def unanswered(guest: Guest) -> Message:
    """The device's next message, which is the test's to answer; and to close."""
    channel = channel_of(guest)
    receiver = Receiver(channel.socket, table=BACK_END)
    while (message := receiver.receive()) is None:
        pass
    return message


def say_back(guest: Guest, message: Message, value: int, fds: tuple[Fd, ...] = ()) -> None:
    send(channel_of(guest).socket, reply(message, U64.pack(value=value)), fds)
    message.close()


@pytest.mark.parametrize("value", [1, 1 << 63])
def test_a51_any_number_but_0_is_a_refusal(guest: Guest, value: int) -> None:
    token = say(guest, "map 0 1 2 a")
    say_back(guest, unanswered(guest), value)
    assert answer(guest, token) == b"the front-end refused"


def test_a51_an_answer_with_descriptors_leaves_none(served: Served, guest: Guest) -> None:
    files = []
    for _ in range(20):
        token = say(guest, "map 0 1 2 a")
        say_back(guest, unanswered(guest), 1, (guest.ram.regions[0].fd,) * 3)
        assert answer(guest, token) == b"the front-end refused"
        files.append(len(os.listdir(f"/proc/{served.pid}/fd")))
    assert files[-1] <= files[0]


@pytest.mark.parametrize(
    "payload", [b"", bytes(4), bytes(MMAP.size)], ids=["none", "short", "the request's"]
)
def test_a51_an_answer_that_is_no_number_is_a_refusal(guest: Guest, payload: bytes) -> None:
    token = say(guest, "map 0 1 2 a")
    message = unanswered(guest)
    send(channel_of(guest).socket, encode(MAP, payload, flags=5))
    message.close()
    assert answer(guest, token) == b"the front-end refused"


def test_a51_an_answer_to_something_else_ends_the_channel(guest: Guest) -> None:
    token = say(guest, "map 0 1 2 a")
    message = unanswered(guest)
    send(channel_of(guest).socket, encode(UNMAP, U64.pack(value=0), flags=5))
    message.close()
    assert answer(guest, token) == b"the back-end channel has ended"
    # On another channel what may be there is taken away first.
    guest.front_end.open_channel()
    guest.front_end.get_shmem_config()
    token = say(guest, "map 0 1 2 b")
    assert heard(guest) == (UNMAP, 0, 1, 2)
    assert heard(guest) == (MAP, 0, 1, 2)
    assert answer(guest, token) == b"done"


def test_a51_a_front_end_that_never_answers_stops_nobody(served: Served, guest: Guest) -> None:
    guest.do(0, out=[b"many 200"], in_=[ANSWER])
    token = say(guest, "map 0 1 2 a")
    assert answer(guest, token) == b"64 mappings are asked for already"
    guest.stop_queue(0)
    guest.start_queue(0)
    assert answer(guest, say(guest, "known")) == b""


def test_without_the_features_nothing_is_sent() -> None:
    few = ProtocolFeature.SHMEM | ProtocolFeature.BACKEND_SEND_FD | ProtocolFeature.BACKEND_REQ
    with (
        serve(Windows) as served,
        served.guest(queues=2, channel=True, protocol_features=few) as guest,
    ):
        says = answer(guest, say(guest, "map 0 1 2 a"))
        assert says.startswith(b"the front-end has not negotiated SHMEM")


def test_regions_that_cannot_be_are_found_by_the_check(tmp_path: Path) -> None:
    from vuproc.device_file.device_class import class_problems

    class Odd(Windows):
        shared_memory = {256: PAGE}  # noqa: RUF012

    class Short(Windows):
        shared_memory = {0: 100}  # noqa: RUF012

    assert any("an id is a number from 0 to 255" in each for each in class_problems(Odd))
    assert any("a size is a multiple of" in each for each in class_problems(Short))
