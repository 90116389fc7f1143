"""Shared objects: between a device and its front-end, each of which may ask the other."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

import pytest

from tests.devices.objects import CONTENT, MANY, Objects
from vuproc.fd import Fd
from vuproc.pool.shared_objects import OWN_FILES_MAX
from vuproc.spec.vhost_user import SHARED, BackendRequest, FrontendRequest, ProtocolFeature
from vuproc.testing.channel import BackEndChannel, wait_readable
from vuproc.testing.guest import Guest
from vuproc.testing.serve import Served, serve
from vuproc.vhost_user.wire import encode

ADD, REMOVE = BackendRequest.SHARED_OBJECT_ADD, BackendRequest.SHARED_OBJECT_REMOVE
LOOKUP = BackendRequest.SHARED_OBJECT_LOOKUP

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def served() -> Iterator[Served]:
    with serve(Objects) as served:
        yield served


def say(guest: Guest, word: bytes, uuid: UUID, queue: int = 0) -> None:
    guest.do(queue, out=[word + uuid.bytes])


def channel_of(guest: Guest) -> BackEndChannel:
    assert guest.front_end.channel is not None
    return guest.front_end.channel


def heard(guest: Guest) -> tuple[int, UUID]:
    """The device's next message about an object."""
    message = channel_of(guest).receive()
    assert message is not None
    return message.request, UUID(bytes=message.fields()["uuid"])


def content_of(file: Fd | None) -> bytes | None:
    if file is None:
        return None
    with file:
        return os.pread(file.fileno(), 100, 0)


@contextmanager
def a_file(content: bytes) -> Iterator[Fd]:
    with Fd(os.memfd_create("theirs", os.MFD_CLOEXEC)) as file:
        os.write(file.fileno(), content)
        yield file


@pytest.mark.proves(
    "GET_SHARED_OBJECT",
    "BACKEND_SHARED_OBJECT_ADD",
    "BACKEND_SHARED_OBJECT_REMOVE",
    "PROTOCOL_F_SHARED_OBJECT",
    front_end="built-in",
)
def test_an_object_is_announced_had_and_taken_back(served: Served) -> None:
    uuid = uuid4()
    with served.guest(channel=True) as guest:
        assert guest.front_end.get_shared_object(uuid) is None
        say(guest, b"share", uuid)
        assert heard(guest) == (ADD, uuid)
        assert content_of(guest.front_end.get_shared_object(uuid)) == CONTENT
        assert content_of(guest.front_end.get_shared_object(uuid)) == CONTENT
        say(guest, b"unshare", uuid)
        assert heard(guest) == (REMOVE, uuid)
        assert guest.front_end.get_shared_object(uuid) is None


def test_a_file_that_the_worker_makes_is_shared_too(served: Served) -> None:
    uuid, other = uuid4(), uuid4()
    with served.guest(channel=True) as guest:
        say(guest, b"make", uuid)
        assert heard(guest) == (ADD, uuid)
        assert content_of(guest.front_end.get_shared_object(uuid)) == uuid.bytes
        # The same UUID may stand for another file, of either kind, and does at once.
        say(guest, b"share", uuid)
        assert heard(guest) == (ADD, uuid)
        assert content_of(guest.front_end.get_shared_object(uuid)) == CONTENT
        say(guest, b"make", uuid)
        assert heard(guest) == (ADD, uuid)
        assert content_of(guest.front_end.get_shared_object(uuid)) == uuid.bytes
        say(guest, b"make", other)
        assert heard(guest) == (ADD, other)
        before = files_of(served.pid)["made"]
        say(guest, b"unshare", uuid)
        assert heard(guest) == (REMOVE, uuid)
        assert guest.front_end.get_shared_object(uuid) is None
        assert files_of(served.pid)["made"] == before - 1
        assert content_of(guest.front_end.get_shared_object(other)) == other.bytes


def test_files_that_workers_make_are_bounded(served: Served) -> None:
    first = UUID(int=1 << 64)
    with served.guest(channel=True) as guest:
        say(guest, b"many", first)
        added = [heard(guest) for _ in range(OWN_FILES_MAX)]
        assert {request for request, _ in added} == {ADD}
        served.wait_for_line(f"{OWN_FILES_MAX} files that were made by a worker are shared already")
        assert files_of(served.pid)["made"] == OWN_FILES_MAX
        refused = UUID(int=first.int + MANY - 1)
        assert guest.front_end.get_shared_object(refused) is None


def files_of(pid: int) -> Counter[str]:
    """How many descriptors the master has of each memfd, by name."""
    found: Counter[str] = Counter()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            name = re.match(r"/memfd:(\w+)", os.readlink(entry.path))
        except FileNotFoundError:
            continue  # closed meanwhile
        if name is not None:
            found[name[1]] += 1
    return found


