"""A worker of the socket device dies before any bytecode instruction of its own, once or twice, on
real rings: every byte arrives, once.
"""

from __future__ import annotations

import gc
import os
import random
import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.devices.vsock_driver import Driver, Stream, listening, parsed
from tests.devices.vsock_lives import Dead, Deaths, Guest, Life
from vuproc.spec.vsock import TX, Op, SeqFlag, VsockType

pytestmark = [
    pytest.mark.timeout(600),
    # What a dead worker had open is closed by the interpreter.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

LONG = os.environ.get("VUPROC_LONG", "") not in ("", "0")
RUNS = 3000 if LONG else 20
BUFFER = 4096
TURNS_MOST = 20_000
UP, DOWN, MESSAGES = 9000, 7000, [b"a" * 10, b"b" * 3000, b"c" * 4000]

T = TypeVar("T")
Task = Generator[None, None, None]


class Session:
    """A guest's programs and the host's, all of them a step at a time."""

    def __init__(self, path: Path, buffers: int) -> None:
        self.guest = Guest(path, buffer=BUFFER, connections=4)
        self.driver = Driver(self.guest, buffers=buffers, size=1000)
        self.path = path
        self.streams: dict[int, Stream] = {}
        self.refused: list[int] = []
        self.dialled: list[tuple[int, int]] = []

    def see(self) -> None:
        """What the device has sent goes to whom it is for."""
        for content in self.guest.packets():
            packet = parsed(content)
            stream = self.streams.get(packet.dst_port)
            if stream is None and packet.op == Op.REQUEST:
                stream = Stream(self.driver, packet.dst_port, packet.src_port, buf_alloc=BUFFER)
                self.streams[packet.dst_port] = stream
                stream.see(packet)
                stream.say(Op.RESPONSE)
            elif stream is not None:
                assert not stream.reset, "it was told already"
                stream.see(packet)
            else:
                self.refused.append(packet.dst_port)

    # Programs of the guest.

    def connect(self, port: int, kind: int = VsockType.STREAM) -> Stream:
        stream = Stream(self.driver, next(self.driver.ports), port, kind, buf_alloc=BUFFER)
        self.streams[stream.ours] = stream
        stream.say(Op.REQUEST)
        return stream

    def send(self, stream: Stream, data: bytes, flags: int = 0) -> Task:
        view = memoryview(data)
        while view:
            while stream.credit <= 0 or self.guest.queues[TX].ring.free < 4:
                yield
            part = bytes(view[: min(stream.credit, 1500)])
            view = view[len(part) :]
            stream.sent += len(part)
            stream.say(Op.RW, part, flags=0 if view else flags, pieces=2)
            yield

    def receive(self, stream: Stream, count: int) -> Task:
        told = 0
        while stream.fwd_cnt < count:
            if stream.fwd_cnt - told > BUFFER // 2:
                told = stream.fwd_cnt
                stream.say(Op.CREDIT_UPDATE)
            assert not stream.reset
            yield

    def guest_program(self, stream: Stream, up: bytes, down: bytes) -> Task:
        """Send, half-close, receive until the end."""
        yield from self.send(stream, up)
        stream.say(Op.SHUTDOWN, flags=2)
        yield from self.receive(stream, len(down))
        while not stream.shut & 2:
            yield
        assert bytes(stream.received) == down
        stream.say(Op.SHUTDOWN, flags=3)
        while not stream.reset:
            yield

    def guest_messages(self, stream: Stream) -> Task:
        for message in MESSAGES:
            yield from self.send(stream, message, SeqFlag.EOM)
        yield from self.receive(stream, sum(map(len, MESSAGES)))
        assert stream.messages == MESSAGES
        stream.say(Op.SHUTDOWN, flags=3)
        while not stream.reset:
            yield


def when_ready(action: Callable[..., T], *arguments: Any) -> Generator[None, None, T]:
    """Try until it does not have to wait; what it gives is the value."""
    while True:
        try:
            return action(*arguments)
        except BlockingIOError:
            yield


def host_program(program: socket.socket, up: bytes, down: bytes, greeting: bytes = b"") -> Task:
    """Send while receiving until the end, then close."""
    program.setblocking(False)
    came, left = b"", down
    while len(came) < len(greeting) + len(up):
        if left:
            try:
                left = left[program.send(left[:700]) :]
            except BlockingIOError:
                pass
        try:
            data = program.recv(900)
            assert data, "it ended early"
            came += data
        except BlockingIOError:
            yield
    while left:
        sent = yield from when_ready(program.send, left[:700])
        left = left[sent:]
    end = yield from when_ready(program.recv, 1)
    assert end == b""
    assert came[len(greeting) :] == up
    program.shutdown(socket.SHUT_WR)
    program.close()


def host_messages(program: socket.socket) -> Task:
    """Send each message back."""
    program.setblocking(False)
    for message in MESSAGES:
        came = yield from when_ready(program.recv, 1 << 16)
        assert came == message
        yield from when_ready(program.send, came)
    end = yield from when_ready(program.recv, 1)
    assert end == b""
    program.close()


def play(path: Path, deaths: set[int], buffers: int) -> tuple[int, int]:
    """All of it, with deaths before these instructions: how many were carried out, and died of."""
    noise = random.Random(7)
    up, down = noise.randbytes(UP), noise.randbytes(DOWN)
    died = 0
    with ExitStack() as stack:
        session = Session(path, buffers)
        stack.callback(session.guest.close)
        bytes_listener = stack.enter_context(closing(listening(path, 5)))
        messages_listener = listening(path, 6, socket.SOCK_SEQPACKET)
        stack.enter_context(closing(messages_listener))
        for listener in (bytes_listener, messages_listener):
            listener.setblocking(False)
        tracing = Deaths(deaths)
        life = Life(session.guest)

        def accepting(listener: socket.socket, talk: Callable[[socket.socket], Task]) -> Task:
            """The first connection may be of a worker that died over it."""
            while True:
                program, _ = yield from when_ready(listener.accept)
                program.setblocking(False)
                try:
                    first = yield from when_ready(program.recv, 1, socket.MSG_PEEK)
                except ConnectionError:
                    first = b""
                if first:
                    yield from talk(program)
                    return
                program.close()

        def dialling() -> Task:
            """One that ends before it is answered was of a worker that died over it."""
            while True:
                program = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                program.setblocking(False)
                program.connect(str(path))
                program.send(b"CONNECT 70\n" + down[:100])
                try:
                    first = yield from when_ready(program.recv, 1, socket.MSG_PEEK)
                except ConnectionError:
                    first = b""
                if first:
                    break
                program.close()
            while 70 not in session.streams:
                yield
            greeting = b"OK %d\n" % session.streams[70].theirs
            yield from host_program(program, up, down[100:], greeting)

        def called() -> Task:
            while 70 not in session.streams:
                yield
            yield from session.guest_program(session.streams[70], up, down)

        def refused() -> Task:
            session.driver.send(Op.REQUEST, 9, 99)
            while not session.refused:
                yield

        tasks = [
            session.guest_program(session.connect(5), up, down),
            accepting(bytes_listener, lambda program: host_program(program, up, down)),
            session.guest_messages(session.connect(6, VsockType.SEQPACKET)),
            accepting(messages_listener, host_messages),
            dialling(),
            called(),
            refused(),
        ]
        for turn in range(TURNS_MOST):
            try:
                with tracing:
                    life.turn()
                    if turn % 4 == 3:
                        life.rest()
                    if turn % 3 == 2:
                        life.stop()
                        life.start()
            except Dead:
                died += 1
                life.leave()
                while True:
                    try:
                        with tracing:
                            life = Life(session.guest)
                        break
                    except Dead:
                        died += 1
            session.see()
            tasks = [task for task in tasks if goes_on(task)]
            if not tasks:
                break
        else:
            pytest.fail(f"{len(tasks)} programs wait for ever, deaths at {sorted(deaths)}")
        assert session.refused == [9]
        for _ in range(10):
            life.turn()
            life.rest()
        assert not life.device._switch._hosts
        life.leave()
    path.unlink()
    return tracing.count, died


def goes_on(task: Task) -> bool:
    try:
        next(task)
    except StopIteration:
        return False
    return True


@pytest.fixture
def strays() -> Iterator[None]:
    """Close what died as a bare number, between the call that gave it and its owner."""
    before = open_files()
    yield
    gc.collect()
    for number in open_files() - before:
        with suppress(OSError):  # that of the listing itself
            os.close(number)


def open_files() -> set[int]:
    return set(map(int, os.listdir("/proc/self/fd")))


@pytest.mark.usefixtures("strays")
@pytest.mark.parametrize(("buffers", "runs"), [(12, RUNS), (2, RUNS), (1, RUNS)])
def test_a_death_before_any_instruction_costs_no_byte(
    tmp_path: Path, buffers: int, runs: int
) -> None:
    count, died = play(tmp_path / "calm", set(), buffers)
    assert not died
    seed = random.SystemRandom().randrange(1 << 32) if LONG else 1
    chance = random.Random(seed)
    for run in range(runs):
        # Every other time the second is soon after the first.
        first = chance.randrange(1, count)
        at = {first, first + chance.randrange(1, 3000 if run % 2 else count)}
        folder = tmp_path / str(run)
        folder.mkdir()
        print(f"seed {seed}, run {run}: {sorted(at)}")
        _, died = play(folder / "v", at, buffers)
        assert died


@pytest.mark.usefixtures("strays")
def test_a_reset_forgets_everything_whoever_dies_over_it(tmp_path: Path) -> None:
    chance = random.Random(1)
    count = forget(tmp_path / "calm", set())
    assert count
    for run in range(RUNS):
        print(f"run {run}")
        forget(tmp_path / str(run), {chance.randrange(1, count)})


def forget(path: Path, deaths: set[int]) -> int:
    """Reset a device that has connections, with a death; how many instructions that took."""
    with ExitStack() as stack:
        session = Session(path, 2)
        stack.callback(session.guest.close)
        listener = stack.enter_context(closing(listening(path, 5)))
        life = Life(session.guest)
        streams = [session.connect(5), session.connect(5)]
        life.turn()
        programs = [stack.enter_context(closing(listener.accept()[0])) for _ in streams]
        life.turn()
        session.see()
        for program in programs:
            program.sendall(b"for nobody")
        streams[0].say(Op.RW, b"for somebody")
        for _ in range(4):
            session.driver.send(Op.REQUEST, 9, 99)
        life.turn()
        assert life.device._switch.resets.waiting
        life.stop()
        tracing = Deaths(deaths)
        while True:
            try:
                with tracing:
                    life.device.reset()
                break
            except Dead:
                life.leave()
                life = Life(session.guest, start=False)
        for program in programs:
            program.settimeout(0)
            with suppress(ConnectionResetError):
                while program.recv(100):
                    pass
        table = life.device._table
        assert not any(record.state for record in table.records)
        assert not life.device._switch.resets.waiting
        assert table.depends_on is None
        assert not list(life.device._switch._park.look())
        life.leave()
    path.unlink()
    return tracing.count
