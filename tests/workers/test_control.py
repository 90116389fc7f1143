"""The control channel: every message there and back with its descriptors, and what breaks the
rules.
"""

from __future__ import annotations

import array
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast, get_args

import msgspec
import pytest

from vuproc import texts
from vuproc.fd import Fd
from vuproc.mapping import MapShmem, ShmemMapping
from vuproc.vhost_user import effects
from vuproc.vhost_user.effects import Idle, Inflight, LogArea, Order, Region, RingSetup
from vuproc.workers import control
from vuproc.workers.channel import MAX_DATAGRAM, TOGETHER_MOST, ChannelClosed, ChannelError
from vuproc.workers.control import (
    Done,
    Failed,
    LockedIn,
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


@pytest.fixture
def pipes() -> Iterator[tuple[Fd, ...]]:
    """Files that differ from each other."""
    fds: list[Fd] = []
    for _ in range(3):
        read, write = map(Fd, os.pipe())
        fds += [read, write]
    yield tuple(fds)
    for fd in fds:
        fd.close()


def setup_of(pipes: tuple[Fd, ...]) -> RingSetup:
    return RingSetup(
        index=1,
        size=256,
        desc=0,
        avail=4096,
        used=8192,
        base=7,
        enabled=True,
        kick=pipes[0],
        call=None,
        err=pipes[1],
        inflight=Inflight(pipes[2], 4096, 256),
    )


def order_of(kind: type[Order], pipes: tuple[Fd, ...]) -> control.AnyOrder:
    """One of each kind."""
    regions = tuple(
        Region(n << 32, 4096, (1 << 46) + (n << 32), 4096, fd) for n, fd in enumerate(pipes)
    )
    orders: list[control.AnyOrder] = [
        control.Prepare(
            type_ref="blk",
            base_dir="/",
            options=b"\x80",
            chain_limit=256,
            counters=None,
            shared={"image": pipes[0], "other": pipes[1]},
            log_level=20,
        ),
        control.Assign((0, 1)),
        control.Help(),
        effects.SetFeatures(1 << 32),
        effects.SetMemory(regions),
        effects.AddRegion(regions[0]),
        effects.RemoveRegion(regions[1]),
        effects.OpenUserfault(),
        effects.StageMemory(regions),
        effects.GuardMemory(),
        effects.CloseUserfault(),
        effects.StartRing(setup_of(pipes)),
        effects.StopRing(0),
        effects.EnableRing(0, False),
        effects.SetKick(0, pipes[0]),
        effects.SetCall(0, None),
        effects.SetErr(0, pipes[2]),
        effects.SetLog(LogArea(pipes[0], 24, 8192), pipes[2]),
        effects.LogUsedRing(1, 1 << 40),
        effects.UpdateIotlb(1 << 63, 4096, 1 << 46, 3),
        effects.InvalidateIotlb(0, (1 << 64) - 1),
        effects.WriteConfig(3, b"abc"),
        effects.SetMtu(1500),
        effects.Announce(bytes(6)),
        effects.SaveState(pipes[1]),
        effects.LoadState(pipes[0]),
        effects.CheckTransfer(),
        effects.EndTransfer(),
        effects.SetDisplay(pipes[0]),
        effects.ResetDevice(),
        control.BlameUring(0, 5),
        control.AskConfig(True),
        control.ObjectFound(bytes(16), pipes[1]),
        control.ShmemDone(7, "why not"),
        control.ShmemKnown((ShmemMapping(0, 4096, 8192, True),)),
        control.Untranslated(0, 1 << 63, 2),
        control.SetLogLevel(10),
        control.Detach(),
        control.Exit(),
    ]
    return next(order for order in orders if type(order) is kind)


def shown(value: object, fds: tuple[Fd, ...]) -> object:
    """A message with the inode of each descriptor in its place, in their order."""
    return msgspec.to_builtins(
        value, enc_hook=lambda fd: os.fstat(fds[fds.index(fd)].fileno()).st_ino
    )


@pytest.mark.parametrize("kind", get_args(control.AnyOrder), ids=lambda kind: kind.__name__)
def test_a_command_arrives_as_it_was_sent(
    ends: Ends, pipes: tuple[Fd, ...], kind: type[Order]
) -> None:
    master, worker, *_ = ends
    command = control.Command(7, order_of(kind, pipes))
    master.send(command)
    received = worker.receive()
    assert received is not None
    got, fds = received
    try:
        assert shown(got, fds) == shown(command, pipes)
        assert not any(os.get_inheritable(fd.fileno()) for fd in fds)
        assert not {fd.fileno() for fd in fds} & {fd.fileno() for fd in pipes}
    finally:
        for fd in fds:
            fd.close()


@pytest.mark.parametrize(
    ("numbers", "sent"),
    [([0], 2), ([0, 0], 2), ([1, 0], 1), ([-1], 1), ([True], 2), (["0"], 1), ([0], 0)],
    ids=["one unnamed", "one twice", "one too many", "negative", "a bool", "text", "none came"],
)
def test_a46_a_message_names_each_of_its_descriptors_once(
    ends: Ends, pipes: tuple[Fd, ...], numbers: list[object], sent: int
) -> None:
    _, worker, ours, _ = ends
    names = {str(n): number for n, number in enumerate(numbers)}
    prepare = {
        "type": "Prepare",
        "type_ref": "blk",
        "base_dir": "/",
        "options": b"",
        "chain_limit": 1,
        "counters": None,
        "shared": names,
        "log_level": 20,
    }
    before = len(os.listdir("/proc/self/fd"))
    rights = array.array("i", [fd.fileno() for fd in pipes[:sent]])
    ours.sendmsg(
        [msgspec.msgpack.encode([1, prepare])],
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if sent else [],
    )
    with pytest.raises(ChannelError):
        worker.receive()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_true_of_an_order_stands_in_its_class() -> None:
    """A worker decides by these; the names are those of the specification's messages."""
    rings = {kind.__name__: kind.needs_idle for kind in get_args(control.AnyOrder)}
    assert {name for name, idle in rings.items() if idle is Idle.EVERY_RING} == {
        *("SetMemory", "RemoveRegion", "StageMemory", "GuardMemory", "ResetDevice")
    }
    assert {name for name, idle in rings.items() if idle is Idle.ITS_RING} == {"StopRing"}
    kept = {kind.__name__ for kind in get_args(control.AnyOrder) if kind.keeps_fds}
    assert kept == {
        "Prepare",
        "ObjectFound",
        "StartRing",
        "SetKick",
        "SetCall",
        "SetErr",
        "SetLog",
        "SetDisplay",
        "SaveState",
        "LoadState",
    }


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
        master.send(control.Command(1, control.Exit()))


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


def test_several_messages_come_one_by_one_each_with_its_descriptors(
    ends: Ends, pipes: tuple[Fd, ...]
) -> None:
    master, worker, *_ = ends
    given: list[control.AnyReport] = [
        Done(1),
        MapShmem(1, ShmemMapping(0, 0, 4096), pipes[0], 0),
        Failed(2, "why"),
        MapShmem(2, ShmemMapping(0, 0, 4096), pipes[2], 0),
    ]
    worker.send(*given)
    worker.send(Done(3))
    files: list[Fd] = []
    for number in range(4):
        received = master.receive()
        assert received is not None
        report, fds = received
        assert type(report) is type(given[number])
        assert master.has_unread is (number < 3)
        assert fds == ((report.file,) if isinstance(report, MapShmem) else ())
        files += fds
    inodes = [os.fstat(file.fileno()).st_ino for file in files]
    assert inodes == [os.fstat(pipes[at].fileno()).st_ino for at in (0, 2)]
    assert master.receive() == (Done(3), ())
    for file in files:
        file.close()


def test_what_was_not_received_of_several_is_closed_with_the_channel(
    ends: Ends, pipes: tuple[Fd, ...]
) -> None:
    master, worker, *_ = ends
    before = len(os.listdir("/proc/self/fd"))
    worker.send(Done(1), MapShmem(1, ShmemMapping(0, 0, 4096), pipes[0], 0))
    assert master.receive() == (Done(1), ())
    assert len(os.listdir("/proc/self/fd")) == before + 1
    master.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1  # the socket's, too


@pytest.mark.parametrize(
    "several",
    [
        [],
        [Done(1)] * (TOGETHER_MOST + 1),
        [Done(1), {"type": "nothing"}],
        [Done(1), MapShmem(1, ShmemMapping(0, 0, 4096), cast(Any, 7), 0)],
        7,
    ],
    ids=["none", "too many", "one unknown", "one without its descriptor", "no array"],
)
def test_a45_of_several_all_are_messages_or_none_is(ends: Ends, several: object) -> None:
    master, _, _, theirs = ends
    theirs.send(b"\xc1" + msgspec.msgpack.encode(several))
    with pytest.raises(ChannelError):
        master.receive()
    assert not master.has_unread and master.receive() is None


def test_a45_a_datagram_that_is_too_long_is_an_error(ends: Ends) -> None:
    master, _, _, theirs = ends
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    theirs.setblocking(True)
    theirs.send(msgspec.msgpack.encode(Done(1)) + b"\0" * (MAX_DATAGRAM + 1))
    with pytest.raises(ChannelError):
        master.receive()


def test_a46_the_master_takes_no_descriptors_that_a_message_does_not_name(ends: Ends) -> None:
    master, _, _, theirs = ends
    before = len(os.listdir("/proc/self/fd"))
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1]))]
    theirs.sendmsg([msgspec.msgpack.encode(Done(1))], rights)
    with pytest.raises(ChannelError):
        master.receive()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a46_the_one_that_it_names_is_the_masters(ends: Ends, pipes: tuple[Fd, ...]) -> None:
    master, worker, *_ = ends
    worker.send(MapShmem(1, ShmemMapping(0, 0, 4096), pipes[0], 0))
    received = master.receive()
    assert received is not None
    ask, fds = received
    assert isinstance(ask, MapShmem) and fds == (ask.file,)
    assert os.fstat(ask.file.fileno()).st_ino == os.fstat(pipes[0].fileno()).st_ino
    assert ask.file.fileno() != pipes[0].fileno()
    ask.file.close()


