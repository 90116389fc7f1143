"""READ and WRITE of open files without Python, and what is left to `handle`."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.devices.fuse_driver import REQUESTS, Fuse, FuseError
from tests.shm.guest import DATA, Guest, user
from vuproc.devices.fs_native import NativeFs
from vuproc.shm.request import Request
from vuproc.shm.split import SplitRing
from vuproc.spec.fuse import (
    IN_HEADER,
    OUT_HEADER,
    READ_IN,
    WRITE_IN,
    WRITE_OUT,
    InitFlag,
    Opcode,
)
from vuproc.testing import serve

NODE, HANDLE, UNIQUE = 5, 0x120, 77
CONTENT = bytes(range(256)) * 40
OUT, IN = DATA, DATA + 0x4000
SLICE_NS = 10**10


class Leave(BaseException):
    """Comes through whatever a handler does."""


@dataclass
class Stage:
    """A ring that a NativeFs serves, which knows one open file."""

    guest: Guest
    ring: SplitRing
    native: NativeFs
    file: int
    left: list[bytes] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def handle(self, request: Request) -> None:
        self.left.append(request.read())
        request.write(b"by Python")

    def fail(self, request: Request, error: BaseException) -> None:
        self.errors.append(error)
        request.finish(0)

    def ask(self, data: bytes, room: int, pieces: int = 1) -> bytes:
        """Serve a request: what was written."""
        self.guest.write(OUT, data)
        step = -(-len(data) // pieces)
        parts = [(OUT + at, min(step, len(data) - at), False) for at in range(0, len(data), step)]
        writable = [(IN, 8, True), (IN + 8, room - 8, True)] if room > 8 else []
        self.guest.submit(0, [*parts, *writable])
        # Python's part may take longer than a turn's usual time.
        assert self.ring.serve_native(self.native, self.fail, 8, slice_ns=SLICE_NS) is False
        ((head, length),) = self.guest.reap()
        assert head == 0 and self.ring.in_flight == 0
        return self.guest.read(IN, length)


def asked(opcode: int, body: bytes, node: int = NODE, length: int | None = None) -> bytes:
    size = IN_HEADER.size + len(body) if length is None else length
    return IN_HEADER.pack(len=size, opcode=opcode, unique=UNIQUE, nodeid=node) + body


def reading(size: int, offset: int = 0, handle: int = HANDLE) -> bytes:
    return asked(Opcode.READ, READ_IN.pack(fh=handle, offset=offset, size=size))


def writing(data: bytes, offset: int = 0) -> bytes:
    return asked(Opcode.WRITE, WRITE_IN.pack(fh=HANDLE, offset=offset, size=len(data)) + data)


def answered(data: bytes, error: int = 0) -> bytes:
    return OUT_HEADER.pack(len=OUT_HEADER.size + len(data), error=-error, unique=UNIQUE) + data


@pytest.fixture
def session() -> bytearray:
    return bytearray((9).to_bytes(8, "little") + bytes(8))


@pytest.fixture
def stage(tmp_path: Path, session: bytearray, request: pytest.FixtureRequest) -> Iterator[Stage]:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    native = NativeFs(writable=getattr(request, "param", True))
    native.follow(session, 9)
    native.know(NODE, HANDLE, file)
    with Guest(16) as guest:
        places = (user(guest.desc), user(guest.avail), user(guest.used))
        ring = SplitRing(0, 16, guest.memory, *places, 0, features=0, chain_limit=0)
        ring.set_call(guest.call)
        made = Stage(guest, ring, native, file)
        native.handle = made.handle
        yield made
        native.follow(None, 0)
        ring.stop()
    os.close(file)


@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_an_open_file_is_read_and_written(stage: Stage, pieces: int) -> None:
    assert stage.ask(reading(500, 100), 1000, pieces) == answered(CONTENT[100:600])
    # No more than there is room for, and no more than there is.
    assert stage.ask(reading(5000, 3), 116, pieces) == answered(CONTENT[3:103])
    assert stage.ask(reading(500, len(CONTENT) - 9), 1000, pieces) == answered(CONTENT[-9:])
    assert stage.ask(reading(500, 1 << 40), 1000, pieces) == answered(b"")
    assert stage.ask(writing(b"new content", 7), 64, pieces) == answered(WRITE_OUT.pack(size=11))
    assert os.pread(stage.file, 12, 7) == b"new content" + CONTENT[18:19]
    assert stage.native.take_used() == [(NODE, HANDLE)]
    assert stage.native.take_used() == []
    assert not stage.left and not stage.errors


@pytest.mark.parametrize(
    ("request_", "room"),
    [
        (asked(Opcode.STATFS, b""), 64),
        (asked(Opcode.GETATTR, bytes(40)), 64),
        (reading(10, handle=HANDLE + 16), 64),
        (reading(10, handle=HANDLE + (1024 << 4)), 64),
        (asked(Opcode.READ, READ_IN.pack(fh=HANDLE, size=9), node=6), 64),
        (asked(Opcode.READ, READ_IN.pack(fh=HANDLE, size=9), length=81), 64),
        (reading(10, offset=(1 << 63) - 5), 64),
        (reading(10), 12),
        (reading(10)[:79], 64),
        (writing(b"x" * 9)[:-1], 64),
        (asked(Opcode.WRITE, WRITE_IN.pack(fh=HANDLE, size=5) + b"12345678"), 64),
        (writing(b"some"), 20),
    ],
)
def test_all_else_is_left_to_python_as_it_came(stage: Stage, request_: bytes, room: int) -> None:
    assert stage.ask(request_, room) == b"by Python"
    assert stage.left == [request_]
    # And it goes on.
    assert stage.ask(reading(5), 64) == answered(CONTENT[:5])


@pytest.mark.parametrize("stage", [False], indirect=True)
def test_nothing_is_written_to_what_is_only_read(stage: Stage) -> None:
    assert stage.ask(writing(b"new"), 64) == b"by Python"
    assert stage.ask(reading(3), 64) == answered(CONTENT[:3])


def test_a_file_is_not_known_any_more(stage: Stage, session: bytearray) -> None:
    stage.native.forget(NODE, HANDLE + 1)
    assert stage.ask(reading(3), 64) == answered(CONTENT[:3])
    session[0] = 10
    assert stage.ask(reading(3), 64) == b"by Python"
    session[0] = 9
    stage.native.forget(NODE, HANDLE)
    assert stage.ask(reading(3), 64) == b"by Python"
    stage.native.know(NODE, HANDLE, stage.file)
    stage.native.follow(None, 0)
    assert stage.ask(reading(3), 64) == b"by Python"
    with pytest.raises(ValueError, match="not a word"):
        stage.native.follow(bytearray(7), 0)
    assert stage.ask(reading(3), 64) == b"by Python"


def test_an_error_of_the_file_is_the_answer(stage: Stage, tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    stage.native.know(NODE, HANDLE, folder)
    assert stage.ask(reading(3), 64) == answered(b"", errno.EISDIR)
    assert stage.ask(writing(b"abc"), 64) == answered(b"", errno.EBADF)
    os.close(folder)


def test_an_error_of_the_handler_ends_its_request(stage: Stage) -> None:
    def broken(_request: Request) -> None:
        raise RuntimeError("broken")

    stage.native.handle = broken
    assert stage.ask(asked(Opcode.STATFS, b""), 64) == b""
    assert [str(error) for error in stage.errors] == ["broken"]
    stage.native.handle = None
    assert stage.ask(asked(Opcode.STATFS, b""), 64) == b""
    assert isinstance(stage.errors[1], TypeError)
    assert stage.ask(reading(5), 64) == answered(CONTENT[:5])


def test_what_stops_the_ring_in_a_handler_ends_the_turn(stage: Stage) -> None:
    def stops(request: Request) -> None:
        request.finish(0)
        stage.ring.publish()
        stage.ring.stop()

    stage.native.handle = stops
    for head in (0, 4):
        stage.guest.write(OUT + 256 * head, asked(Opcode.STATFS, b""))
        stage.guest.submit(head, [(OUT + 256 * head, IN_HEADER.size, False), (IN, 64, True)])
    stage.ring.serve_native(stage.native, stage.fail, 8)
    assert [head for head, _ in stage.guest.reap()] in ([], [0])
    assert stage.ring.stopped


# Served.


def test_another_mount_knows_none_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    device = {"type": "fs", "tag": "x", "directory": str(tmp_path), "request_queues": 2}
    with serve(device) as served, served.guest(queues=3) as guest:
        first = Fuse(guest)
        node = first.lookup("file")
        handle = first.open(node)
        assert first.read(node, handle, 7, 9) == CONTENT[7:16]
        # On the other queue: its worker hears of it by the shared word.
        second = Fuse(guest, int(InitFlag.ASYNC_READ))
        assert second.queue == REQUESTS
        first.queue, first.unique = REQUESTS + 1, 1000
        body = READ_IN.pack(fh=handle, size=9)
        for queue in (REQUESTS, REQUESTS + 1):
            first.queue = queue
            with pytest.raises(FuseError, match="ESTALE"):
                first.ask(Opcode.READ, node, body)
        again = second.lookup("file")
        handle = second.open(again)
        assert second.read(again, handle, 7, 9) == CONTENT[7:16]


def test_a_death_between_reads_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    device = {"type": "fs", "tag": "x", "directory": str(tmp_path), "readonly": False}
    with serve(device) as served, served.guest(queues=2) as guest:
        fuse = Fuse(guest)
        node = fuse.lookup("file")
        handle = fuse.open(node, os.O_RDWR)
        (tmp_path / "file").unlink()
        for turn in range(3):
            assert fuse.write(node, handle, b"turn %d" % turn, 100) == 6
            served.wait_worker(REQUESTS, other_than=served.kill_worker(REQUESTS))
            assert (
                fuse.read(node, handle, 98, 10)
                == CONTENT[98:100] + b"turn %d" % turn + (CONTENT[106:108])
            )
