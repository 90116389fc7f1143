"""The GPIO device with the built-in driver: lines, wires, interrupts, scripts, the host's lines."""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.devices.board import Board
from tests.devices.test_i2c import Script
from vuproc import Fd
from vuproc.device_file.check import load
from vuproc.devices import gpio_host
from vuproc.devices.gpio import EVENTS, REQUESTS, Gpio
from vuproc.devices.gpio_host import HostLines, open_lines
from vuproc.devices.gpio_lines import State, nets_of
from vuproc.devices.gpio_options import GpioOptions, LineOptions
from vuproc.errors import ConfigErrors, FileRefused, RequestAbandoned
from vuproc.spec.gpio import (
    CONFIG,
    IRQ_REQUEST,
    REQUEST,
    Direction,
    GpioFeature,
    GpioMessage,
    GpioStatus,
    IrqStatus,
    IrqType,
)
from vuproc.testing import Guest, serve
from vuproc.testing.errors import NoCompletion

pytestmark = pytest.mark.timeout(90)

NAMES, GET_DIRECTION, DIRECT, GET, SET, IRQ = GpioMessage
OK, ERR = GpioStatus
VALID, INVALID = bytes([IrqStatus.VALID]), bytes([IrqStatus.INVALID])
BUTTON, LED, SENSE, PLAIN = range(4)
LINES = [
    {"name": "BUTTON", "value": 1},
    {"name": "LED red"},
    {"name": "SENSE", "wired_to": "LED red"},
    {},
]
BOARD = {"type": "gpio", "lines": LINES}


def ask(guest: Guest, kind: int, line: int = 0, value: int = 0) -> tuple[int, int]:
    """The status and the value of a message's answer."""
    out = [REQUEST.pack(type=kind, gpio=line, value=value)]
    status, result = guest.do(REQUESTS, out, [2]).content
    return status, result


def done(guest: Guest, kind: int, line: int, value: int) -> None:
    assert ask(guest, kind, line, value) == (OK, 0)


def unmask(guest: Guest, line: int) -> tuple[int, int]:
    return guest.submit(EVENTS, [IRQ_REQUEST.pack(gpio=line)], [1])


def nothing(guest: Guest, *tokens: tuple[int, int]) -> None:
    """Nothing has come: what was asked before the device's answer would have."""
    ask(guest, GET, 0)
    for token in tokens:
        with pytest.raises(NoCompletion):
            guest.wait(token, 0.05)


def interrupt(guest: Guest, token: tuple[int, int]) -> bytes:
    return guest.wait(token).content


def test_lines_have_names_directions_and_values_and_keep_them() -> None:
    with serve(BOARD, arguments=["--supervised"]) as served, served.guest(queues=2) as guest:
        names = b"BUTTON\0LED red\0SENSE\0\0"
        assert CONFIG.unpack(guest.config(CONFIG.size)) == {
            "ngpio": 4,
            "gpio_names_size": len(names),
        }
        read = guest.do(REQUESTS, [REQUEST.pack(type=NAMES)], [1 + len(names)])
        assert read.content == bytes([OK]) + names
        assert ask(guest, GET_DIRECTION, LED) == (OK, Direction.NONE)
        assert ask(guest, GET, BUTTON) == (OK, 1)
        # A value counts from when the line is an output.
        done(guest, SET, LED, 1)
        assert ask(guest, GET, SENSE) == (OK, 0)
        done(guest, DIRECT, LED, Direction.OUT)
        assert [ask(guest, GET, line) for line in (LED, SENSE)] == [(OK, 1), (OK, 1)]
        served.wait_worker(other_than=served.kill_worker())
        assert ask(guest, GET, SENSE) == (OK, 1)
        os.kill(served.status().pid, signal.SIGKILL)
        served.wait_for_line("keeper: master")
        assert ask(guest, GET_DIRECTION, LED) == (OK, Direction.OUT)
        done(guest, DIRECT, LED, Direction.IN)
        assert ask(guest, GET, SENSE) == (OK, 0)
        done(guest, DIRECT, LED, Direction.OUT)
        # All that a driver has chosen is gone with NONE, and with a reset.
        done(guest, DIRECT, LED, Direction.NONE)
        done(guest, DIRECT, LED, Direction.OUT)
        assert ask(guest, GET, LED) == (OK, 0)
        done(guest, SET, LED, 1)
        guest.reset()
        assert ask(guest, GET_DIRECTION, LED) == (OK, Direction.NONE)
        assert ask(guest, GET, SENSE) == (OK, 0)