def test_another_front_end_hears_of_what_is_shared_once_a_ring_runs(served: Served) -> None:
    uuid = uuid4()
    with served.guest(channel=True) as guest:
        say(guest, b"share", uuid)
        assert heard(guest) == (ADD, uuid)
    with served.guest(channel=True, start=False) as guest:
        guest.setup()
        guest.front_end.request("GET_FEATURES")
        assert channel_of(guest).receive(0.0) is None
        guest.start_queue(0)
        assert heard(guest) == (ADD, uuid)


@pytest.mark.proves("BACKEND_SHARED_OBJECT_LOOKUP", front_end="built-in")
def test_objects_of_others_are_looked_up(served: Served) -> None:
    known, unknown = uuid4(), uuid4()
    with served.guest(channel=True) as guest, a_file(b"theirs") as file:
        channel_of(guest).objects[known] = file
        for uuid, found in ((known, "theirs"), (unknown, "nothing")):
            say(guest, b"find", uuid)
            assert heard(guest) == (LOOKUP, uuid)
            served.wait_for_line(f"found as {uuid}: {found}")


def test_a_front_end_may_ask_us_before_it_answers_what_we_ask(served: Served) -> None:
    """As QEMU does if the object is another vhost-user device's: both orders, and no deadlock."""
    ours, theirs = uuid4(), uuid4()
    with served.guest(channel=True) as guest, a_file(b"theirs") as file:
        say(guest, b"share", ours)
        assert heard(guest) == (ADD, ours)
        say(guest, b"find", theirs)
        # The question is there, and unanswered, while we have one of our own.
        assert wait_readable(channel_of(guest).socket, time.monotonic() + 30.0)
        assert content_of(guest.front_end.get_shared_object(ours)) == CONTENT
        channel_of(guest).objects[theirs] = file
        assert heard(guest) == (LOOKUP, theirs)
        served.wait_for_line(f"found as {theirs}: theirs")


def test_a_front_end_that_never_answers_stops_nobody(served: Served) -> None:
    with served.guest(channel=True) as guest:
        uuids = [uuid4() for _ in range(100)]
        for uuid in uuids:
            say(guest, b"find", uuid)
        guest.stop_queue(0)
        guest.start_queue(0)
        guest.front_end.open_channel()
        # The end of the channel on which they were asked is an answer, to as many as may be asked.
        served.wait_for_line(f"found as {uuids[0]}: nothing")
        served.wait_for_line("more than 64 objects are looked up at a time")


def test_objects_outlive_worker_and_master() -> None:
    uuid, made = uuid4(), uuid4()
    with (
        serve(Objects, arguments=("--supervised",)) as served,
        served.guest(channel=True) as guest,
    ):
        for word, each in ((b"share", uuid), (b"make", made)):
            say(guest, word, each)
            assert heard(guest) == (ADD, each)
        served.kill_worker(0)
        assert content_of(guest.front_end.get_shared_object(uuid)) == CONTENT
        assert content_of(guest.front_end.get_shared_object(made)) == made.bytes
        os.kill(served.status().pid, signal.SIGKILL)
        assert content_of(guest.front_end.get_shared_object(uuid)) == CONTENT
        assert content_of(guest.front_end.get_shared_object(made)) == made.bytes
        say(guest, b"unshare", uuid)
        while heard(guest) != (REMOVE, uuid):
            pass


def test_what_is_shared_is_checked_where_the_author_sees_it(served: Served) -> None:
    with served.guest(queues=2, channel=True) as guest:
        say(guest, b"share", UUID(int=0))
        served.wait_for_line("ValueError: the nil UUID is no object's")
        say(guest, b"share", uuid4(), queue=1)
        served.wait_for_line("RuntimeError: shared objects are for the worker of queue 0")


def test_a50_an_object_that_is_not_named_is_not_there(served: Served) -> None:
    """QEMU 10.2 sends no UUID."""
    with served.guest(channel=True) as guest:
        front_end = guest.front_end
        for payload in (b"", bytes(16), SHARED.pack(uuid=uuid4().bytes)):
            front_end.send(encode(FrontendRequest.GET_SHARED_OBJECT, payload))
            answer = front_end.receive()
            assert (answer.payload, answer.fds) == (b"", ())


def test_it_is_offered_for_a_device_that_shares() -> None:
    class_feature = ProtocolFeature.SHARED_OBJECT
    with serve(Objects) as served, served.connect() as front_end:
        assert front_end.request("GET_PROTOCOL_FEATURES")["value"] & class_feature
    with serve({"type": "blk", "ram": "1MiB"}) as served, served.connect() as front_end:
        assert not front_end.request("GET_PROTOCOL_FEATURES")["value"] & class_feature
