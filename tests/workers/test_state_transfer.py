"""The transfer of a state, by itself: what the front-end's end of the pipe may do, and how long."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import cast

import pytest

from tests.devices.stateful import Notes
from vuproc.fd import Fd
from vuproc.workers import state_bytes
from vuproc.workers.device_code import DeviceCode
from vuproc.workers.poller import Watcher
from vuproc.workers.state_bytes import StateError, kind_of, pack
from vuproc.workers.state_transfer import CHECK_S, TRANSFER_S, StateTransfer


class Code:
    """Calls of the device's code; nobody watches."""

    def in_hook(self) -> nullcontext[None]:
        return nullcontext()


class Limit:
    """A timer of the test's."""

    def __init__(self, seconds: float, callback: Callable[[], None]) -> None:
        self.seconds = seconds
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Bench:
    """A device, its transfer, and the front-end's end of the pipe."""

    def __init__(self) -> None:
        self.device = Notes()
        self.device.notes = b""
        self.watcher = Watcher()
        self.limits: list[Limit] = []
        self.ours = -1
        self.transfer = StateTransfer(
            self.device, cast(DeviceCode, Code()), self.watcher, self.call_later
        )

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Limit:
        self.limits.append(Limit(seconds, callback))
        return self.limits[-1]

    def save(self) -> None:
        self.ours, theirs = os.pipe2(os.O_CLOEXEC)
        self.transfer.save(Fd(theirs))

    def load(self) -> None:
        theirs, self.ours = os.pipe2(os.O_CLOEXEC)
        self.transfer.load(Fd(theirs))

    def go_on(self) -> None:
        while self.watcher.poll(0.0):
            pass

    def hang_up(self) -> None:
        os.close(self.ours)
        self.ours = -1

    def live(self) -> list[float]:
        """Of the timers that are not cancelled, the seconds."""
        return [limit.seconds for limit in self.limits if not limit.cancelled]

    def fails(self, reason: str) -> None:
        assert not self.transfer.moving and not self.live()
        with pytest.raises(StateError) as caught:
            self.transfer.check()
        assert reason in str(caught.value)
        with pytest.raises(StateError, match="no transfer was begun"):
            self.transfer.check()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.transfer.end()
    if bench.ours >= 0:
        bench.hang_up()
    bench.watcher.close()


def test_the_pipe_ends_behind_the_last_byte(bench: Bench) -> None:
    bench.device.notes = b"abc"
    bench.save()
    assert bench.live() == [TRANSFER_S]
    bench.go_on()
    assert not bench.live()
    assert os.read(bench.ours, 1 << 16) == pack(kind_of(bench.device), b"abc")
    assert os.read(bench.ours, 1) == b""
    bench.transfer.check()


def test_what_comes_is_loaded_when_it_is_asked_for(bench: Bench) -> None:
    bench.load()
    state = pack(kind_of(bench.device), b"abc")
    for byte in state:
        os.write(bench.ours, bytes([byte]))
        bench.go_on()
    assert bench.live() and bench.device.notes == b""
    bench.hang_up()
    bench.go_on()
    assert not bench.live()
    bench.transfer.check()
    assert bench.device.notes == b"abc"


def test_a43_a_peer_that_never_reads(bench: Bench) -> None:
    bench.device.notes = bytes(1 << 20)
    bench.save()
    bench.watcher.poll(0.0)
    (limit,) = (limit for limit in bench.limits if not limit.cancelled)
    limit.callback()
    bench.fails("of 1048640 bytes were taken within 60 s")


def test_a43_a_peer_that_asks_before_its_part_is_done(bench: Bench) -> None:
    bench.load()
    os.write(bench.ours, b"abc")
    bench.watcher.poll(0.0)
    bench.transfer.hurry()
    assert bench.live() == [CHECK_S]
    bench.limits[-1].callback()
    bench.fails("3 bytes came, and not the end within 2 s")


def test_a43_a_peer_that_closes_its_end_at_once(bench: Bench) -> None:
    bench.device.notes = bytes(1 << 20)
    bench.save()
    bench.hang_up()
    bench.watcher.poll(0.0)
    bench.fails("Broken pipe: 0 of 1048640 bytes were taken")
    bench.load()
    bench.hang_up()
    bench.watcher.poll(0.0)
    bench.fails("0 bytes are no state of a device")


def test_a43_more_than_any_state_is(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_bytes, "ALL_MAX", 1000)
    bench.load()
    os.write(bench.ours, bytes(1001))
    bench.watcher.poll(0.0)
    bench.fails("more than 1000 bytes came")


def test_a43_a_peer_that_keeps_a_copy_of_our_end(bench: Bench) -> None:
    """What it takes out of the pipe itself is not waited for."""
    theirs, bench.ours = os.pipe2(os.O_CLOEXEC)
    copy = os.dup(theirs)
    bench.transfer.load(Fd(theirs))
    assert not os.get_blocking(copy)
    os.close(copy)


def test_another_transfer_takes_the_place_of_the_first(bench: Bench) -> None:
    bench.save()
    first = bench.ours
    bench.device.notes = b"later"
    bench.save()
    assert os.read(first, 1) == b""
    os.close(first)
    bench.go_on()
    assert os.read(bench.ours, 1 << 16).endswith(b"later") and not bench.live()


def test_it_is_known_how_long_to_wait(bench: Bench) -> None:
    bench.load()
    assert bench.transfer.moving
    bench.hang_up()
    bench.go_on()
    moving: bool = bench.transfer.moving
    assert not moving


def test_the_end_of_a_transfer_forgets_it(bench: Bench) -> None:
    bench.load()
    os.write(bench.ours, pack(kind_of(bench.device), b"abc"))
    bench.hang_up()
    bench.go_on()
    bench.transfer.end()
    bench.fails("no transfer was begun")
    assert bench.device.notes == b""