@pytest.mark.parametrize("packed", [False, True])
def test_edges_are_latched_and_told_once(packed: bool) -> None:
    with serve(BOARD) as served, served.guest(queues=2, packed=packed) as guest:
        done(guest, DIRECT, LED, Direction.OUT)
        done(guest, DIRECT, SENSE, Direction.IN)
        # Not enabled: it is of no use to wait.
        assert interrupt(guest, unmask(guest, SENSE)) == INVALID
        done(guest, IRQ, SENSE, IrqType.EDGE_RISING)
        waiting = unmask(guest, SENSE)
        nothing(guest, waiting)
        done(guest, SET, LED, 1)
        assert interrupt(guest, waiting) == VALID
        # Masked by that; what comes now is latched, over a death too.
        done(guest, SET, LED, 0)
        done(guest, SET, LED, 1)
        served.wait_worker(other_than=served.kill_worker())
        assert interrupt(guest, unmask(guest, SENSE)) == VALID
        waiting = unmask(guest, SENSE)
        served.wait_worker(other_than=served.kill_worker())
        done(guest, SET, LED, 0)
        nothing(guest, waiting)
        # No second buffer for a line; and none once it is disabled.
        assert interrupt(guest, unmask(guest, SENSE)) == INVALID
        done(guest, IRQ, SENSE, IrqType.NONE)
        assert interrupt(guest, waiting) == INVALID
        for kind, up, down in (
            (IrqType.EDGE_RISING, True, False),
            (IrqType.EDGE_FALLING, False, True),
            (IrqType.EDGE_BOTH, True, True),
        ):
            done(guest, IRQ, SENSE, kind)
            for value, wanted in ((1, up), (0, down)):
                waiting = unmask(guest, SENSE)
                done(guest, SET, LED, value)
                if wanted:
                    assert interrupt(guest, waiting) == VALID
                    continue
                nothing(guest, waiting)
                done(guest, IRQ, SENSE, IrqType.NONE)
                assert interrupt(guest, waiting) == INVALID
                done(guest, IRQ, SENSE, kind)
            done(guest, IRQ, SENSE, IrqType.NONE)


def test_a_level_interrupts_as_long_as_it_lasts_and_is_not_latched() -> None:
    with serve(BOARD) as served, served.guest(queues=2) as guest:
        done(guest, DIRECT, LED, Direction.OUT)
        done(guest, IRQ, SENSE, IrqType.LEVEL_HIGH)
        done(guest, SET, LED, 1)
        for _ in range(3):
            assert interrupt(guest, unmask(guest, SENSE)) == VALID
        done(guest, SET, LED, 0)
        waiting = unmask(guest, SENSE)
        nothing(guest, waiting)
        guest.stop_queue(EVENTS)
        pid = served.status().queues[EVENTS].pid
        guest.start_queue(EVENTS)
        waiting = unmask(guest, SENSE)
        done(guest, SET, LED, 1)
        assert interrupt(guest, waiting) == VALID
        assert served.status().queues[EVENTS].pid == pid
        done(guest, IRQ, SENSE, IrqType.NONE)
        done(guest, IRQ, SENSE, IrqType.LEVEL_LOW)
        waiting = unmask(guest, SENSE)
        nothing(guest, waiting)
        done(guest, DIRECT, SENSE, Direction.NONE)
        assert interrupt(guest, waiting) == INVALID


