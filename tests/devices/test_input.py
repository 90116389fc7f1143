"""The input device with the built-in driver: what it is, what is typed, and the lights."""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import signal
import struct
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.field.events import wait_until
from vuproc import Fd
from vuproc.device_file.check import load
from vuproc.devices import input_evdev
from vuproc.devices.input import EVENTS, STATUS, Input
from vuproc.devices.input_backlog import MOST, Backlog, State, packed
from vuproc.devices.input_evdev import INPUT_EVENT, Evdev, describe
from vuproc.devices.input_kind import KINDS, Axis, Kind, bitmap
from vuproc.devices.input_options import InputOptions
from vuproc.devices.input_source import REPORT, Lines, hit
from vuproc.errors import ConfigErrors, FileRefused
from vuproc.shared import struct_file
from vuproc.spec.input import (
    ABS_INFO,
    CONFIG_BYTES,
    CONFIG_HEAD,
    EVENT,
    SYN_DROPPED,
    InputSelect,
    InputType,
)
from vuproc.spec.input_codes import KEYS
from vuproc.testing import Guest, serve
from vuproc.testing.errors import NoCompletion

pytestmark = pytest.mark.timeout(90)

KEY, REL, ABS, LED = InputType.KEY, InputType.REL, InputType.ABS, InputType.LED
SYN = (0, 0, 0)


def read(guest: Guest, select: int, subsel: int = 0) -> bytes:
    """As Linux does: two writes, and then what there is."""
    guest.front_end.set_config(0, bytes([select]))
    guest.front_end.set_config(1, bytes([subsel]))
    content = guest.config(CONFIG_BYTES)
    return content[CONFIG_HEAD.size :][: content[2]]


def received(guest: Guest, count: int) -> list[tuple[int, ...]]:
    return [tuple(EVENT.unpack(guest.receive(EVENTS)).values()) for _ in range(count)]


def keystroke(name: str) -> list[tuple[int, ...]]:
    return [(KEY, KEYS[name], 1), SYN, (KEY, KEYS[name], 0), SYN]


def as_events(events: list[int]) -> list[tuple[int, ...]]:
    return [tuple(EVENT.unpack(each.to_bytes(8, "little")).values()) for each in events]


def unread(pipe: int) -> int:
    """Bytes in a pipe."""
    count = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


def test_lines_in_a_pipe_are_typed_whoever_dies(tmp_path: Path) -> None:
    pipe = tmp_path / "keys"
    arguments = ["--supervised"]
    with serve({"type": "input", "events": str(pipe)}, arguments=arguments) as served:
        with served.guest(queues=2) as guest, open(pipe, "wb", 0) as keys:
            # What comes before there is a buffer waits.
            keys.write(b"key a\ntype B!\nkey ente")
            guest.keep_filled(EVENTS, count=4, size=EVENT.size)
            shift = [(KEY, KEYS["leftshift"], 1), SYN], [(KEY, KEYS["leftshift"], 0), SYN]
            typed = [*shift[0], *keystroke("b"), *shift[1], *shift[0], *keystroke("1"), *shift[1]]
            assert received(guest, 20) == keystroke("a") + typed
            # Half of a line is read already.
            served.wait_worker(other_than=served.kill_worker())
            keys.write(b"r\n# a comment\n\nkey a 1\nkey b 1\n")
            assert received(guest, 4) == keystroke("enter")
            os.kill(served.status().pid, signal.SIGKILL)
            served.wait_for_line("keeper: master")
            keys.write(b"syn\n")
            assert received(guest, 3) == [(KEY, KEYS["a"], 1), (KEY, KEYS["b"], 1), SYN]


