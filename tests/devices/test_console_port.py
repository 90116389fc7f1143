"""One port of a console in its worker, with a driver and a loop that are made up."""

from __future__ import annotations

import logging
import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from vuproc.devices.console_ends import End, open_end
from vuproc.devices.console_port import MOST_AT_ONCE, Port, PortState
from vuproc.devices.console_spool import SPOOL_BYTES
from vuproc.fd import Fd

pytestmark = pytest.mark.timeout(60)

RECEIVE, TRANSMIT = 0, 1


class Killed(BaseException):
    """The worker is dead."""


class Sent:
    """A request, or (with room) a buffer."""

    def __init__(self, head: int, data: bytes = b"", room: int = 0) -> None:
        self.head, self.data, self.room = head, data, room
        self.at, self.came, self.finished = 0, b"", False

    readable = property(lambda self: len(self.data) - self.at)
    readable_total = property(lambda self: len(self.data))
    writable = property(lambda self: self.room - len(self.came))

    def skip(self, count: int) -> None:
        self.at += count

    def read(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]

    def write(self, data: bytes) -> None:
        self.came += data

    def finish(self, _written: int) -> None:
        self.finished = True


class Timer:
    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def cancel(self) -> None:
        self.call = lambda: None


class Loop:
    """What a port asks of its device."""

    def __init__(self) -> None:
        self.log = logging.getLogger("test")
        self.queues: dict[int, list[Sent]] = {RECEIVE: [], TRANSMIT: []}
        self.before: frozenset[int] | None = frozenset()
        self.watched: dict[int, tuple[int, Callable[[], None]]] = {}
        self.soon: list[Callable[[], None]] = []
        self.timers: list[Timer] = []
        self.dropped = 0
        self.dies_after_publish = False

    def take(self, queue: int) -> Sent | None:
        return self.queues[queue].pop(0) if self.queues[queue] else None

    def publish(self, _queue: int) -> None:
        if self.dies_after_publish:
            raise Killed

    def unfinished(self, _queue: int) -> frozenset[int] | None:
        return self.before

    def watch(self, number: int, callback: Callable[[], None], *, write: bool) -> None:
        self.watched[number] = select.POLLOUT if write else select.POLLIN, callback

    def unwatch(self, file: Any) -> None:
        del self.watched[file if isinstance(file, int) else file.fileno()]

    def turn(self) -> None:
        """Call back for what is ready."""
        for number, (events, callback) in list(self.watched.items()):
            poller = select.poll()
            poller.register(number, events)
            if number in self.watched and poller.poll(0):
                callback()

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def call_later(self, _seconds: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(callback))
        return self.timers[-1]

    def count_dropped(self, _queue: int) -> None:
        self.dropped += 1


class Fixture:
    """What outlives workers, and a worker's port after the other."""

    def __init__(self, files: dict[str, Fd]) -> None:
        self.state = PortState()
        self.pipes = os.pipe2(os.O_NONBLOCK), os.pipe2(os.O_NONBLOCK)
        self.files = files
        self.ports: list[Port] = []

    def port(self, loop: Loop) -> Port:
        port = Port(
            loop,  # type: ignore[arg-type]
            0,
            "",
            self.state,
            End(self.files),
            self.pipes,
            lambda: None,
            console=True,
        )
        self.ports.append(port)
        return port

    def close(self) -> None:
        for port in self.ports:
            port.close()
        for file in self.files.values():
            file.close()
        for end in (*self.pipes[0], *self.pipes[1]):
            os.close(end)


@pytest.fixture
def made() -> Iterator[Callable[[dict[str, Fd]], Fixture]]:
    all_: list[Fixture] = []

    def make(files: dict[str, Fd]) -> Fixture:
        all_.append(Fixture(files))
        return all_[-1]

    yield make
    for each in all_:
        each.close()


def connected(port: Port) -> bool:
    return port.connected


def client(path: Path, port: Port, loop: Loop) -> socket.socket:
    """One who is connected, and accepted."""
    host = socket.socket(socket.AF_UNIX)
    host.connect(str(path))
    host.setblocking(False)
    loop.turn()
    assert port.connected
    return host


def test_what_the_driver_has_seen_counts_when_the_ring_starts(
    made: Callable[[dict[str, Fd]], Fixture], tmp_path: Path
) -> None:
    """Though it has nothing more to say, and the next ring knows nothing of it."""
    log = tmp_path / "log"
    fixture = made(open_end("file", str(log), "path"))
    first = Loop()
    port = fixture.port(first)
    first.queues[TRANSMIT].append(Sent(7, b"login: "))
    first.dies_after_publish = True
    with pytest.raises(Killed):
        port.transmit()
    fixture.port(Loop()).ring_started(TRANSMIT)
    assert log.read_bytes() == b"login: "


def test_what_the_driver_has_not_seen_is_settled_with_the_ring_that_knows(
    made: Callable[[dict[str, Fd]], Fixture], tmp_path: Path
) -> None:
    """It stops before its first turn, and the request comes again on the next one."""
    log = tmp_path / "log"
    fixture = made(open_end("file", str(log), "path"))
    first = Loop()
    port = fixture.port(first)
    first.queues[TRANSMIT].append(Sent(7, b"once"))
    first.dies_after_publish = True
    with pytest.raises(Killed):
        port.transmit()
    second = Loop()
    port = fixture.port(second)
    second.before = None  # behind an IOMMU: it is not there yet
    port.ring_started(TRANSMIT)
    second.before = frozenset({7})
    port.ring_stopping(TRANSMIT)
    second.before = frozenset()
    port.ring_started(TRANSMIT)
    second.queues[TRANSMIT].append(Sent(7, b"once"))
    port.transmit()
    assert log.read_bytes() == b"once"