@contextmanager
def no_descriptor_free() -> Iterator[None]:
    """This process may open nothing more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Fd(os.open(os.devnull, os.O_RDONLY)) as first_free:
        number = first_free.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_listener_for_which_there_is_no_descriptor_is_gone_and_the_rest_is_heard(
    ends: Ends, pipes: tuple[Fd, ...]
) -> None:
    master, worker, *_ = ends
    worker.send(LockedIn(("this",), pipes[0]))
    worker.send(LockedIn(("that",), pipes[0]))
    with no_descriptor_free():
        received = master.receive()
    assert received is not None
    report, fds = received
    assert isinstance(report, LockedIn) and report.lacks == ("this",) and fds == ()
    assert report.listener is not None and report.listener.closed
    again = master.receive()
    assert again is not None and again[1] == (again[0].listener,)  # type: ignore[union-attr]
    again[1][0].close()


def test_what_a_message_cannot_do_without_is_an_error_if_it_finds_no_room(
    ends: Ends, pipes: tuple[Fd, ...]
) -> None:
    master, worker, *_ = ends
    worker.send(MapShmem(1, ShmemMapping(0, 0, 4096), pipes[0], 0))
    with no_descriptor_free(), pytest.raises(ChannelError, match="no room"):
        master.receive()


def test_d15_a_peer_that_does_not_read_is_an_error_in_bounded_time(ends: Ends) -> None:
    master, *_ = ends
    with pytest.raises(ChannelError):
        for _ in range(10_000):
            master.send(control.Command(1, control.Exit()), timeout=0.05)


def test_a_message_over_the_limits_is_not_sent(ends: Ends) -> None:
    master, worker, *_ = ends
    with pytest.raises(ChannelError):
        master.send(control.Command(1, effects.WriteConfig(0, b"\0" * (MAX_DATAGRAM + 1))))
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
            master.send(control.Command(1, control.Detach()), timeout=0.0100000314)
