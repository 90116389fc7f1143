"""The socket device: a driver that sends packets by hand, and real programs of the host."""

from __future__ import annotations

import array
import fcntl
import itertools
import json
import os
import resource
import signal
import socket
import stat
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.devices.vsock_driver import (
    BUF_ALLOC,
    CID,
    Driver,
    Stream,
    connect,
    dial,
    line,
    listening,
    parsed,
)
from tests.devices.vsock_lives import Guest, Life
from vuproc.device_file.check import load
from vuproc.devices.vsock import Vsock, VsockOptions
from vuproc.devices.vsock_park import Park, parking
from vuproc.errors import ConfigErrors, FileRefused
from vuproc.spec.vsock import (
    BOTH,
    CONFIG,
    EVENT,
    EVENT_MESSAGE,
    HEADER,
    HOST_CID,
    RX,
    TRANSPORT_RESET,
    TX,
    Op,
    SeqFlag,
    Shutdown,
    VsockFeature,
)
from vuproc.spec.vsock import VsockType as Type
from vuproc.testing import Served, serve
from vuproc.testing.errors import NoCompletion, ServeFailed

pytestmark = pytest.mark.timeout(180)

LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
SEQPACKET = socket.SOCK_SEQPACKET
BUFFER = 64 << 10
FRAMES_MOST = 1000 + 5 * 4096 // 4
"""Packets that fill a buffer of 4 KiB, whatever there is in them."""
PORTS = itertools.count(5000)
Listen = Callable[..., tuple[socket.socket, int]]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vsock") / "vsock"


@pytest.fixture(scope="module")
def served(path: Path) -> Iterator[Served]:
    with serve({"type": "vsock", "path": str(path), "buffer": BUFFER}) as served:
        yield served
        assert not [text for text in served.lines if "ERROR" in text]


@pytest.fixture
def driver(served: Served) -> Iterator[Driver]:
    with served.guest(queues=3) as guest:
        yield Driver(guest)


@pytest.fixture
def listen(path: Path) -> Iterator[Listen]:
    """A program listens on a port that no test has had."""
    made = []

    def listen(kind: int = socket.SOCK_STREAM) -> tuple[socket.socket, int]:
        port = next(PORTS)
        made.append(listening(path, port, kind))
        return made[-1], port

    yield listen
    for listener in made:
        listener.close()