def test_no_event_is_lost_or_sent_twice_by_workers_that_die_while_they_send(
    tmp_path: Path,
) -> None:
    pipe = tmp_path / "mouse"
    with (
        serve({"type": "input", "kind": "mouse", "events": str(pipe)}) as served,
        served.guest(queues=2, packed=True) as guest,
        open(pipe, "wb", 0) as mouse,
    ):
        # More than may wait: the rest stays in the pipe.
        moves = [(REL, 0, number) for number in range(1, MOST // 2 + 200)]
        mouse.write(b"".join(b"rel x %d\nsyn\n" % number for *_, number in moves))
        guest.keep_filled(EVENTS, count=64, size=EVENT.size)
        came: list[tuple[int, ...]] = []
        for _ in range(3):
            came += received(guest, 40)
            served.wait_worker(other_than=served.kill_worker())
        came += received(guest, 2 * len(moves) - len(came))
        assert came[::2] == moves
        with pytest.raises(NoCompletion):
            guest.receive(EVENTS, timeout_s=0.05)


def test_the_driver_reads_what_it_selects() -> None:
    with serve({"type": "input", "kind": "tablet", "name": "pad", "serial": "n"}) as served:
        with served.guest(queues=2) as guest:
            assert read(guest, InputSelect.ID_NAME) == b"pad"
            assert read(guest, InputSelect.ID_SERIAL) == b"n"
            assert read(guest, InputSelect.ID_DEVIDS) == struct.pack("<4H", 6, 0, 0, 1)
            assert read(guest, InputSelect.EV_BITS, ABS) == b"\3"
            axis = ABS_INFO.unpack(read(guest, InputSelect.ABS_INFO, 1))
            assert (axis["min"], axis["max"]) == (0, 32767)
            # What there is not, and what no driver is to write.
            assert read(guest, InputSelect.ABS_INFO, 2) == read(guest, 0x77, 0x77) == b""
            assert read(guest, InputSelect.ID_NAME, 1) == b""
            guest.front_end.set_config(2, b"\xff")
            assert guest.config(CONFIG_BYTES)[:3] == bytes((InputSelect.ID_NAME, 1, 0))
            # All of the space at once, as QEMU does it.
            whole = bytes((InputSelect.ID_NAME, 0)).ljust(CONFIG_BYTES, b"x")
            guest.front_end.set_config(0, whole)
            assert guest.config(CONFIG_BYTES)[:11] == b"\1\0\3\0\0\0\0\0pad"


class Robot(Input):
    """Types what its light says, as a script of a test rig would."""

    def status(self, type: int, code: int, value: int) -> None:
        match code:
            case 0:
                self.type_text("hi")
                self.press("leftalt")
                self.tap("f4")
                self.release("leftalt")
            case 1:
                for _ in range(MOST):
                    self.emit(KEY, KEYS["a"], 2)
                    self.syn()
                self.release("a")
            case 2:
                self.press("nosuchkey")


def test_a_subclass_types_and_hears_of_lights() -> None:
    with serve(Robot) as served, served.guest(queues=2) as guest:
        # What is too much is dropped whole, and the last state is told.
        guest.do(STATUS, [EVENT.pack(type=LED, code=1, value=1)])
        assert served.status().queues[EVENTS].counters["dropped"] == MOST + 2
        guest.keep_filled(EVENTS, count=64, size=EVENT.size)
        came = received(guest, MOST + 2)
        assert came[:MOST] == [(KEY, KEYS["a"], 2), SYN] * (MOST // 2)
        assert came[MOST:] == [(KEY, KEYS["a"], 0), SYN]
        # Too short, none, and longer than an event.
        guest.do(STATUS, [b"\x11\0\0\0\0\0\0"])
        guest.do(STATUS, in_=[8])
        guest.do(STATUS, [EVENT.pack(type=LED, code=0, value=1) + bytes(100)])
        alt = (KEY, KEYS["leftalt"])
        held = [(*alt, 1), SYN, *keystroke("f4"), (*alt, 0), SYN]
        assert received(guest, 16) == keystroke("h") + keystroke("i") + held
        guest.do(STATUS, [EVENT.pack(type=LED, code=2, value=1)])
        served.wait_for_line("there is no key 'nosuchkey'")


def test_c42_buffers_that_are_too_small_come_back_and_bad_lines_are_told(tmp_path: Path) -> None:
    pipe = tmp_path / "keys"
    with (
        serve({"type": "input", "events": str(pipe)}) as served,
        served.guest(queues=2) as guest,
        open(pipe, "r+b", 0) as keys,
    ):
        small = [guest.submit(EVENTS, in_=[7]), guest.submit(EVENTS, out=[bytes(8)])]
        guest.keep_filled(EVENTS, count=8, size=EVENT.size)
        keys.write(b"key a\n")
        assert received(guest, 4) == keystroke("a")
        assert [guest.wait(each).written for each in small] == [0, 0]
        for line, said in {
            b"jump": "begins with none of key",
            b"rel x 1": "keyboard has no rel x",
            b"key foo": "there is no key 'foo'",
            b"key a b": "invalid literal",
            b"key a 0x100000000": "more than 32 bits",
            b"type \xc3\xa4": "no key for",
            b"type " + b"a" * 300: "too long",
            b"x" * 5000: "without a syn or the end of a line",
            b"\xff\xfe": "'\ufffd\ufffd': it begins",
        }.items():
            keys.write(line + b"\n")
            served.wait_for_line(said)
        keys.write(b"\0 no text\n")
        wait_until(lambda: not unread(keys.fileno()), "that is read")
        keys.write(b"key b\n")
        assert received(guest, 4) == keystroke("b")


def test_a_queue_stops_at_once_and_goes_on(tmp_path: Path) -> None:
    pipe = tmp_path / "keys"
    with serve({"type": "input", "events": str(pipe)}) as served:
        with served.guest(queues=2) as guest, open(pipe, "wb", 0) as keys:
            guest.keep_filled(EVENTS, count=64, size=EVENT.size)
            pid = served.status().queues[EVENTS].pid
            guest.reset()
            keys.write(b"key a\n")
            guest.keep_filled(EVENTS, count=64, size=EVENT.size)
            assert received(guest, 4) == keystroke("a")
            assert served.status().queues[EVENTS].pid == pid


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"events": "/tmp/x", "evdev": "/dev/null"}, "exclude each other"),
        ({"events": "/dev/null"}, "/dev/null: not a named pipe"),
        ({"events": "/nowhere/pipe"}, "/nowhere/pipe: No such file"),
        ({"evdev": "/nowhere"}, "/nowhere: No such file"),
        ({"evdev": "/dev/null"}, "/dev/null: not an input device"),
        ({"grab": True}, "only a device of the host can be grabbed"),
        ({"kind": "joystick"}, "kind"),
        ({"name": "x" * 129}, "128"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    file = tmp_path / "input.yaml"
    file.write_text(json.dumps({"socket": "s", "device": {"type": "input", **options}}))
    with pytest.raises((ConfigErrors, FileRefused), match=reason):
        load(file).make_device().shared_files()


def test_a_pipe_that_was_replaced_is_told_of(tmp_path: Path) -> None:
    pipe = tmp_path / "keys"
    device = Input(InputOptions(events=str(pipe)))
    device.shared = left = device.shared_files()
    assert not list(device.replaced_files())
    pipe.rename(tmp_path / "old")
    ((option, what),) = device.replaced_files()
    assert (option, what) == ("events", f"{pipe}: No such file or directory")
    os.mkfifo(pipe)
    assert list(device.replaced_files()) == [("events", f"{pipe}: another file is there now")]
    for file in left.values():
        file.close()


def test_comments_are_done_with_at_once() -> None:
    said: list[str] = []
    lines = Lines(KINDS["keyboard"], said.append)
    data = b"# much to say\n" * 300
    assert list(lines.frames(data))[-1] == (len(data), [])
    assert list(lines.frames(b"key a 1\n# in between\n")) == []
    assert not said


def test_nobody_goes_on_with_what_another_source_has_said() -> None:
    left = Input(InputOptions()).shared_files()
    assert Input(InputOptions(kind="mouse")).goes_on_with(left)
    assert not Input(InputOptions(events="/tmp/pipe")).goes_on_with(left)
    for file in left.values():
        file.close()


class Killed(BaseException):
    """Nothing of a worker's runs after its death."""


class Buffer:
    """What a backlog needs of a request; its worker may die at a verb."""

    def __init__(self, head: int, dies_at: str = "") -> None:
        self.head = head
        self.dies_at = dies_at
        self.seen = False
        self.data = b""

    def write(self, data: bytes) -> None:
        self._die("write")
        self.data = data

    def finish(self) -> None:
        self._die("finish")

    def publish(self) -> None:
        self._die("publish")
        self.seen = True
        self._die("seen")

    def _die(self, where: str) -> None:
        if where == self.dies_at:
            raise Killed(where)


@pytest.mark.parametrize("where", ["write", "finish", "publish", "seen"])
def test_each_event_is_sent_once_wherever_a_worker_dies(where: str) -> None:
    with struct_file(State) as file:
        backlog = Backlog(file)
        # Over the end of the ring of events, which is full.
        backlog.push(range(64))
        for _ in range(64):
            backlog.send(Buffer(0), int)  # type: ignore[arg-type]
        backlog.push(range(1, MOST + 1))
        assert backlog.room == 0
        seen = []
        for number in range(1, 5):
            buffer = Buffer(7, where if number == 2 else "")
            try:
                backlog.send(buffer, buffer.publish)  # type: ignore[arg-type]
            except Killed:
                backlog = Backlog(file)
                backlog.settle(frozenset() if buffer.seen else {buffer.head})
                if not buffer.seen:
                    buffer.dies_at = ""
                    backlog.send(buffer, buffer.publish)  # type: ignore[arg-type]
            seen.append(int.from_bytes(buffer.data, "little"))
        assert seen == [1, 2, 3, 4]
        assert backlog.waiting == MOST - 4


# A device of the host, of which the kernel's answers are made up here.

HOST = Kind(
    "host keyboard",
    {KEY: frozenset((30, 48)), LED: frozenset((1,)), ABS: frozenset((0,))},
    {0: Axis(-5, 100, 1, 2, 3)},
    (3, 0x1234, 0x5678, 2),
    properties=frozenset((1,)),
)


def answer_as_evdev(fd: int, request: int, argument: array.array[int], mutate: bool) -> int:
    call, size = request & 0xFF, request >> 16 & 0x3FFF
    assert (request >> 30, request >> 8 & 0xFF, mutate) == (2, ord("E"), True)
    answers = {
        input_evdev.GID: struct.pack("@4H", *HOST.ids),
        input_evdev.GNAME: b"host keyboard\0",
        input_evdev.GPROP: bitmap((1,)),
        input_evdev.GKEY: bitmap((48,)),
        input_evdev.GABS: struct.pack("@6i", 42, -5, 100, 1, 2, 3),
        **{input_evdev.GBIT + kind: bitmap(codes) for kind, codes in HOST.codes.items()},
    }
    if call == input_evdev.GUNIQ:
        raise OSError(errno.ENOENT, "no serial number")
    answer = answers.get(call, b"")
    assert len(answer) <= size == len(argument)
    argument[: len(answer)] = array.array("B", answer)
    return len(answer)


@pytest.fixture
def evdev(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Evdev, int]]:
    """A source, and the other end of its descriptor."""
    ours, theirs = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    monkeypatch.setattr(fcntl, "ioctl", answer_as_evdev)
    with Fd(ours), Fd(theirs) as writable:
        assert describe(writable) == HOST
        yield Evdev(writable, HOST), ours


def host_events(*events: tuple[int, int, int]) -> bytes:
    return b"".join(INPUT_EVENT.pack(17, 4, *event) for event in events)


def test_a_device_of_the_host_is_passed_on(evdev: tuple[Evdev, int]) -> None:
    source, ours = evdev
    # A code that the driver was not told of, and half of what is to come, are left out.
    whole = host_events((KEY, 30, 1), (4, 4, 30), SYN, (ABS, 0, -3), SYN)
    data = whole + host_events((KEY, 48, 1))
    assert [(end, as_events(events)) for end, events in source.frames(data)] == [
        (3 * INPUT_EVENT.size, [(KEY, 30, 1), SYN]),
        (5 * INPUT_EVENT.size, [(ABS, 0, 0xFFFFFFFD), SYN]),
    ]
    assert source.length(data.ljust(4096, b"\0")) == len(data)
    source.status(LED, 1, 1)
    source.status(KEY, 30, 1)  # no driver presses keys
    lit = INPUT_EVENT.pack(0, 0, LED, 1, 1) + INPUT_EVENT.pack(0, 0, *SYN)
    assert os.read(ours, 4096) == lit


def test_what_the_kernel_has_dropped_is_made_up_for(evdev: tuple[Evdev, int]) -> None:
    data = host_events((0, SYN_DROPPED, 0), (KEY, 30, 1), SYN)
    ((_, events),) = evdev[0].frames(data)
    state = [(KEY, 30, 0), (KEY, 48, 1), (ABS, 0, 42), SYN]
    assert as_events(events) == state
    # Also if there is no room for what is to end it.
    begun = data[: -INPUT_EVENT.size]
    assert as_events(evdev[0].overlong(begun)) == state[:-1]
    assert as_events(evdev[0].overlong(host_events((KEY, 30, 1), (4, 4, 30)))) == [(KEY, 30, 1)]


class Host(Input):
    """A pipe that says what a device of the host would."""

    def open_source(self) -> Fd:
        return Fd(os.open(self.options.events or "", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))

    def make_kind(self) -> Kind:
        return HOST

    def make_source(self, file: Fd) -> Evdev:
        return Evdev(file, HOST)


def test_what_the_host_has_typed_before_there_was_a_driver_is_not_for_it(tmp_path: Path) -> None:
    pipe = tmp_path / "evdev"
    os.mkfifo(pipe)
    with serve(Host, events=str(pipe)) as served, open(pipe, "r+b", 0) as host:
        host.write(host_events((KEY, 30, 1), SYN))
        wait_until(lambda: not unread(host.fileno()), "what was typed is read")
        with served.guest(queues=2) as guest:
            guest.keep_filled(EVENTS, count=8, size=EVENT.size)
            host.write(host_events((KEY, 48, 1), SYN))
            assert received(guest, 2) == [(KEY, 48, 1), SYN]
            served.wait_worker(other_than=served.kill_worker())
            host.write(host_events((KEY, 48, 0), SYN))
            assert received(guest, 2) == [(KEY, 48, 0), SYN]


@pytest.mark.parametrize("driven", [True, False])
def test_what_a_dead_worker_has_read_of_the_host_is_for_its_driver(
    tmp_path: Path, driven: bool
) -> None:
    os.mkfifo(tmp_path / "evdev")
    device = Host(InputOptions(events=str(tmp_path / "evdev")))
    device.shared = files = device.shared_files()
    try:
        left = Backlog(device.shared[device._named("state")])
        left.driven = driven
        whole = host_events((KEY, 30, 1), SYN, (KEY, 48, 1))
        left.empty_inbox(0)[: len(whole)] = whole
        device.watch = lambda *_, **__: None  # type: ignore[method-assign]
        device.setup(EVENTS)
        assert left.waiting == 2 * driven
        assert bytes(left.unread()[: INPUT_EVENT.size]) == host_events((KEY, 48, 1))
    finally:
        for file in files.values():
            file.close()


def test_a_text_is_typed_as_a_us_keyboard_has_it() -> None:
    lines = Lines(KINDS["keyboard"], lambda _: None)
    assert lines.typed("a ") == hit(KEYS["a"]) + hit(KEYS["space"])
    shift = [packed(KEY, KEYS["leftshift"], value) for value in (1, 0)]
    for plain, shifted in zip("1234567890-=[];'`\\,./a", '!@#$%^&*()_+{}:"~|<>?A', strict=True):
        assert lines.typed(shifted) == [shift[0], REPORT, *lines.typed(plain), shift[1], REPORT]
