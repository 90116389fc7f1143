"""Catalogue rows F1 to F11: descriptors that are no use, saturated or gone, and full resources."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import processes
from tests.conformance.checks import (
    BROKEN_WITHIN_S,
    broken,
    serves_newcomer,
    serving,
    until,
    works,
)
from vuproc.errors import ProtocolError
from vuproc.fd import Fd
from vuproc.spec.blk import BlkStatus, BlkType
from vuproc.testing.bell import Bell, BellKind
from vuproc.testing.block import Block, outcome
from vuproc.testing.errors import Refused
from vuproc.testing.job import Job
from vuproc.testing.serve import Served, serve

F_SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h; Python's fcntl does not have it
SATURATED = 0xFFFFFFFFFFFFFFFE  # the most that an eventfd holds; one more write blocks
POLLED = Job(count=500, depth=8, block_size=512, span=1 << 20, poll=True)


def test_f01_no_descriptor_numbers_left(disk: Served) -> None:
    """Newcomers are turned away or wait; once there is room again they are served."""
    limits = resource.prlimit(disk.pid, resource.RLIMIT_NOFILE)
    with disk.guest(queues=2) as guest:
        used = processes.files_of(disk.pid).total()
        resource.prlimit(disk.pid, resource.RLIMIT_NOFILE, (used, limits[1]))
        try:
            works(guest)
            # Taken without one: the message's own descriptor has no number to come under.
            bell = Bell()
            with pytest.raises((Refused, ProtocolError)):
                guest.front_end.request("SET_VRING_CALL", [bell.theirs], value=0)
            bell.close()
        finally:
            resource.prlimit(disk.pid, resource.RLIMIT_NOFILE, limits)
    serves_newcomer(disk)


def test_f01_no_descriptor_number_for_a_connection(disk: Served) -> None:
    limits = resource.prlimit(disk.pid, resource.RLIMIT_NOFILE)
    with disk.connect() as front_end:
        front_end.request("GET_FEATURES")
        used = processes.files_of(disk.pid).total()
    # What the connection held is taken away before another comes.
    resource.prlimit(disk.pid, resource.RLIMIT_NOFILE, (used - 1, limits[1]))
    try:
        before = processes.cpu_seconds(disk.pid)
        for _ in range(5):
            with disk.connect() as turned_away:
                with contextlib.suppress(ProtocolError):
                    turned_away.request("GET_FEATURES")
        assert processes.cpu_seconds(disk.pid) - before < 1.0
    finally:
        resource.prlimit(disk.pid, resource.RLIMIT_NOFILE, limits)
    serves_newcomer(disk)


NO_BELLS: dict[str, Callable[[], int]] = {
    "dev_zero": lambda: os.open("/dev/zero", os.O_RDWR),
    "dev_null": lambda: os.open("/dev/null", os.O_RDWR),
    "regular_file": lambda: os.memfd_create("no-bell"),
    "directory": lambda: os.open("/", os.O_RDONLY),
    "path_only": lambda: os.open("/dev/null", os.O_PATH),
}


@pytest.mark.parametrize("message", ["SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"])
@pytest.mark.parametrize("make", NO_BELLS.values(), ids=NO_BELLS.keys())
def test_f04_descriptor_that_is_no_eventfd_pipe_or_socket(
    disk: Served, message: str, make: Callable[[], int]
) -> None:
    with disk.guest(queues=2) as guest, Fd(make()) as fd:
        with pytest.raises(Refused):
            guest.front_end.request(message, [fd], value=0)
        works(guest)


@pytest.mark.parametrize("kind", [BellKind.PIPE, BellKind.SOCKET])
def test_f05_kick_descriptor_closed_at_its_other_end(disk: Served, kind: BellKind) -> None:
    """Ready for ever, and nothing to read: that ring is broken and nobody spins."""
    with disk.guest(queues=2, kick=kind) as guest:
        works(guest)
        victim = guest.queues[0]
        assert victim.kick_bell is not None
        victim.kick_bell.close()
        assert victim.err_bell.wait(BROKEN_WITHIN_S)
        assert until(lambda: guest.status() & 0x40)
        _nobody_spins(disk)
        works(guest, 1)
        guest.reset()
        works(guest)


def test_f05_kick_descriptor_closed_at_its_other_end_before_it_came(disk: Served) -> None:
    with disk.guest(queues=1) as guest:
        queue = guest.make_queue(1)
        guest.configure_queue(queue)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.close(writer)
        with Fd(reader) as fd:
            guest.front_end.request("SET_VRING_KICK", [fd], value=1)
        guest.enable_queue(1)
        assert queue.err_bell.wait(BROKEN_WITHIN_S)
        _nobody_spins(disk)
        works(guest, 0)
    serves_newcomer(disk)


BELLS = ["SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR", "SET_BACKEND_REQ_FD"]


@pytest.mark.parametrize("message", BELLS)
def test_f05_the_control_socket_itself(disk: Served, message: str) -> None:
    """Who takes it holds the connection open and never sees its end."""
    fields: dict[str, Any] = {"value": 0} if message in BELLS[:3] else {}
    with disk.guest(queues=2) as guest:
        with Fd(os.dup(guest.front_end.socket.fileno())) as fd, pytest.raises(Refused):
            guest.front_end.request(message, [fd], **fields)
        works(guest)
    serves_newcomer(disk)


@pytest.mark.parametrize("message", BELLS)
def test_f05_listening_socket(disk: Served, message: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"value": 0} if message in BELLS[:3] else {}
    with disk.guest(queues=2) as guest, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "listener"))
        listener.listen()
        with Fd(os.dup(listener.fileno())) as fd, pytest.raises(Refused):
            guest.front_end.request(message, [fd], **fields)
        works(guest)


def test_f06_call_eventfd_that_is_saturated(disk: Served) -> None:
    """Nobody reads it and one write more would block for ever: the queue goes on without it."""
    with disk.guest(queues=2) as guest:
        queue = guest.queues[0]
        os.write(queue.call_bell.ours.fileno(), SATURATED.to_bytes(8, "little"))
        job = Job(count=2000, depth=8, block_size=512, span=1 << 20, poll=True)
        stats = guest.load(0, job)
        assert (stats.completed, stats.failed) == (2000, 0)
        assert guest.stop_queue(0) == 2000
        works(guest, 1)
        assert queue.call_bell.wait(0)
        guest.start_queue(0)
        works(guest)


@pytest.mark.parametrize("kind", [BellKind.PIPE, BellKind.SOCKET])
def test_f06_call_pipe_or_socket_that_is_never_read(disk: Served, kind: BellKind) -> None:
    with disk.guest(queues=2, call=kind) as guest:
        queue = guest.queues[0]
        _fill(queue.call_bell.theirs)
        stats = guest.load(0, POLLED)
        assert (stats.completed, stats.failed) == (500, 0)
        works(guest, 1)
        assert guest.stop_queue(0) == 500


def test_f06_call_saturated_for_every_queue_and_the_master_answers(disk: Served) -> None:
    with disk.guest(queues=4) as guest:
        for queue in guest.queues.values():
            os.write(queue.call_bell.ours.fileno(), SATURATED.to_bytes(8, "little"))
            queue.submit_many([([Block.header(BlkType.IN)], [512, 1])] * 10)
        # What a worker had not seen yet stays offered; what it had is completed.
        for index, queue in guest.queues.items():
            assert guest.stop_queue(index) == queue.split.used_index
    serves_newcomer(disk)


def test_f07_flags_of_received_descriptors_are_left_alone(disk: Served) -> None:
    """They belong to the open file, so the front-end would see the change."""
    kinds = [(BellKind.EVENTFD, BellKind.EVENTFD), (BellKind.PIPE, BellKind.SOCKET)]
    for call, kick in kinds:
        with disk.guest(queues=1, call=call, kick=kick) as guest:
            works(guest)
            queue = guest.queues[0]
            assert queue.kick_bell is not None
            channel = guest.front_end.open_channel()
            owners = [
                queue.call_bell.theirs,
                queue.kick_bell.theirs,
                queue.err_bell.theirs,
                guest.ram.regions[0].fd,
            ]
            for fd in owners:
                assert not fcntl.fcntl(fd.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK
            assert not fcntl.fcntl(channel.socket.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK


@pytest.mark.parametrize("kind", [BellKind.PIPE, BellKind.SOCKET])
def test_f08_call_descriptor_closed_at_its_other_end(disk: Served, kind: BellKind) -> None:
    """EPIPE is counted and the queue goes on; nobody dies of SIGPIPE."""
    with disk.guest(queues=2, call=kind) as guest:
        workers = serving(disk)
        queue = guest.queues[0]
        queue.call_bell.close()
        # It asks for calls all the while.
        stats = guest.load(0, POLLED)
        assert (stats.completed, stats.failed) == (500, 0)
        assert serving(disk) == workers
        works(guest, 1)
        queue.call_bell = Bell(kind)
        guest.front_end.request("SET_VRING_CALL", [queue.call_bell.theirs], value=0)
        works(guest)


def test_f08_call_descriptor_that_cannot_be_written(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        with Fd(reader) as read_end, Fd(writer):
            with contextlib.suppress(Refused):
                guest.front_end.request("SET_VRING_CALL", [read_end], value=0)
            stats = guest.load(0, POLLED)
            assert (stats.completed, stats.failed) == (500, 0)
        queue = guest.queues[0]
        guest.front_end.request("SET_VRING_CALL", [queue.call_bell.theirs], value=0)
        works(guest)


def test_f09_error_descriptor_that_is_full(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        queue = guest.queues[0]
        os.write(queue.err_bell.ours.fileno(), SATURATED.to_bytes(8, "little"))
        queue.split.offer_head(0xFFFF)
        queue.ring.publish()
        queue.kick()
        assert until(lambda: guest.status() & 0x40)
        broken(guest)


def test_f10_log_of_a_hostile_guest_is_bounded(own_disk: Served) -> None:
    before, began = len(own_disk.lines), time.monotonic()
    with own_disk.guest(queues=2) as guest:
        for _ in range(2000):
            with pytest.raises(Refused):
                guest.front_end.request("SET_VRING_NUM", index=0, num=3)
        for _ in range(100):
            guest.queues[0].split.offer_head(0xFFFF)
            guest.queues[0].ring.publish()
            guest.queues[0].kick()
            assert guest.queues[0].err_bell.wait(BROKEN_WITHIN_S)
            guest.reset()
        works(guest)
    serves_newcomer(own_disk)
    # Each of the three or four kinds of line, 20 of them each five seconds.
    periods = 2 + (time.monotonic() - began) / 5
    assert len(own_disk.lines) - before < 100 * periods


@pytest.fixture
def sealed_image() -> Iterator[str]:
    """A file that can be opened for writing and refuses every write."""
    with Fd(os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)) as fd:
        os.ftruncate(fd.fileno(), 1 << 20)
        fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
        yield f"/proc/{os.getpid()}/fd/{fd.fileno()}"


def test_f11_image_that_refuses_writes(sealed_image: str) -> None:
    with serve({"type": "blk", "image": sealed_image}) as served, served.guest() as guest:
        block = Block(guest)
        for _ in range(3):
            assert block.request(BlkType.OUT, 0, [bytes(512)]).status == BlkStatus.IOERR
        assert block.read(0, 512) == bytes(512)


def test_f11_image_truncated_while_it_is_served(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(os.urandom(1 << 20))
    with serve({"type": "blk", "image": str(image), "queues": 2}) as served:
        with served.guest(queues=2) as guest:
            block, content = Block(guest), image.read_bytes()
            assert block.read(8, 4096) == content[4096:8192]
            os.truncate(image, 8192)
            answer = block.request(BlkType.IN, 16, in_=[4096])
            assert answer.status == BlkStatus.IOERR
            assert block.read(8, 4096, queue=1) == content[4096:8192]
        serves_newcomer(served)


def test_f03_request_as_large_as_the_memory_allows(disk: Served) -> None:
    """What the guest asks for is never allocated on the host's side."""
    with disk.guest(queues=1, memory=64 << 20) as guest:
        works(guest)
        before = max(map(processes.resident, serving(disk)))
        token = guest.submit(0, [Block.header(BlkType.IN)], [15 << 20, 1])
        assert outcome(guest.wait(token)).status == BlkStatus.OK
        after = max(map(processes.resident, serving(disk)))
        assert after - before < 4 << 20


def _nobody_spins(served: Served) -> None:
    """No process uses the processor while a descriptor that nobody rings stays silent."""
    members = processes.family(served.pid)
    before = {pid: processes.cpu_seconds(pid) for pid in members}
    silent = Bell()
    assert not silent.wait(0.5)
    silent.close()
    for pid in members:
        assert processes.cpu_seconds(pid) - before[pid] < 0.25, f"process {pid} spins"


def _fill(fd: Fd) -> None:
    """Write until nothing more fits, and leave the descriptor blocking as it was."""
    os.set_blocking(fd.fileno(), False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd.fileno(), bytes(4096))
    os.set_blocking(fd.fileno(), True)
