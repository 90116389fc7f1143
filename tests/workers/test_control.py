"""The control channel: every message there and back with its descriptors, and what breaks the
rules.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator

import msgspec
import pytest

from vuproc import texts
from vuproc.fd import Fd
from vuproc.workers import control
from vuproc.workers.control import (
    ChannelClosed,
    ChannelError,
    Done,
    MasterChannel,
    RingBroken,
    WorkerChannel,
    master_end,
    worker_end,
)

Ends = tuple[MasterChannel, WorkerChannel, socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield master_end(ours), worker_end(theirs), ours, theirs


COMMANDS: list[control.AnyCommand] = [
    control.Prepare(
        type_ref="blk",
        base_dir="/",
        options=b"\x80",
        chain_limit=256,
        counters=None,
        shared=(),
        log_level=20,
    ),
    control.Assign(queues=(0, 1)),
    control.SetFeatures(features=1 << 32),
    control.SetMemory(regions=(control.Region(0, 4096, 1 << 46, 0),)),
    control.AddRegion(region=control.Region(1 << 32, 4096, (1 << 64) - 8192, 4096)),
    control.RemoveRegion(guest_addr=0, size=4096, user_addr=1 << 46),
    control.StartRing(
        queue=1,
        size=256,
        desc=0,
        avail=4096,
        used=8192,
        base=7,
        enabled=True,
        record_offset=4096,
        kick=True,
        call=False,
        err=False,
    ),
    control.StopRing(queue=0),
    control.EnableRing(queue=0, enabled=False),
    control.SetKick(queue=0),
    control.SetCall(queue=0),
    control.SetErr(queue=0),
    control.WriteConfig(offset=3, data=b"abc"),
    control.ResetDevice(),
    control.SetLogLevel(level=10),
    control.Detach(),
    control.Exit(),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_a_command_arrives_as_it_was_sent(ends: Ends, command: control.AnyCommand) -> None:
    master, worker, *_ = ends
    master.send(control.numbered(command, 7))
    received = worker.receive()
    assert received == (control.numbered(command, 7), ())


def test_descriptors_arrive_in_order_and_are_copies(ends: Ends) -> None:
    master, worker, *_ = ends
    pipes = [os.pipe() for _ in range(3)]
    sent = [Fd(read) for read, _ in pipes]
    master.send(control.SetMemory(regions=()), sent)
    received = worker.receive()
    assert received is not None
    _, fds = received
    assert [os.fstat(fd.fileno()).st_ino for fd in fds] == [
        os.fstat(fd.fileno()).st_ino for fd in sent
    ]
    assert not any(os.get_inheritable(fd.fileno()) for fd in fds)
    for fd in (*fds, *sent):
        fd.close()
    for _, write in pipes:
        os.close(write)


def test_nothing_to_receive_is_none(ends: Ends) -> None:
    master, worker, *_ = ends
    assert master.receive() is None
    assert worker.receive() is None


def test_the_peers_end_is_channel_closed(ends: Ends) -> None:
    master, worker, *_ = ends
    worker.close()
    with pytest.raises(ChannelClosed):
        master.receive()
    with pytest.raises(ChannelClosed):
        master.send(control.Exit())


@pytest.mark.parametrize(
    "data",
    [b"\xc1", b"junk", b"\x81", msgspec.msgpack.encode({"type": "Nonsense"}), b"\x00" * 5000],
    ids=["reserved", "text", "truncated", "unknown", "zeros"],
)
def test_a45_a_datagram_that_is_no_message_is_an_error(ends: Ends, data: bytes) -> None:
    master, _, _, theirs = ends
    theirs.send(data)
    with pytest.raises(ChannelError):
        master.receive()


def test_a45_a_datagram_that_is_too_long_is_an_error(ends: Ends) -> None:
    master, _, _, theirs = ends
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    theirs.setblocking(True)
    theirs.send(msgspec.msgpack.encode(Done(1)) + b"\0" * (control.MAX_DATAGRAM + 1))
    with pytest.raises(ChannelError):
        master.receive()


def test_a46_the_master_takes_no_descriptors_from_a_worker(ends: Ends) -> None:
    master, _, _, theirs = ends
    before = len(os.listdir("/proc/self/fd"))
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1]))]
    theirs.sendmsg([msgspec.msgpack.encode(Done(1))], rights)
    with pytest.raises(ChannelError):
        master.receive()
    assert len(os.listdir("/proc/self/fd")) == before


def test_d15_a_peer_that_does_not_read_is_an_error_in_bounded_time(ends: Ends) -> None:
    master, *_ = ends
    with pytest.raises(ChannelError):
        for _ in range(10_000):
            master.send(control.Exit(), timeout=0.05)


def test_a_message_over_the_limits_is_not_sent(ends: Ends) -> None:
    master, worker, *_ = ends
    with pytest.raises(ChannelError):
        master.send(control.WriteConfig(offset=0, data=b"\0" * (control.MAX_DATAGRAM + 1)))
    assert worker.receive() is None


def test_reports_arrive_as_they_were_sent(ends: Ends) -> None:
    master, worker, *_ = ends
    worker.send(RingBroken(3, "cause"))
    worker.send(Done(9, 17))
    assert master.receive() == (RingBroken(3, "cause"), ())
    assert master.receive() == (Done(9, 17), ())


@pytest.mark.parametrize(
    "data",
    [b"\x83\xa4type\xa6Failed\xa6serial\x01\xa6reason\xa2\xff\xfe", b"\x91" * 60_000],
    ids=["not UTF-8", "nested"],
)
def test_a7_a_datagram_that_python_refuses_to_read_is_an_error(ends: Ends, data: bytes) -> None:
    master, _, _, theirs = ends
    theirs.send(data)
    with pytest.raises(ChannelError, match="not a message"):
        master.receive()


HOSTILE = {
    "long": "x" * 100_000,
    "a lone surrogate": "before \ud800 after",
    "control characters": "\x1b[2J\x00 vuproc disk: ERROR: queue 0: broken",
    "many lines": "\n" * 100_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("make", [control.Failed, control.RingBroken, control.Logged])
def test_a7_a_report_takes_any_text_and_makes_it_fit(
    ends: Ends, make: type[control.Failed | control.RingBroken | control.Logged], text: str
) -> None:
    master, worker, _, _ = ends
    report = make(1, text)
    worker.send(report)
    received = master.receive()
    assert received == (report, ())
    shown = msgspec.structs.astuple(report)[1]
    assert len(shown.encode()) <= texts.BLOCK_BYTES
    assert shown.replace("\n", "").isprintable()


def test_a7_the_master_makes_fit_what_a_worker_did_not(ends: Ends) -> None:
    master, _, _, theirs = ends
    theirs.send(msgspec.msgpack.encode({"type": "Failed", "serial": 1, "reason": "\n" * 50_000}))
    received = master.receive()
    assert received is not None and isinstance(received[0], control.Failed)
    assert len(received[0].reason) <= texts.LINE_BYTES


def test_c12_how_long_a_peer_was_waited_for_is_rounded(ends: Ends) -> None:
    master, _, _, _ = ends
    with pytest.raises(ChannelError, match=r"read nothing for 0\.01 s$"):
        while True:
            master.send(control.Detach(serial=1), timeout=0.0100000314)