def test_c44_requests_that_make_no_sense_fail() -> None:
    with serve(BOARD) as served, served.guest(queues=2) as guest:
        for kind, line, value in (
            (GET, 4, 0),
            (GET, 0xFFFF, 0),
            (0, 0, 0),
            (7, 0, 0),
            (SET, LED, 2),
            (DIRECT, LED, 3),
            (DIRECT, LED, 0xFFFFFFFF),
            (IRQ, SENSE, 5),
            (IRQ, SENSE, 0x10),
        ):
            assert ask(guest, kind, line, value) == (ERR, 0)
        done(guest, DIRECT, LED, Direction.OUT)
        assert ask(guest, IRQ, LED, IrqType.EDGE_BOTH) == (ERR, 0)
        whole = REQUEST.pack(type=GET)
        assert guest.do(REQUESTS, [whole[:7]], [2]).content == bytes([ERR, 0])
        assert guest.do(REQUESTS, [whole, bytes(100)], [1]).content == bytes([OK])
        assert guest.do(REQUESTS, [whole], []).written == 0
        assert guest.do(REQUESTS, [REQUEST.pack(type=NAMES)], [3]).content == b"\0BU"
        for out, in_, answer in (
            ([IRQ_REQUEST.pack(gpio=4)], [1], INVALID),
            ([b"\0"], [1], INVALID),
            ([], [1], INVALID),
            ([IRQ_REQUEST.pack(gpio=SENSE)], [], b""),
        ):
            assert guest.do(EVENTS, out, in_).content == answer
        assert not [line for line in served.lines if "ERROR" in line]
        guest.close()
        with served.guest(queues=2, without=GpioFeature.IRQ) as other:
            assert ask(other, IRQ, SENSE, IrqType.EDGE_BOTH) == (ERR, 0)


def test_scripts_set_lines_and_watch_them(tmp_path: Path) -> None:
    path = tmp_path / "control"
    with serve({**BOARD, "control": str(path)}) as served, served.guest(queues=2) as guest:
        with closing(Script(path)) as script, closing(Script(path)) as watcher:
            assert watcher.say("watch") == "ok"
            done(guest, IRQ, BUTTON, IrqType.EDGE_FALLING)
            waiting = unmask(guest, BUTTON)
            assert script.say("set BUTTON 0") == "ok"
            assert interrupt(guest, waiting) == VALID
            assert script.say("get BUTTON") == "0"
            assert script.say("set 3 1") == "ok"
            done(guest, SET, LED, 1)
            done(guest, DIRECT, LED, Direction.OUT)
            assert script.say("direction LED red") == "out"
            # Of an output a script has no say.
            assert script.say("set SENSE 0") == "ok"
            told = [watcher.lines.readline().strip() for _ in range(4)]
            assert told == ["BUTTON 0", "3 1", "LED red 1", "SENSE 1"]
            for line, said in {
                "set NONE 1": "there is no line NONE",
                "set 4 1": "there is no line 4",
                "set BUTTON 2": "none of set",
                "get 99999999999999999999": "there is no line",
                "fly": "none of set",
            }.items():
                assert said in script.say(line)


def test_a_subclass_hears_of_lines_and_drives_them() -> None:
    lines = [{"name": "LED"}, {"name": "ECHO"}]
    with serve(Board, lines=lines) as served, served.guest(queues=2) as guest:
        done(guest, IRQ, 1, IrqType.EDGE_FALLING)
        waiting = unmask(guest, 1)
        done(guest, SET, 0, 1)
        done(guest, DIRECT, 0, Direction.OUT)
        done(guest, SET, 0, 0)
        assert ask(guest, GET, 1) == (OK, 1)
        nothing(guest, waiting)
        done(guest, SET, 0, 1)
        assert interrupt(guest, waiting) == VALID
        served.wait_for_line("ECHO is 0")


def test_wires_may_form_a_net() -> None:
    assert nets_of([None, 0, None, 1, 2]) == [[0, 1, 3], [0, 1, 3], [2, 4], [0, 1, 3], [2, 4]]


class Buffer:
    """What a device needs of a request on the event queue; its worker dies at a verb."""

    queue = EVENTS
    writable_total = 1
    finished = False
    marked = "run"
    dies_at = ""
    status = b""

    def __init__(self, line: int) -> None:
        self.readable_segments = (memoryview(IRQ_REQUEST.pack(gpio=line)),)

    @property
    def resubmit(self) -> str:
        return self.marked

    @resubmit.setter
    def resubmit(self, value: str) -> None:
        self.marked = value
        if self.dies_at == "mark":
            raise InterruptedError

    def defer(self) -> None:
        pass

    def put(self, offset: int, data: bytes) -> None:
        if self.dies_at == "put":
            raise InterruptedError
        self.status = data

    def finish(self) -> None:
        if self.dies_at == "finish":
            raise InterruptedError
        self.finished = True