def some(count: int, seed: int = 0) -> bytes:
    return bytes((i * 7 + i // 251 + seed) & 0xFF for i in range(count))


def receive(program: socket.socket, count: int) -> bytes:
    """So many bytes, or those up to the end."""
    came = b""
    while len(came) < count:
        data = program.recv(count - len(came))
        if not data:
            break
        came += data
    return came


def ended(program: socket.socket) -> bool:
    """Whether it ends here."""
    try:
        return program.recv(1) == b""
    except ConnectionResetError:
        return True


# Bytes.


@LAYOUTS
def test_bytes_go_both_ways(served: Served, listen: Listen, packed: bool) -> None:
    listener, port = listen()
    with served.guest(queues=3, packed=packed) as guest:
        stream, program = connect(Driver(guest), listener, port)
        with program:
            for count in (1, 5, 4052, 4053, 20_000, 50_000):
                stream.send(some(count), pieces=4)
                assert receive(program, count) == some(count)
                program.sendall(some(count, 3))
                assert stream.read(count) == some(count, 3)


def test_a_program_of_the_host_connects_to_the_guest(driver: Driver, path: Path) -> None:
    stream, program = dial(driver, path, 77, b"in the same write")
    with program:
        assert stream.read(17) == b"in the same write"
        stream.send(b"answer")
        assert receive(program, 6) == b"answer"
        other, second = dial(driver, path, 77)
        with second:
            assert other.theirs != stream.theirs


@pytest.mark.parametrize(
    "greeting",
    [
        b"HELLO 5\n",
        b"CONNECT\n",
        b"CONNECT x\n",
        b"CONNECT 4294967296\n",
        b"CONNECT -1\n",
        b"C" * 40,
    ],
)
def test_a_greeting_that_is_none_ends_the_connection(
    driver: Driver, path: Path, greeting: bytes
) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as program:
        program.settimeout(30)
        program.connect(str(path))
        program.sendall(greeting)
        assert ended(program)


def test_a_guest_that_refuses_ends_the_connection(driver: Driver, path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as program:
        program.settimeout(30)
        program.connect(str(path))
        program.sendall(b"CONNECT 9\n")
        request = driver.expect(Op.REQUEST)
        driver.send(Op.RST, 9, request.src_port)
        assert ended(program)


def test_a_program_waits_until_there_is_a_driver(served: Served, path: Path) -> None:
    deadline = time.monotonic() + 30
    while served.status().connected:  # the last test's front-end
        assert time.monotonic() < deadline
    with closing(socket.socket(socket.AF_UNIX)) as program:
        program.settimeout(30)
        program.connect(str(path))
        program.sendall(b"CONNECT 9\nearly")
        with served.guest(queues=3) as guest:
            driver = Driver(guest)
            request = driver.expect(Op.REQUEST)
            stream = Stream(driver, 9, request.src_port)
            stream.see(request)
            stream.say(Op.RESPONSE)
            assert line(program) == b"OK %d\n" % request.src_port
            assert stream.read(5) == b"early"


# What is refused.


def test_nobody_listens(driver: Driver) -> None:
    driver.send(Op.REQUEST, 1000, 4999)
    refusal = driver.receive()
    assert (refusal.op, refusal.src_port, refusal.dst_port) == (Op.RST, 4999, 1000)
    assert refusal.kind == Type.STREAM


def refusals(driver: Driver) -> None:
    """What belongs to no connection, or is nothing at all, is answered by an RST."""
    for op in (*set(Op) - {Op.REQUEST, Op.RST}, 8, 0xFFFF):
        driver.send(op, 1000, 4999, b"")
        packet = driver.receive()
        assert (packet.op, packet.src_port, packet.dst_port) == (Op.RST, 4999, 1000)
    driver.send(Op.REQUEST, 1000, 4999, type=3)
    assert (packet := driver.receive()).op == Op.RST and packet.kind == 3
    for cid in (0, 1, 77, (1 << 64) - 1):
        driver.send(Op.REQUEST, 1000, 4999, dst_cid=cid)
        assert (packet := driver.receive()).op == Op.RST and packet.src_cid == cid


def test_what_belongs_to_no_connection_is_refused(driver: Driver) -> None:
    refusals(driver)


def test_c50_what_is_no_packet_of_the_guests_is_dropped_and_counted(
    served: Served, driver: Driver
) -> None:
    before = served.status().queues[TX].counters["dropped"]
    driver.send(Op.REQUEST, 1000, 4999, src_cid=4)
    driver.guest.submit(TX, [bytes(HEADER.size - 1)])
    driver.guest.submit(TX, [b""])
    driver.send(Op.RST, 1000, 4999)  # is never answered
    driver.send(Op.REQUEST, 1001, 4999)
    assert driver.receive().dst_port == 1001
    assert served.status().queues[TX].counters["dropped"] == before + 3


def violate_length(stream: Stream) -> None:
    stream.driver.send(Op.RW, stream.ours, stream.theirs, b"abc", len=4)


def violate_credit(stream: Stream) -> None:
    fields = {"len": BUFFER // 2 + 1, "type": Type.STREAM, "op": Op.RW}
    ends = {"src_cid": CID, "dst_cid": HOST_CID, "src_port": stream.ours, "dst_port": stream.theirs}
    packet = HEADER.pack(**fields, **ends), bytes(BUFFER // 2 + 1)
    # Before the program can have any of it.
    stream.driver.guest.queues[TX].submit_many([(packet, ()), (packet, ())])


def violate_size(stream: Stream) -> None:
    stream.driver.send(Op.RW, stream.ours, stream.theirs, b"abc", len=0xFFFFFFFF)


def violate_order(stream: Stream) -> None:
    stream.say(Op.REQUEST)


def violate_answer(stream: Stream) -> None:
    stream.say(Op.RESPONSE)


def violate_end(stream: Stream) -> None:
    stream.say(Op.SHUTDOWN, flags=Shutdown.SEND)
    stream.say(Op.RW, b"more")


@pytest.mark.parametrize(
    "violate",
    [
        violate_length,
        violate_credit,
        violate_size,
        violate_order,
        violate_answer,
        violate_end,
    ],
)
def test_c50_a_broken_rule_resets_the_connection_and_no_other(
    driver: Driver, listen: Listen, violate: Callable[[Stream], None]
) -> None:
    listener, port = listen()
    stream, program = connect(driver, listener, port)
    other, bystander = connect(driver, listener, port)
    with program, bystander:
        violate(stream)
        assert driver.expect(Op.RST).dst_port == stream.ours
        program.settimeout(30)
        while program.recv(1 << 20):
            pass
        other.send(b"well")
        assert receive(bystander, 4) == b"well"


# Credit.


def test_the_kernel_takes_what_the_guest_may_send_at_once(tmp_path: Path) -> None:
    with serve({"type": "vsock", "path": str(tmp_path / "programs")}) as served:
        with served.guest(queues=3) as guest:
            listener = listening(tmp_path / "programs", 5)
            with listener:
                stream, program = connect(Driver(guest), listener, 5)
            with program:
                data = some(stream.credit)
                stream.send(data)
                guest.wait(stream.driver.last)
                # Nobody reads. Without room for them some would be in the device's memory.
                waiting = array.array("i", [0])
                fcntl.ioctl(program, termios.FIONREAD, waiting)
                assert waiting[0] == len(data) == BUF_ALLOC
                assert receive(program, len(data)) == data


def test_a_slow_program_costs_no_more_than_its_buffer(driver: Driver, listen: Listen) -> None:
    listener, port = listen()
    stream, slow = connect(driver, listener, port)
    other, quick = connect(driver, listener, port)
    with slow, quick:
        # What fills the socket's own buffer is taken from ours.
        sent = 0
        deadline = time.monotonic() + 30
        while stream.credit > 0 or not idle(driver, stream):
            part = some(min(stream.credit, 8192), sent)
            stream.send(part)
            sent += len(part)
            assert time.monotonic() < deadline
        other.send(b"meanwhile")
        assert receive(quick, 9) == b"meanwhile"
        came = receive(slow, sent)
        assert len(came) == sent > BUFFER
        stream.send(b"on")
        assert receive(slow, 2) == b"on"


def idle(driver: Driver, stream: Stream) -> bool:
    """No credit comes any more."""
    stream.say(Op.CREDIT_REQUEST)
    packet = stream.take()
    while packet.op != Op.CREDIT_UPDATE:
        packet = stream.take()
    return stream.credit <= 0


def test_the_guest_gets_no_more_than_it_has_room_for(driver: Driver, listen: Listen) -> None:
    listener, port = listen()
    stream = Stream(driver, next(driver.ports), port, buf_alloc=1000)
    stream.say(Op.REQUEST)
    program, _ = listener.accept()
    with program:
        assert stream.take().op == Op.RESPONSE
        program.sendall(some(2500))
        for expected in (1000, 1000, 500):
            came = 0
            while came < expected:
                packet = stream.take()
                came += len(packet.data)
            assert came == expected
            if expected == 1000:
                # The answer is the credit that goes on.
                assert driver.receive().op == Op.CREDIT_REQUEST
                stream.say(Op.CREDIT_UPDATE)
        assert bytes(stream.received) == some(2500)


@pytest.mark.parametrize(("buffers", "size"), [(1, 4096), (2, 100), (3, 45)])
def test_few_and_small_buffers_do(served: Served, listen: Listen, buffers: int, size: int) -> None:
    listener, port = listen()
    with served.guest(queues=3) as guest:
        stream, program = connect(Driver(guest, buffers=buffers, size=size), listener, port)
        with program:
            program.sendall(some(40))
            assert stream.read(40) == some(40)
            served.wait_worker(other_than=served.kill_worker())
            program.sendall(some(30, 9))
            assert stream.read(30) == some(30, 9)


def test_a_buffer_without_room_for_a_byte_comes_back_empty(served: Served, listen: Listen) -> None:
    with served.guest(queues=3) as guest:
        small = guest.submit(RX, [], [HEADER.size])
        driver = Driver(guest)
        driver.send(Op.REQUEST, 1000, 4999)
        assert guest.wait(small).written == 0
        assert driver.receive().op == Op.RST


# Ends.


def test_each_side_may_end_sending_and_go_on_receiving(driver: Driver, listen: Listen) -> None:
    listener, port = listen()
    stream, program = connect(driver, listener, port)
    with program:
        stream.send(b"last words")
        stream.say(Op.SHUTDOWN, flags=Shutdown.SEND)
        assert receive(program, 100) == b"last words"
        program.sendall(b"still here")
        assert stream.read(10) == b"still here"
        program.sendall(b"bye")
        program.shutdown(socket.SHUT_WR)
        assert stream.read(3) == b"bye"
        assert driver.expect(Op.SHUTDOWN).flags == Shutdown.SEND
        stream.say(Op.SHUTDOWN, flags=BOTH)
        assert driver.expect(Op.RST).dst_port == stream.ours
    stream, program = connect(driver, listener, port)
    with program:
        program.shutdown(socket.SHUT_WR)
        assert driver.expect(Op.SHUTDOWN).flags == Shutdown.SEND
        stream.send(b"to the end")
        assert receive(program, 10) == b"to the end"


def test_a_guest_that_takes_nothing_more_is_told_to_the_program(
    driver: Driver, listen: Listen
) -> None:
    listener, port = listen()
    stream, program = connect(driver, listener, port)
    with program:
        stream.say(Op.SHUTDOWN, flags=Shutdown.RECEIVE)
        with pytest.raises(BrokenPipeError):
            while True:
                program.send(bytes(100))
        stream.send(b"but it sends")
        assert receive(program, 12) == b"but it sends"


def test_a_program_that_waits_for_room_hears_of_a_guest_that_takes_nothing_more(
    driver: Driver, listen: Listen
) -> None:
    listener, port = listen()
    stream, program = connect(driver, listener, port)
    with program:
        # All buffers on the way are full, the last is the program's socket.
        program.settimeout(0.2)
        with pytest.raises(TimeoutError):
            while True:
                program.send(bytes(4096))
        stream.say(Op.SHUTDOWN, flags=Shutdown.RECEIVE)
        program.settimeout(30)
        with pytest.raises(BrokenPipeError):
            while True:
                program.send(bytes(4096))
        stream.send(b"but it sends")
        assert receive(program, 12) == b"but it sends"


def test_a_program_that_is_gone_ends_both_directions(driver: Driver, listen: Listen) -> None:
    listener, port = listen()
    stream, program = connect(driver, listener, port)
    program.sendall(b"the end")
    program.close()
    assert stream.read(7) == b"the end"
    while stream.shut != BOTH:
        stream.take()
    stream.send(b"to nobody")
    stream.say(Op.RST)
    driver.send(Op.RW, stream.ours, port, b"?")
    assert driver.expect(Op.RST)


def test_what_was_sent_before_the_end_arrives_after_it(driver: Driver, listen: Listen) -> None:
    listener, port = listen()
    stream, program = connect(driver, listener, port)
    with program:
        program.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sent = 0
        while not sent or not idle(driver, stream):
            part = some(min(stream.credit, 30_000))
            stream.send(part)
            sent += len(part)
        stream.say(Op.SHUTDOWN, flags=BOTH)
        assert driver.expect(Op.RST).dst_port == stream.ours
        # Its ports are free.
        stream.say(Op.RW, b"?")
        assert driver.expect(Op.RST)
        assert len(receive(program, sent)) == sent
        assert ended(program)


def test_an_rst_ends_the_connection_at_once(driver: Driver, listen: Listen) -> None:
    listener, port = listen()
    stream, program = connect(driver, listener, port)
    with program:
        stream.say(Op.RST)
        assert ended(program)


# Messages.


def test_messages_stay_whole(driver: Driver, listen: Listen) -> None:
    listener, port = listen(SEQPACKET)
    stream, program = connect(driver, listener, port, Type.SEQPACKET)
    with program:
        for count in (1, 100, 9000, BUFFER):
            stream.send(some(count), flags=SeqFlag.EOM)
            assert program.recv(1 << 20) == some(count)
        # One in several packets, of which one has not a byte; and a message that has none.
        for part, flags in ((b"ab", 0), (b"", 0), (b"cd", 0), (b"", SeqFlag.EOM | SeqFlag.EOR)):
            stream.say(Op.RW, part, flags=flags)
        stream.say(Op.RW, b"", flags=SeqFlag.EOM)
        stream.say(Op.RW, b"next", flags=SeqFlag.EOM)
        stream.sent += 8
        assert program.recv(100) == b"abcd"
        assert program.recv(100) == b"next"
        sizes = (1, 5000, 50_000, 10_000)
        for count in sizes:
            program.send(some(count))
        program.send(b"")
        program.send(b"last")
        while len(stream.messages) < len(sizes) + 1:
            stream.take()
            stream.say(Op.CREDIT_UPDATE)
        assert stream.messages == [*(some(count) for count in sizes), b"last"]
        program.shutdown(socket.SHUT_WR)
        assert driver.expect(Op.SHUTDOWN).flags == Shutdown.SEND


def test_a_message_that_is_too_long_resets_the_connection(driver: Driver, listen: Listen) -> None:
    listener, port = listen(SEQPACKET)
    stream, program = connect(driver, listener, port, Type.SEQPACKET)
    with program:
        program.send(bytes(BUFFER))
        assert driver.expect(Op.RST).dst_port == stream.ours
        assert ended(program)


def test_a_message_that_its_socket_cannot_take_resets_the_connection(tmp_path: Path) -> None:
    with (
        closing(listening(tmp_path / "v", 5, SEQPACKET)) as listener,
        closing(Guest(tmp_path / "v", buffer=4 << 20)) as guest,
    ):
        driver, life = Driver(guest), Life(guest)
        stream = Stream(driver, 1000, 5, Type.SEQPACKET)
        stream.say(Op.REQUEST)
        life.turn()
        with listener.accept()[0] as program:
            for number in range(64):
                stream.say(Op.RW, bytes(64 << 10), flags=SeqFlag.EOM if number == 63 else 0)
                life.turn()
                for content in guest.packets():
                    stream.see(parsed(content))
            assert stream.reset
            assert ended(program)
        life.leave()


def test_messages_without_a_byte_are_bounded_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They need no credit; the program reads nothing, so that they wait."""
    with (
        closing(listening(tmp_path / "v", 5, SEQPACKET)) as listener,
        closing(Guest(tmp_path / "v", buffer=4096)) as guest,
    ):
        driver, life = Driver(guest), Life(guest)
        stream = Stream(driver, 1000, 5, Type.SEQPACKET)
        stream.say(Op.REQUEST)
        life.turn()
        program, _ = listener.accept()
        with program:
            for number in range(FRAMES_MOST):
                stream.say(Op.RW, b"x" if number < 1000 else b"", flags=SeqFlag.EOM)
                if number % 8 == 7:
                    life.turn()
                    for content in guest.packets():
                        stream.see(parsed(content))
                if stream.reset:
                    break
            assert number > 1000
            assert stream.reset
            assert not caplog.text, "it is the guest that broke a rule"
        life.leave()


def test_each_kind_of_socket_has_its_own_kind_of_program(driver: Driver, listen: Listen) -> None:
    for listener, kind in ((SEQPACKET, Type.STREAM), (socket.SOCK_STREAM, Type.SEQPACKET)):
        _, port = listen(listener)
        driver.send(Op.REQUEST, 1000, port, type=kind)
        assert (packet := driver.receive()).op == Op.RST and packet.kind == kind


def test_messages_are_for_a_driver_that_takes_the_feature(served: Served, listen: Listen) -> None:
    _, port = listen(SEQPACKET)
    with served.guest(queues=3, without=VsockFeature.SEQPACKET) as guest:
        driver = Driver(guest)
        driver.send(Op.REQUEST, 1000, port, type=Type.SEQPACKET)
        assert driver.receive().op == Op.RST


# Deaths, stops, resets.


@LAYOUTS
def test_a_program_never_notices_that_workers_die(
    served: Served, listen: Listen, path: Path, packed: bool
) -> None:
    with served.guest(queues=3, packed=packed) as guest:
        driver = Driver(guest)
        listener, port = listen()
        packets, other = listen(SEQPACKET)
        pairs = [connect(driver, listener, port), dial(driver, path, 7)]
        messages, program = connect(driver, packets, other, Type.SEQPACKET)
        with program, pairs[0][1], pairs[1][1]:
            for turn in range(4):
                for stream, peer in pairs:
                    stream.send(some(5000, turn), pieces=2)
                    peer.sendall(some(4000, turn))
                program.send(some(300, turn))
                served.kill_worker()
                messages.send(some(200, turn), flags=SeqFlag.EOM)
                by_port = {stream.ours: stream for stream in (pairs[0][0], pairs[1][0], messages)}
                while (
                    any(len(stream.received) < 4000 for stream, _ in pairs) or not messages.messages
                ):
                    packet = driver.receive()
                    by_port[packet.dst_port].see(packet)
                for stream, peer in pairs:
                    assert stream.read(4000) == some(4000, turn)
                    assert receive(peer, 5000) == some(5000, turn)
                assert messages.messages.pop() == some(300, turn)
                assert program.recv(1000) == some(200, turn)


def test_connections_outlive_the_master(tmp_path: Path) -> None:
    path = tmp_path / "v"
    description = {"type": "vsock", "path": str(path)}
    with (
        closing(listening(path, 5)) as listener,
        serve(description, arguments=["--supervised"]) as served,
        served.guest(queues=3) as guest,
    ):
        driver = Driver(guest)
        stream, program = connect(driver, listener, 5)
        with program:
            stream.send(b"before")
            assert receive(program, 6) == b"before"
            master = served.status().pid
            os.kill(master, signal.SIGKILL)
            program.sendall(b"between")
            assert stream.read(7) == b"between"
            stream.send(b"after")
            assert receive(program, 5) == b"after"
            assert served.status().pid != master
            _, second = dial(driver, path, 8)
            second.close()


def test_a_stop_is_quick_and_ends_no_connection(
    served: Served, driver: Driver, listen: Listen
) -> None:
    listener, port = listen()
    stream, program = connect(driver, listener, port)
    with program:
        stream.send(b"one")
        guest, pid = driver.guest, served.status().queues[RX].pid
        for index in (RX, TX):
            began = time.monotonic()
            guest.stop_queue(index)
            assert time.monotonic() - began < 2
            queue = guest.queues[index]
            guest.front_end.request("SET_VRING_CALL", [queue.call_bell.theirs], value=index)
            guest.kick_queue(queue)
        program.sendall(b"two")
        assert stream.read(3) == b"two"
        stream.send(b"three")
        assert receive(program, 8) == b"onethree"
        assert served.status().queues[RX].pid == pid


def test_a_reset_ends_every_connection(driver: Driver, listen: Listen, path: Path) -> None:
    listener, port = listen()
    _, program = connect(driver, listener, port)
    _, dialler = dial(driver, path, 7)
    with program, dialler:
        driver.guest.reset()
        assert ended(program) and ended(dialler)
        again = Driver(driver.guest)
        stream, program = connect(again, listener, port)
        with program:
            stream.send(b"anew")
            assert receive(program, 4) == b"anew"
            refusals(again)


def test_connections_end_with_the_front_end(served: Served, listen: Listen) -> None:
    listener, port = listen()
    with served.guest(queues=3) as guest:
        stream, program = connect(Driver(guest), listener, port)
        stream.send(b"one")
        assert receive(program, 3) == b"one"
        served.kill_worker()
        stream.send(b"two")
        assert receive(program, 3) == b"two"
    with program, served.guest(queues=3) as guest:
        assert ended(program)
        Driver(guest).send(Op.RW, stream.ours, port, b"three")
        assert Op(parsed(guest.receive(RX)).op) == Op.RST


def test_there_are_no_more_connections_than_the_options_say(tmp_path: Path) -> None:
    path = tmp_path / "v"
    with (
        closing(listening(path, 5)) as listener,
        serve({"type": "vsock", "path": str(path), "connections": 2}) as served,
        served.guest(queues=3) as guest,
    ):
        driver = Driver(guest)
        first, _one = connect(driver, listener, 5)
        _, two = connect(driver, listener, 5)
        driver.send(Op.REQUEST, 900, 5)
        assert driver.expect(Op.RST).dst_port == 900
        with closing(socket.socket(socket.AF_UNIX)) as program:
            program.connect(str(path))
            program.sendall(b"CONNECT 6\n")
            two.sendall(b"x")
            while (packet := driver.receive()).op != Op.RW:
                pass
            assert packet.data == b"x"  # nobody has asked for port 6
            first.say(Op.RST)
            assert driver.expect(Op.REQUEST).dst_port == 6
        for sock in (_one, two):
            sock.close()


def test_many_connections_come_and_go(driver: Driver, listen: Listen, served: Served) -> None:
    """More than are parked at a time."""
    listener, port = listen()
    kept, program = connect(driver, listener, port)
    with program:
        for turn in range(50):
            stream, other = connect(driver, listener, port)
            with other:
                stream.send(b"%d" % turn)
                assert receive(other, len(b"%d" % turn)) == b"%d" % turn
                stream.say(Op.SHUTDOWN, flags=BOTH)
                assert driver.expect(Op.RST).dst_port == stream.ours
                assert ended(other)
        served.kill_worker()
        kept.send(b"still there")
        assert receive(program, 11) == b"still there"


def test_a_socket_that_there_is_no_descriptor_for_stays_parked() -> None:
    near, far = parking()
    park = Park(near, far)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with closing(park), near, far, socket.socket() as kept:
        park.put(1, 2, kept)
        spare = os.dup(0)
        os.close(spare)
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, before[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                list(park.look())
            with pytest.raises(OSError, match="Too many open files"):
                park.sweep(lambda _slot, _serial: True)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        (parked,) = park.look()
        parked.file.close()
        assert (parked.slot, parked.serial) == (1, 2)


# Options.


def test_the_layouts_are_those_of_the_specification() -> None:
    assert (HEADER.size, HEADER.offsets["type"], HEADER.offsets["fwd_cnt"]) == (44, 28, 40)
    assert CONFIG.size == 8


def test_the_guest_is_told_its_cid(tmp_path: Path) -> None:
    description = {"type": "vsock", "path": str(tmp_path / "v"), "cid": 0xFFFFFFFE}
    description["permissions"] = "0660"
    with serve(description) as served, served.guest(queues=2) as guest:
        assert CONFIG.unpack(guest.config(CONFIG.size)) == {"guest_cid": 0xFFFFFFFE}
        own = guest.front_end.features & ((1 << 24) - 1)
        assert own == VsockFeature.STREAM | VsockFeature.SEQPACKET
        assert stat.S_IMODE((tmp_path / "v").stat().st_mode) == 0o660
        # QEMU keeps the queue of events to itself.
        driver = Driver(guest)
        driver.send(Op.REQUEST, 1, 1, src_cid=0xFFFFFFFE)
        assert HEADER.unpack(guest.receive(RX))["op"] == Op.RST


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"cid": 2}, ">= 3, got 2"),
        ({"cid": 0xFFFFFFFF}, "<= 4294967294"),
        ({"buffer": 5000}, "not a multiple of 4096"),
        ({"buffer": "8MiB"}, "<= 4194304"),
        ({"connections": 0}, ">= 1"),
        ({"connections": 65}, "<= 64"),
        ({"path": "/tmp/" + "v" * 92}, "longer than 96 bytes"),
        ({"path": "/nowhere/v"}, "/nowhere/v: there is no folder /nowhere"),
        ({"queues": 2}, "queues"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    device = {"type": "vsock", "path": str(tmp_path / "v"), **options}
    file = tmp_path / "vsock.yaml"
    file.write_text(json.dumps({"socket": "./vsock.sock", "device": device}))
    with pytest.raises((ConfigErrors, FileRefused), match=reason):
        checked = load(file)
        checked.open_shared(checked.make_device())


def test_a_path_that_somebody_listens_on_is_refused(tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as other:
        other.bind(str(tmp_path / "v"))
        other.listen()
        with (
            pytest.raises(ServeFailed, match="somebody listens on it"),
            serve({"type": "vsock", "path": str(tmp_path / "v")}),
        ):
            pass


def test_nobody_goes_on_with_the_connections_of_other_options(tmp_path: Path) -> None:
    options = VsockOptions(path=str(tmp_path / "v"))
    left = Vsock(options).shared_files()
    others = (
        {"cid": 4},
        {"buffer": 8192},
        {"connections": 3},
        {"permissions": 0o660},
        {"path": str(tmp_path / "w")},
    )
    assert Vsock(VsockOptions(path=options.path)).goes_on_with(left)
    for other in others:
        changed = VsockOptions(**{"path": options.path, **other})  # type: ignore[arg-type]
        assert not Vsock(changed).goes_on_with(left)
    for file in left.values():
        file.close()


# Migration.


def migrated(served: Served, driver: Driver) -> bytes:
    """The state of its device, once the driver's machine is paused."""
    for queue in (RX, TX, EVENT):
        driver.guest.stop_queue(queue)
    state: bytes = driver.guest.front_end.save_state()
    return state


def test_a_driver_that_migrates_is_told_once_that_connections_are_lost(
    served: Served, path: Path, driver: Driver, listen: Listen, tmp_path: Path
) -> None:
    listener, port = listen()
    stream, program = connect(driver, listener, port)
    state = migrated(served, driver)
    there = tmp_path / "vsock"
    with serve({"type": "vsock", "path": str(there), "buffer": BUFFER}) as other:
        with other.guest(queues=3, start=False) as guest:
            guest.setup()
            guest.front_end.load_state(state)
            # Before there is a ring to tell it on.
            other.wait_worker(other_than=other.kill_worker())
            for queue in (RX, TX, EVENT):
                guest.start_queue(queue)
            assert guest.do(EVENT, in_=[EVENT_MESSAGE.size - 1]).written == 0
            moved = Driver(guest)
            assert EVENT_MESSAGE.unpack(guest.receive(EVENT)) == {"id": TRANSPORT_RESET}
            other.wait_worker(other_than=other.kill_worker())
            with pytest.raises(NoCompletion):
                guest.receive(EVENT, timeout_s=0.05)
            # What it had is not known here, and what it begins is.
            moved.send(Op.RW, stream.ours, stream.theirs, b"lost")
            assert moved.expect(Op.RST).dst_port == stream.ours
            with closing(listening(there, port)) as near:
                begun, program_there = connect(moved, near, port)
                begun.send(b"here")
                assert receive(program_there, 4) == b"here"
                program_there.close()
    program.close()


def test_a_migration_that_does_not_come_about_ends_nothing(
    served: Served, driver: Driver, listen: Listen
) -> None:
    listener, port = listen()
    stream, program = connect(driver, listener, port)
    migrated(served, driver)
    for queue in (RX, TX, EVENT):
        driver.guest.start_queue(queue)
    driver.__post_init__()
    stream.send(b"still here")
    assert receive(program, 10) == b"still here"
    program.close()
