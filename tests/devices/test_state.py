"""A device's own state: from one device to another, through deaths, and against the rules."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.devices.stateful import LARGE, Notes, OlderNotes, OtherNotes, Plain, Sum
from vuproc.ops.admin import Request, ask
from vuproc.spec.vhost_user import ProtocolFeature, StateDirection
from vuproc.testing import Guest, Refused, Served, device_state, serve
from vuproc.workers import state_bytes
from vuproc.workers.state_bytes import kind_of, pack

SAVE, LOAD = StateDirection.SAVE, StateDirection.LOAD

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def notes() -> Iterator[Served]:
    with serve(Notes) as served:
        yield served


@contextmanager
def suspended(served: Served, said: bytes = b"") -> Iterator[Guest]:
    """A guest whose device was told something, and was stopped as QEMU stops one."""
    with served.guest(queues=2) as guest:
        if said:
            guest.do(out=[said])
        guest.stop_queue(0)
        guest.stop_queue(1)
        guest.set_status(0)
        yield guest


def resume(guest: Guest) -> None:
    """As QEMU has it, when a guest runs on."""
    guest.front_end.set_features(guest.front_end.features)
    guest.start_queue(0)
    guest.start_queue(1)


def asked(guest: Guest) -> bytes:
    """What the device remembers."""
    resume(guest)
    return guest.do(in_=[64]).content


def refused(served: Served, reason: str, message: str, before: int) -> None:
    """The log says why."""
    line = served.wait_for_line(f"refused {message}", after=before)
    assert reason in line


@pytest.mark.proves(
    "SET_DEVICE_STATE_FD", "CHECK_DEVICE_STATE", "PROTOCOL_F_DEVICE_STATE", front_end="built-in"
)
@pytest.mark.parametrize("size", [3, 70000, LARGE], ids=["small", "a pipe and more", "large"])
def test_a_state_is_saved_and_loaded(notes: Served, size: int) -> None:
    with suspended(notes, b"abc") as one:
        state = one.front_end.save_state()
        kind = kind_of(Notes())
        assert state == pack(kind, b"abc")
        # It may be had again, and the device goes on with it.
        assert one.front_end.save_state() == state
        assert asked(one) == b"abc"
    content = b"abc" + os.urandom(size - 3)
    with suspended(notes) as two:
        two.front_end.load_state(pack(kind, content))
        assert two.front_end.save_state() == pack(kind, content)
        assert asked(two) == content[:64]


def test_a_large_state_leaves_the_device_in_many_pieces(notes: Served) -> None:
    with suspended(notes, b"large") as guest:
        data, version = state_bytes.unpack(kind_of(Notes()), guest.front_end.save_state())
        assert (len(data), version) == (LARGE, 2)


def test_a_reset_forgets_what_a_stop_keeps(notes: Served) -> None:
    with suspended(notes, b"kept") as guest:
        assert asked(guest) == b"kept"
        guest.reset()
        assert guest.do(in_=[64]).content == b""


def test_without_the_means_to_say_otherwise_a_stop_is_a_reset(notes: Served) -> None:
    features = ~(ProtocolFeature.RESET_DEVICE | ProtocolFeature.GPA_ADDRESSES)
    with notes.guest(queues=2, protocol_features=features) as guest:
        guest.do(out=[b"gone"])
        guest.stop_queue(0)
        guest.stop_queue(1)
        guest.set_status(0)
        assert asked(guest) == b""


def test_the_state_of_several_workers_is_in_what_they_share() -> None:
    with serve(Sum) as one, serve(Sum) as two:
        with one.guest(queues=2) as source:
            source.do(0, out=[b"30"])
            assert source.do(1, out=[b"12"], in_=[8]).content == b"42"
            source.stop_queue(0)
            source.stop_queue(1)
            state = source.front_end.save_state()
        with two.guest(queues=2, start=False) as target:
            target.setup()
            target.front_end.load_state(state)
            for index in range(2):
                target.start_queue(index)
            two.kill_worker(0)
            assert target.do(1, out=[b"100"], in_=[8]).content == b"142"
            assert target.do(0, out=[b"1000"], in_=[8]).content == b"1142"


def test_a_device_of_an_older_version_is_read_and_one_of_a_newer_is_not(notes: Served) -> None:
    older, newer = pack(kind_of(OlderNotes()), b"said"), pack(kind_of(Notes()), b"said")
    with suspended(notes) as guest:
        guest.front_end.load_state(older)
        assert asked(guest) == b"of version 1"
    with serve(OlderNotes()) as served, suspended(served) as guest:
        with pytest.raises(Refused, match="CHECK_DEVICE_STATE"):
            guest.front_end.load_state(newer)
        refused(served, "of version 2, this device reads 1 to 1", "CHECK_DEVICE_STATE", 0)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"raise", "save_state: ValueError: nothing to be had"),
        (b"text", "save_state returned str, not bytes"),
        (b"too much", "at most 67108864 are moved"),
    ],
)
def test_a_device_that_gives_no_state(notes: Served, said: bytes, reason: str) -> None:
    before = len(notes.lines)
    with suspended(notes, said) as guest:
        with pytest.raises(Refused, match="SET_DEVICE_STATE_FD was refused with code 257"):
            guest.front_end.save_state()
        refused(notes, reason, "SET_DEVICE_STATE_FD", before)
        assert asked(guest) == said


def test_a_device_that_does_not_take_a_state_keeps_its_own(notes: Served) -> None:
    before = len(notes.lines)
    with suspended(notes, b"mine") as guest:
        for state, reason in (
            (pack(kind_of(Notes()), b"raise later"), "load_state: ValueError: not like this"),
            (pack(kind_of(OtherNotes()), b"theirs"), "the state is one of OtherNotes"),
        ):
            with pytest.raises(Refused, match="CHECK_DEVICE_STATE was refused with code 1"):
                guest.front_end.load_state(state)
            refused(notes, reason, "CHECK_DEVICE_STATE", before)
            before = len(notes.lines)
        assert asked(guest) == b"mine"


def test_only_a_device_that_can_is_asked() -> None:
    with serve(Plain) as served, served.guest(start=False) as guest:
        guest.setup()
        assert ProtocolFeature.DEVICE_STATE not in guest.front_end.protocol_features
        with pytest.raises(Refused):
            guest.front_end.save_state()


# ---- deaths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [SAVE, LOAD])
def test_a_worker_dies_in_the_middle(direction: StateDirection) -> None:
    with serve(Notes) as served, suspended(served, b"large") as guest:
        pid = served.wait_worker(0)
        with device_state.begin(guest.front_end, direction) as pipe:
            if direction == LOAD:
                os.write(pipe.fileno(), pack(kind_of(Notes()), b"half of it")[:-5])
            else:
                assert readable(pipe.fileno()) and os.read(pipe.fileno(), 100)
            assert served.kill_worker(0) == pid
            if direction == SAVE:
                assert len(left_behind(pipe.fileno())) < LARGE
        with pytest.raises(Refused, match="CHECK_DEVICE_STATE was refused with code 1"):
            device_state.check(guest.front_end)
        refused(served, "the worker that had begun it has died", "CHECK_DEVICE_STATE", 0)
        # Its successor is ready for the next.
        guest.front_end.load_state(pack(kind_of(Notes()), b"again"))
        assert asked(guest) == b"again"


def readable(number: int) -> bool:
    poller = select.poll()
    poller.register(number, select.POLLIN)
    return bool(poller.poll(30000))


def left_behind(number: int) -> bytes:
    """What a pipe holds once nobody can write into it any more."""
    poller = select.poll()
    poller.register(number, 0)
    # Not read before: what is taken makes room for a writer that has not died yet.
    assert poller.poll(30000), "the pipe did not end"
    came = bytearray()
    while data := os.read(number, 1 << 20):
        came += data
    return bytes(came)


def test_a_device_that_dies_over_its_state_each_time() -> None:
    with serve(Notes) as served, suspended(served) as guest:
        with pytest.raises(Refused, match="CHECK_DEVICE_STATE"):
            guest.front_end.load_state(pack(kind_of(Notes()), b"die later"))
        assert asked(guest) == b""
        guest.do(out=[b"die"])
        guest.stop_queue(0)
        guest.stop_queue(1)
        # The one that follows does not know what was said, and gives that.
        state = guest.front_end.save_state()
        assert state == pack(kind_of(Notes()), b"")


def master_of(served: Served) -> int:
    return int(ask(served.socket, Request("status"), 60.0)["pid"])


def test_the_master_dies_in_the_middle() -> None:
    """Its workers end with it, and nobody knows how much of the state the front-end has had."""
    with serve(Notes, arguments=["--supervised"]) as served:
        with suspended(served, b"large") as guest:
            with device_state.begin(guest.front_end, SAVE) as pipe:
                os.kill(master_of(served), signal.SIGKILL)
                assert len(left_behind(pipe.fileno())) < LARGE
            with pytest.raises(Refused, match="CHECK_DEVICE_STATE was refused with code 1"):
                device_state.check(guest.front_end)
            assert asked(guest) == b""


def test_the_master_dies_while_the_device_is_asked() -> None:
    """The message is applied again, by a master that knows that it was begun.

    The worker kills it, which no sandbox would let it do.
    """
    with serve(Notes, file={"sandbox": "off"}, arguments=["--supervised"]) as served:
        with served.guest(queues=2, timeout_s=90.0) as guest:
            guest.do(out=[b"kill %d" % master_of(served)])
            guest.stop_queue(0)
            guest.stop_queue(1)
            with pytest.raises(Refused, match="SET_DEVICE_STATE_FD was refused with code 257"):
                guest.front_end.save_state()
            refused(served, "a master died over it", "SET_DEVICE_STATE_FD", 0)
            guest.front_end.load_state(pack(kind_of(Notes()), b"again"))
            assert asked(guest) == b"again"


def test_the_front_end_dies_in_the_middle(notes: Served) -> None:
    for direction in (SAVE, LOAD):
        with suspended(notes, b"large") as guest:
            pipe = device_state.begin(guest.front_end, direction)
            if direction == LOAD:
                os.write(pipe.fileno(), b"VUP")
        before = len(notes.lines)
        pipe.close()
        with suspended(notes, b"next") as guest:
            assert guest.front_end.save_state() == pack(kind_of(Notes()), b"next")
        assert not any("SIG" in line for line in notes.lines[before:])
