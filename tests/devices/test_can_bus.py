"""A CAN bus of the host, by a module that does what python-can does."""

from __future__ import annotations

import errno
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vuproc.devices.can_bus import ERR_BUSOFF, MOST_FAILURES, BusLost, HostBus
from vuproc.devices.can_frame import Frame

pytestmark = pytest.mark.timeout(30)


class Message(types.SimpleNamespace):
    def __init__(self, **fields: Any) -> None:
        plain = {"is_error_frame": False, "is_remote_frame": False, "is_fd": False}
        super().__init__(**{**plain, "is_extended_id": False, "dlc": 0, "data": b"", **fields})


class CanError(Exception):
    def __init__(self, message: str, error_code: int | None = None) -> None:
        super().__init__(message)
        self.error_code = error_code


class FakeBus:
    """What it is to say is in `script`: messages, and errors to raise."""

    def __init__(self, **given: Any) -> None:
        self.given = given
        self.sent: list[Message] = []
        self.script: list[Any] = []
        self.failures: list[CanError] = []
        self.closed = False
        if given.get("channel") == "nowhere":
            raise OSError(errno.ENODEV, "No such device")

    def send(self, message: Message, timeout: float) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.sent.append(message)

    def recv(self, timeout: float) -> Message | None:
        said = self.script.pop(0) if self.script else None
        if isinstance(said, Exception):
            raise said
        assert said is None or isinstance(said, Message)
        return said

    def fileno(self) -> int:
        if self.given.get("channel") == "without":
            raise NotImplementedError
        return 99

    def shutdown(self) -> None:
        self.closed = True


Opened = Callable[..., tuple[HostBus, FakeBus, list[Any]]]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """A bus, what is behind it, and what it has said."""
    fakes: list[FakeBus] = []
    buses: list[HostBus] = []

    def make_bus(**given: Any) -> FakeBus:
        fakes.append(FakeBus(**given))
        return fakes[-1]

    fake = types.ModuleType("can")
    fake.__dict__.update(Bus=make_bus, Message=Message, CanError=CanError)
    monkeypatch.setitem(sys.modules, "can", fake)

    def make(
        channel: str | None = "can0", interface: str = "socketcan"
    ) -> tuple[HostBus, FakeBus, list[Any]]:
        said: list[Any] = []
        bus = HostBus(
            interface,
            channel=channel,
            bitrate=None,
            fd=True,
            received=said.append,
            lost=said.append,
        )
        buses.append(bus)
        return bus, fakes[-1], said

    yield make
    for bus in buses:
        bus.close()
    assert all(fake.closed for fake in fakes)


def test_a_host_bus_is_opened_with_what_the_options_say(opened: Opened) -> None:
    bus, fake, _ = opened()
    assert fake.given == {
        "interface": "socketcan",
        "ignore_config": True,
        "channel": "can0",
        "fd": True,
    }
    assert bus.fileno() == 99
    assert opened("without")[0].fileno() == -1
    with pytest.raises(BusLost, match=r"socketcan: .*No such device"):
        opened("nowhere")


def test_a_host_bus_sends_as_python_can_wants_it(opened: Opened) -> None:
    bus, fake, _ = opened()
    fake.failures = [CanError("full", errno.ENOBUFS)] * 2
    assert bus.send(Frame(0x123, b"abc"))
    assert bus.send(Frame(1 << 20, extended=True, remote=True, length=5))
    assert bus.send(Frame(4, bytes(64), fd=True))
    first, second, third = fake.sent
    assert (first.arbitration_id, first.data, first.dlc) == (0x123, b"abc", 3)
    assert not (first.is_extended_id or first.is_remote_frame or first.is_fd)
    assert (second.is_extended_id, second.is_remote_frame, second.dlc) == (True, True, 5)
    assert (third.is_fd, third.dlc) == (True, 64)
    fake.failures = [CanError("down", errno.ENETDOWN)]
    assert not bus.send(Frame(5))


def test_a_host_bus_hands_over_what_others_send(opened: Opened) -> None:
    bus, fake, said = opened()
    fake.script = [
        Message(arbitration_id=1, data=bytearray(b"ab"), dlc=2),
        Message(arbitration_id=2, is_extended_id=True, is_remote_frame=True, dlc=7),
        Message(arbitration_id=0x80, is_error_frame=True),
        Message(arbitration_id=3, data=bytes(2000), is_fd=True),
        CanError("a stray datagram"),
        Message(arbitration_id=4, data=bytes(64), is_fd=True),
    ]
    bus.read()
    bus.read()
    frames = [Frame(1, b"ab"), Frame(2, extended=True, remote=True, length=7)]
    assert said == [*frames, Frame(4, bytes(64), fd=True)]


def test_a_host_bus_that_echoes_is_not_heard_twice(opened: Opened) -> None:
    for interface, heard in (("udp_multicast", [Frame(2), Frame(1)]), ("socketcan", None)):
        bus, fake, said = opened("group", interface)
        assert bus.send(Frame(1))
        fake.script = [Message(arbitration_id=number) for number in (2, 1, 1)]
        bus.read()
        assert said == (heard or [Frame(2), Frame(1), Frame(1)])


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ([Message(arbitration_id=ERR_BUSOFF, is_error_frame=True)], "bus off"),
        ([CanError("down", errno.ENETDOWN)], "down"),
        ([CanError("stray")] * (MOST_FAILURES + 1), "stray"),
        ([OSError(errno.EIO, "unplugged")], "unplugged"),
        ([KeyError("a library's fault")] * (MOST_FAILURES + 1), "fault"),
    ],
)
def test_a_host_bus_says_when_it_is_lost(opened: Opened, script: list[Any], reason: str) -> None:
    bus, fake, said = opened()
    for _ in script[1:]:
        fake.script = [script[0]]
        bus.read()
        assert said == []
    fake.script = [script[0]]
    bus.read()
    (last,) = said
    assert reason in last


def test_a_bus_without_a_descriptor_has_a_thread(opened: Opened) -> None:
    bus, fake, said = opened("without")
    calls: list[Callable[[], None]] = []
    fake.script = [
        Message(arbitration_id=1),
        CanError("stray"),
        Message(arbitration_id=2),
        CanError("gone", errno.ENODEV),
    ]

    def call_soon(call: Callable[[], None]) -> None:
        calls.append(call)
        call()

    bus.listen(call_soon)
    assert bus._thread is not None
    bus._thread.join(30)
    assert said == [Frame(1), Frame(2), "gone"]
    assert len(calls) == 3


def test_a_bus_that_was_left_is_not_lost_any_more(opened: Opened) -> None:
    bus, fake, said = opened("without")
    calls: list[Callable[[], None]] = []
    fake.script = [CanError("gone", errno.ENODEV)]
    bus.listen(calls.append)
    assert bus._thread is not None
    bus._thread.join(30)
    bus.close()
    (call,) = calls
    call()
    assert said == []