@pytest.mark.parametrize("where", ["mark", "put", "finish"])
def test_an_edge_is_told_once_though_a_worker_dies_over_it(where: str) -> None:
    device = Gpio(GpioOptions(lines=(LineOptions(),)))
    files = device.shared_files()
    try:
        for mark in ("run", "fail"):
            device = Gpio(device.options)
            device.shared = files
            device.setup(REQUESTS)
            device.features_acked(GpioFeature.IRQ)
            device._answer(IRQ, 0, IrqType.EDGE_BOTH)
            buffer: Any = Buffer(0)
            device.handle(buffer)
            buffer.dies_at = where
            with pytest.raises(InterruptedError):
                device.set_line("0", mark == "run")
            assert buffer.resubmit == "fail"
            buffer.dies_at = ""
            # It comes to the next worker, which has nothing else to tell of then.
            device = Gpio(device.options)
            device.shared = files
            device.setup(REQUESTS)
            device.fail(buffer, RequestAbandoned(EVENTS, 0, 1))
            assert (buffer.status, buffer.finished) == (VALID, True)
            more: Any = Buffer(0)
            device.handle(more)
            assert not more.finished
    finally:
        for file in files.values():
            file.close()


# Lines of the host, of which the kernel's answers are made up here.


class Kernel:
    """A chip with two lines, the second of which is in use."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.value = 1
        self.pipes: list[Fd] = []

    def ioctl(self, fd: int, request: int, argument: Any, mutate: bool = True) -> Any:
        match request:
            case gpio_host.GET_CHIPINFO:
                return gpio_host.CHIP_INFO.pack(b"chip", b"label", 2)
            case gpio_host.GET_LINE:
                fields = gpio_host.REQUEST.unpack(argument)
                if fields[0] == 1:
                    raise OSError(errno.EBUSY, "busy")
                ours, theirs = os.pipe2(os.O_CLOEXEC)
                self.pipes.append(Fd(theirs))
                self.told.append(("request", fields[:1] + fields[3:4]))
                return gpio_host.REQUEST.pack(*fields[:-1], ours)
            case gpio_host.SET_CONFIG:
                flags, count, attributes = gpio_host.CONFIG.unpack(argument)
                if flags & gpio_host.FALLING and flags & gpio_host.RISING:
                    raise OSError(errno.ENXIO, "no interrupts")
                found = gpio_host.ATTRIBUTE.unpack(attributes[: gpio_host.ATTRIBUTE.size])
                self.told.append(("config", (flags, *found[2:]) if count else (flags,)))
            case gpio_host.GET_VALUES:
                assert (mutate, gpio_host.VALUES.unpack(argument)) == (True, (0, 1))
                argument[:] = array.array("B", gpio_host.VALUES.pack(self.value, 1))
            case _:
                raise AssertionError(f"{request:#x}")
        return 0


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    made = Kernel()
    monkeypatch.setattr(fcntl, "ioctl", made.ioctl)
    yield made
    for pipe in made.pipes:
        pipe.close()


def test_the_kernels_structures_are_as_long_as_it_has_them() -> None:
    sizes = {"CHIP_INFO": 68, "ATTRIBUTE": 24, "CONFIG": 272, "REQUEST": 592, "VALUES": 16}
    assert {name: getattr(gpio_host, name).size for name in sizes} == sizes
    assert gpio_host.GET_LINE == 0xC250B407


def test_lines_of_the_host_are_configured_and_told_of(kernel: Kernel) -> None:
    (file,) = open_lines("/dev/null", [0])
    state = State()
    lines = HostLines(state, [file])
    for direction, output, irq in (
        (Direction.IN, 0, IrqType.NONE),
        (Direction.IN, 0, IrqType.EDGE_RISING),
        (Direction.IN, 0, IrqType.LEVEL_LOW),
        (Direction.OUT, 1, IrqType.NONE),
        (Direction.NONE, 0, IrqType.NONE),
    ):
        state.direction[0], state.output[0], state.irq[0] = direction, output, irq
        assert lines.apply(0) == [0]
    flags = [gpio_host.INPUT | edges for edges in (0, gpio_host.RISING, gpio_host.FALLING)]
    assert kernel.told == [
        ("request", (0, 1)),
        *(("config", (each,)) for each in flags),
        ("config", (gpio_host.OUTPUT, 1, 1)),
        ("config", (gpio_host.INPUT,)),
    ]
    assert lines.level(0) == 1
    assert not lines.empty(0)
    os.write(kernel.pipes[0].fileno(), bytes(gpio_host.EVENT_BYTES))
    assert lines.empty(0)
    file.close()


def test_edges_of_the_host_are_told_and_what_the_kernel_refuses_fails(kernel: Kernel) -> None:
    device = Gpio(GpioOptions(lines=(LineOptions(offset=0),), chip="/dev/null"))
    files = device.shared_files()
    try:
        device.shared = files
        watched = {}
        device.watch = lambda fd, call, **_: watched.update({fd: call})  # type: ignore[method-assign]
        device.setup(REQUESTS)
        device.features_acked(GpioFeature.IRQ)
        assert device._answer(GET, 0, 0) == bytes([OK, 1])
        assert device._answer(DIRECT, 0, Direction.IN) == bytes([OK, 0])
        assert device._answer(IRQ, 0, IrqType.EDGE_BOTH) == bytes([ERR, 0])
        assert device._answer(IRQ, 0, IrqType.EDGE_RISING) == bytes([OK, 0])
        buffer: Any = Buffer(0)
        device.handle(buffer)
        (told,) = watched.values()
        os.write(kernel.pipes[0].fileno(), bytes(gpio_host.EVENT_BYTES))
        told()
        assert buffer.status == VALID
        # A level is what the line is, whatever was told.
        device._answer(IRQ, 0, IrqType.NONE)
        device._answer(IRQ, 0, IrqType.LEVEL_LOW)
        buffer = Buffer(0)
        device.handle(buffer)
        told()
        assert not buffer.finished
        kernel.value = 0
        told()
        assert buffer.status == VALID
        with pytest.raises(ValueError, match="what is attached"):
            device.set_line("0", 1)
    finally:
        for file in files.values():
            file.close()


def test_lines_of_the_host_that_cannot_be_had_are_refused(kernel: Kernel) -> None:
    with pytest.raises(FileRefused, match="line 1 is in use"):
        open_lines("/dev/null", [0, 1])
    with pytest.raises(FileRefused, match="has 2 lines, and none 2"):
        open_lines("/dev/null", [2])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "missing key lines"),
        ({"lines": []}, "length >= 1"),
        ({"lines": [{}] * 257}, "length <= 256"),
        ({"lines": [{"name": "a"}, {"name": "a"}]}, "the name a is taken already"),
        ({"lines": [{"name": "\u00e4"}]}, "name"),
        ({"lines": [{"wired_to": "a"}]}, "wired to a, and no line"),
        ({"lines": [{"offset": 1}]}, "an offset is for lines of a chip"),
        ({"lines": [{}], "chip": "/dev/null"}, "says an offset"),
        ({"lines": [{"offset": 1, "value": 1}], "chip": "/dev/null"}, "its own wires and values"),
        ({"lines": [{"offset": 1}] * 2, "chip": "/dev/null"}, "offset 1 is taken already"),
        ({"lines": [{"offset": 1}], "chip": "/dev/null", "control": "c"}, "what is attached"),
        ({"lines": [{"offset": n} for n in range(65)], "chip": "/dev/null"}, "at most 64"),
        ({"lines": [{"offset": 1}], "chip": "/dev/null"}, "/dev/null: not a GPIO chip"),
        ({"lines": [{"offset": 1}], "chip": "/nowhere"}, "/nowhere: No such file"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    file = tmp_path / "gpio.yaml"
    file.write_text(json.dumps({"socket": "s", "device": {"type": "gpio", **options}}))
    with pytest.raises((ConfigErrors, FileRefused), match=reason):
        load(file).make_device().shared_files()


def test_nobody_goes_on_with_other_lines() -> None:
    def one(**line: Any) -> Gpio:
        return Gpio(GpioOptions(lines=(LineOptions(**line),)))

    left = one(name="a").shared_files()
    assert one(name="a").goes_on_with(left)
    assert not one(name="b").goes_on_with(left)
    for file in left.values():
        file.close()