def test_another_client_hears_what_one_that_did_not_listen_made_be_dropped(
    made: Callable[[dict[str, Fd]], Fixture], tmp_path: Path
) -> None:
    path, loop = tmp_path / "s", Loop()
    port = made(open_end("socket", str(path), "path")).port(loop)
    port.ring_started(TRANSMIT)
    deaf = client(path, port, loop)
    while not loop.timers:
        loop.queues[TRANSMIT].append(Sent(1, b"x" * SPOOL_BYTES))
        port.transmit()
    loop.timers[0].call()
    assert loop.dropped == 1
    deaf.close()
    loop.turn()
    with client(path, port, loop) as listening:
        loop.queues[TRANSMIT].append(Sent(1, b"heard"))
        port.transmit()
        assert listening.recv(64) == b"heard"


def test_nothing_is_dropped_of_a_console_that_goes_on_before_its_patience_ends(
    made: Callable[[dict[str, Fd]], Fixture], tmp_path: Path
) -> None:
    path, loop = tmp_path / "s", Loop()
    port = made(open_end("socket", str(path), "path")).port(loop)
    port.ring_started(TRANSMIT)
    sent, came = 0, 0
    with client(path, port, loop) as host:
        while not loop.timers:
            loop.queues[TRANSMIT].append(Sent(1, b"x" * SPOOL_BYTES))
            sent += SPOOL_BYTES
            port.transmit()
        while True:
            # The driver's kick is seen first, or the loop is late.
            try:
                came += len(host.recv(1 << 20))
            except BlockingIOError:
                if came == sent:
                    break
                port.transmit()
        loop.timers[0].call()
        loop.queues[TRANSMIT].append(Sent(1, b"y"))
        port.transmit()
        assert host.recv(64) == b"y"
    assert loop.dropped == 0


def test_a_long_request_that_was_dropped_takes_nothing_from_the_next(
    made: Callable[[dict[str, Fd]], Fixture], tmp_path: Path
) -> None:
    path, loop = tmp_path / "s", Loop()
    port = made(open_end("socket", str(path), "path")).port(loop)
    port.ring_started(TRANSMIT)
    with client(path, port, loop) as host:
        loop.queues[TRANSMIT].append(Sent(1, b"x" * 64 * SPOOL_BYTES))
        port.transmit()
        loop.timers[0].call()
        assert loop.dropped == 1
        with suppress(BlockingIOError):
            while True:
                host.recv(1 << 20)
                loop.turn()
        loop.queues[TRANSMIT].append(Sent(1, b"the next"))
        port.transmit()
        assert host.recv(64) == b"the next"


def test_a_driver_that_never_stops_leaves_the_others_their_turn(
    made: Callable[[dict[str, Fd]], Fixture],
) -> None:
    loop = Loop()
    port = made({}).port(loop)
    port.ring_started(TRANSMIT)
    loop.queues[TRANSMIT].extend(Sent(1, b"x") for _ in range(3 * MOST_AT_ONCE))
    port.transmit()
    port.transmit()
    assert len(loop.queues[TRANSMIT]) == MOST_AT_ONCE
    assert len(loop.soon) == 1
    loop.soon.pop()()
    assert not loop.queues[TRANSMIT]


def test_a_client_that_goes_while_the_guest_does_not_read_makes_room(
    made: Callable[[dict[str, Fd]], Fixture], tmp_path: Path
) -> None:
    path, loop = tmp_path / "s", Loop()
    port = made(open_end("socket", str(path), "path")).port(loop)
    port.listens = False
    host = client(path, port, loop)
    loop.turn()
    assert connected(port)  # it has not gone
    host.close()
    loop.turn()
    assert not connected(port)
    # One that has left something waits for the guest, without end or turns.
    with client(path, port, loop) as host:
        host.sendall(b"left")
    loop.turn()
    assert connected(port) and not loop.watched
    port.listens = True
    port.ring_started(RECEIVE)
    buffers = [Sent(head, room=64) for head in range(2)]
    loop.queues[RECEIVE].extend(buffers)
    port.receive()
    assert buffers[0].came == b"left" and not connected(port)


def test_a_disk_that_is_full_is_tried_again(made: Callable[[dict[str, Fd]], Fixture]) -> None:
    """/dev/full takes no splice(2) either."""
    loop = Loop()
    output = Fd(os.open("/dev/full", os.O_WRONLY))
    fixture = made({"output": output})
    port = fixture.port(loop)
    port.ring_started(TRANSMIT)
    loop.queues[TRANSMIT].append(Sent(1, b"x" * 5000))
    port.transmit()
    assert len(loop.timers) == 1
    read, write = os.pipe()
    os.dup2(write, output.fileno())
    os.close(write)
    loop.timers[0].call()
    assert os.read(read, 8192) == b"x" * 5000
    os.close(read)
