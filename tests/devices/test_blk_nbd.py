"""A disk that an NBD server has, as it is served: what becomes of requests, whatever it does."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.devices.nbd_server import ALL, Server, option_reply, running
from tests.devices.test_blk import ranges
from vuproc.devices import blk_nbd
from vuproc.devices.blk import BlkOptions
from vuproc.devices.nbd_handshake import NbdError
from vuproc.devices.nbd_stream import NbdStream, Piece
from vuproc.spec import nbd
from vuproc.spec.blk import DISCARD_F_UNMAP, SECTOR_SIZE, BlkFeature, BlkStatus, BlkType
from vuproc.spec.nbd import Command, CommandFlag, ExportFlag
from vuproc.spec.virtio import Feature
from vuproc.testing.block import Block
from vuproc.testing.guest import Guest
from vuproc.testing.plugin import ServeDevice
from vuproc.testing.serve import Served

SIZE = 16 << 20
BOUND_S = 30.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(Server(tmp_path / "nbd.sock", SIZE)) as server:
        yield server


def disk_of(server: Server, **options: Any) -> dict[str, Any]:
    return {"type": "blk", "nbd": server.uri, **options}


def problems(server: Server, **options: Any) -> list[tuple[str, str]]:
    return list(BlkOptions(nbd=server.uri, **options).problems())


def kinds(server: Server) -> list[Command]:
    return [came.kind for came in server.came]


HASTY = """
from vuproc.devices import nbd_link
from vuproc.devices.blk import Blk as Hasty
nbd_link.PATIENCE_S = nbd_link.SILENT_S = 0.5
"""


def until_ok(disk: Block) -> None:
    """Read until the server is there."""
    deadline = time.monotonic() + BOUND_S
    while disk.request(BlkType.IN, 0, in_=[512]).status != BlkStatus.OK:
        assert time.monotonic() < deadline


def resume(guest: Guest, base: int) -> None:
    """Have the stopped ring go on where it was, by all that a VMM says of one."""
    queue = guest.queues[0]
    guest.front_end.request("SET_VRING_NUM", index=0, num=queue.size)
    guest.front_end.request("SET_VRING_BASE", index=0, num=base)
    guest.tell_addresses(queue)
    guest.front_end.request("SET_VRING_CALL", [queue.call_bell.theirs], value=0)
    guest.kick_queue(queue)
    guest.enable_queue(0)


# Requests and commands.


def test_what_is_written_is_the_servers_and_is_read_back(
    vuproc_device: ServeDevice, server: Server
) -> None:
    data = os.urandom(3 * SECTOR_SIZE)
    with vuproc_device(disk_of(server)).guest() as guest:
        disk = Block(guest)
        assert disk.config()["capacity"] == SIZE // SECTOR_SIZE
        disk.write(7, data)
        assert server.disk[7 * SECTOR_SIZE :].startswith(data)
        result = disk.request(BlkType.IN, 7, in_=[1024, 512])
        assert (result.status, result.data, result.written) == (BlkStatus.OK, data, len(data) + 1)
        disk.flush()
    assert kinds(server) == [Command.WRITE, Command.READ, Command.FLUSH]


def test_a_large_request_is_several_commands(vuproc_device: ServeDevice, server: Server) -> None:
    data = os.urandom(3 * blk_nbd.MOST_PIECE + SECTOR_SIZE)
    with vuproc_device(disk_of(server)).guest(memory=64 << 20) as guest:
        disk = Block(guest)
        disk.write(3, data)
        assert disk.read(3, len(data)) == data
    assert kinds(server) == [Command.WRITE] * 4 + [Command.READ] * 4
    assert max(came.length for came in server.came) == blk_nbd.MOST_PIECE


def test_the_servers_largest_command_is_kept_to(vuproc_device: ServeDevice, server: Server) -> None:
    server.block_sizes = (512, 4096, 64 << 10)
    with vuproc_device(disk_of(server)).guest() as guest:
        Block(guest).write(0, bytes(1 << 20))
    assert [came.length for came in server.came] == [64 << 10] * 16


def test_more_than_may_be_on_its_way_waits(vuproc_device: ServeDevice, server: Server) -> None:
    """Requests of 40 MiB at a time, of which 16 MiB are commands, and all of them end well."""
    server.pause()
    data = os.urandom(1 << 20)
    with vuproc_device(disk_of(server)).guest(memory=128 << 20) as guest:
        disk = Block(guest)
        tokens = [disk.submit(BlkType.OUT, 2048 * (n % 16), [data]) for n in range(40)]
        most = blk_nbd.MOST_GOING >> 20
        server.wait(lambda: len(server.came) == most)
        server.resume()
        for token in tokens:
            assert guest.wait(token).data[-1] == bytes([BlkStatus.OK])
    assert server.disk == data * 16


def test_replies_may_come_in_any_order(vuproc_device: ServeDevice, server: Server) -> None:
    server.disk[:] = os.urandom(SIZE)
    server.backwards = 8
    with vuproc_device(disk_of(server)).guest() as guest:
        disk = Block(guest)
        tokens = [disk.submit(BlkType.IN, n * 8, in_=[4096]) for n in range(32)]
        for number, token in enumerate(tokens):
            found = guest.wait(token).data
            assert found[0] == server.disk[number * 4096 : (number + 1) * 4096]


def test_discard_and_zeroes(vuproc_device: ServeDevice, server: Server) -> None:
    server.disk[:] = b"x" * SIZE
    with vuproc_device(disk_of(server)).guest() as guest:
        disk = Block(guest)
        two = [ranges((0, 8, 0), (16, 8, 0))]
        assert disk.request(BlkType.DISCARD, 0, two).status == BlkStatus.OK
        assert disk.request(BlkType.WRITE_ZEROES, 0, [ranges((32, 4, 0))]).status == BlkStatus.OK
        unmap = [ranges((40, 4, DISCARD_F_UNMAP))]
        assert disk.request(BlkType.WRITE_ZEROES, 0, unmap).status == BlkStatus.OK
        assert disk.request(BlkType.DISCARD, 0, [ranges((0, 8, 1))]).status == BlkStatus.UNSUPP
    assert [(came.kind, came.flags) for came in server.came] == [
        (Command.TRIM, 0),
        (Command.TRIM, 0),
        (Command.WRITE_ZEROES, CommandFlag.NO_HOLE),
        (Command.WRITE_ZEROES, 0),
    ]
    assert server.disk.count(b"x") == SIZE - 24 * SECTOR_SIZE


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (ALL, [(Command.WRITE, CommandFlag.FUA)]),
        (ALL & ~ExportFlag.SEND_FUA, [(Command.WRITE, 0), (Command.FLUSH, 0)]),
        (ALL & ~ExportFlag.SEND_FUA & ~ExportFlag.SEND_FLUSH, [(Command.WRITE, 0)]),
    ],
)
def test_writethrough_is_what_the_export_has_for_it(
    vuproc_device: ServeDevice,
    server: Server,
    flags: ExportFlag,
    expected: list[tuple[Command, int]],
) -> None:
    server.flags = flags
    with vuproc_device(disk_of(server, cache="writethrough")).guest() as guest:
        Block(guest).write(0, bytes(512))
    assert [(came.kind, came.flags) for came in server.came] == expected


def test_what_the_export_cannot_do_is_not_offered(
    vuproc_device: ServeDevice, server: Server
) -> None:
    server.flags = ExportFlag.HAS_FLAGS | ExportFlag.READ_ONLY
    server.disk[:4] = b"read"
    with vuproc_device(disk_of(server, readonly=True)).guest() as guest:
        offered = guest.front_end.features
        assert offered & BlkFeature.RO
        assert not offered & (BlkFeature.DISCARD | BlkFeature.WRITE_ZEROES | Feature.IN_ORDER)
        disk = Block(guest)
        assert disk.read(0, 512).startswith(b"read")
        assert disk.request(BlkType.OUT, 0, [bytes(512)]).status == BlkStatus.IOERR
        disk.flush()  # an export without it is stable
    assert kinds(server) == [Command.READ]


@pytest.mark.parametrize("kind", [Command.READ, Command.WRITE, Command.FLUSH])
def test_the_servers_error_is_the_requests(
    vuproc_device: ServeDevice, server: Server, kind: Command
) -> None:
    server.errors[kind] = 28  # ENOSPC
    with vuproc_device(disk_of(server)).guest() as guest:
        disk = Block(guest)
        done = {
            Command.READ: disk.request(BlkType.IN, 0, in_=[512]).status,
            Command.WRITE: disk.request(BlkType.OUT, 0, [bytes(512)]).status,
            Command.FLUSH: disk.request(BlkType.FLUSH, 0).status,
        }
    assert {which for which, status in done.items() if status != BlkStatus.OK} == {kind}
    assert done[kind] == BlkStatus.IOERR


def test_several_queues_have_a_connection_each(vuproc_device: ServeDevice, server: Server) -> None:
    served = vuproc_device(disk_of(server, queues=2), file={"workers": [[0, 1]]})
    with served.guest(queues=2) as guest:
        disk = Block(guest)
        disk.write(0, b"0" * 512, queue=0)
        assert disk.read(0, 512, queue=1) == b"0" * 512
    assert len({came.connection for came in server.came}) == 2


# A server that goes away.


@pytest.mark.parametrize("after", [1, 2, 5])
def test_what_has_no_answer_is_sent_again(
    vuproc_device: ServeDevice, server: Server, after: int
) -> None:
    server.hang_up_after = after
    parts = [os.urandom(4096) for _ in range(16)]
    served = vuproc_device(disk_of(server))
    with served.guest() as guest:
        disk = Block(guest)
        tokens = [disk.submit(BlkType.OUT, n * 8, [part]) for n, part in enumerate(parts)]
        server.wait(lambda: len({came.connection for came in server.came}) >= 3)
        server.hang_up_after = None
        for token in tokens:
            assert guest.wait(token).data[-1] == bytes([BlkStatus.OK])
        served.wait_for_line("connected again")
    assert server.disk.startswith(b"".join(parts))


def test_a_server_that_comes_back_finds_the_requests(
    vuproc_device: ServeDevice, server: Server
) -> None:
    served = vuproc_device(disk_of(server))
    with served.guest() as guest:
        disk = Block(guest)
        disk.write(0, b"before--" * 64)
        server.stop()
        served.wait_for_line("the server hung up")
        token = disk.submit(BlkType.IN, 0, in_=[512])
        served.kill_worker()
        served.wait_worker()
        server.start()
        assert guest.wait(token).data[0] == b"before--" * 64
    assert not [line for line in served.lines if "ERROR" in line]


def test_a_ring_stops_though_the_server_is_away(vuproc_device: ServeDevice, server: Server) -> None:
    """Its requests are given back, and done when it runs again."""
    served = vuproc_device(disk_of(server))
    with served.guest() as guest:
        disk = Block(guest)
        disk.write(0, b"stopping" * 64)
        server.stop()
        served.wait_for_line("the server hung up")
        token = disk.submit(BlkType.IN, 0, in_=[512])
        worker = served.status().queues[0].pid
        base = guest.stop_queue(0)
        server.start()
        resume(guest, base)
        assert guest.wait(token).data[0] == b"stopping" * 64
        assert served.status().queues[0].pid == worker


def test_a_ring_stops_though_the_server_does_nothing(
    vuproc_device: ServeDevice, server: Server
) -> None:
    served = vuproc_device(disk_of(server))
    with served.guest() as guest:
        disk = Block(guest)
        server.pause()
        token = disk.submit(BlkType.OUT, 0, [b"w" * 512])
        server.wait(lambda: len(server.came) == 1)
        worker = served.status().queues[0].pid
        base = guest.stop_queue(0)
        server.resume()
        resume(guest, base)
        assert guest.wait(token).data[-1] == bytes([BlkStatus.OK])
        assert served.status().queues[0].pid == worker
    # Once for the connection that was given up, before anything came by the next.
    assert server.done == server.came
    assert len({done.connection for done in server.done}) == 2


def test_memory_may_change_while_commands_are_on_their_way(
    vuproc_device: ServeDevice, server: Server
) -> None:
    """The ring stops for that without being started again."""
    with vuproc_device(disk_of(server)).guest() as guest:
        disk = Block(guest)
        disk.write(0, b"memory--" * 64)
        server.pause()
        token = disk.submit(BlkType.IN, 0, in_=[512])
        server.wait(lambda: server.came[-1].kind is Command.READ)
        guest.front_end.set_memory(guest.ram.regions)
        server.resume()
        assert guest.wait(token).data[0] == b"memory--" * 64
        assert disk.read(0, 512) == b"memory--" * 64


def test_a_worker_begins_where_the_dead_ones_connection_has_ended(
    vuproc_device: ServeDevice, server: Server
) -> None:
    served = vuproc_device(disk_of(server))
    with served.guest() as guest:
        disk = Block(guest)
        server.pause()
        token = disk.submit(BlkType.OUT, 0, [b"w" * 512])
        server.wait(lambda: len(server.came) == 1)
        served.kill_worker()
        server.wait(lambda: len(server.came) == 2)
        assert server.done == server.came[:1]
        server.resume()
        assert guest.wait(token).data[-1] == bytes([BlkStatus.OK])


def test_no_guest_waits_for_ever(
    vuproc_device: ServeDevice, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "hasty.py").write_text(HASTY)
    served = vuproc_device(disk_of(server, type=f"{tmp_path / 'hasty.py'}:Hasty"))
    with served.guest() as guest:
        disk = Block(guest)
        disk.write(0, b"later---" * 64)
        server.stop()
        served.wait_for_line("the server hung up")
        assert disk.request(BlkType.IN, 0, in_=[512]).status == BlkStatus.IOERR
        assert disk.request(BlkType.FLUSH, 0).status == BlkStatus.IOERR
        server.start()
        until_ok(disk)
        assert disk.read(0, 512) == b"later---" * 64


def test_a_server_that_hangs_up_at_a_command_each_time_is_gone(
    vuproc_device: ServeDevice, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "hasty.py").write_text(HASTY)
    served = vuproc_device(disk_of(server, type=f"{tmp_path / 'hasty.py'}:Hasty"))
    with served.guest() as guest:
        disk = Block(guest)
        server.hang_up_after = 1
        assert disk.request(BlkType.IN, 0, in_=[512]).status == BlkStatus.IOERR
        server.hang_up_after = None
        until_ok(disk)


@pytest.mark.parametrize("kind", [BlkType.IN, BlkType.OUT, BlkType.FLUSH])
def test_a_server_that_stays_and_says_nothing_is_given_up(
    vuproc_device: ServeDevice, server: Server, tmp_path: Path, kind: BlkType
) -> None:
    (tmp_path / "hasty.py").write_text(HASTY)
    served = vuproc_device(disk_of(server, type=f"{tmp_path / 'hasty.py'}:Hasty"))
    with served.guest() as guest:
        disk = Block(guest)
        disk.write(0, b"silent--" * 64)
        worker = served.status().queues[0].pid
        server.pause()
        out = [b"!" * 512] if kind is BlkType.OUT else []
        in_ = [512] if kind is BlkType.IN else []
        for _ in range(2):  # and on the connection that follows, too
            assert disk.request(kind, 8, out, in_=in_).status == BlkStatus.IOERR
        served.wait_for_line("connected, and no answer for 0.5 s")
        server.resume()
        until_ok(disk)
        assert disk.read(0, 512) == b"silent--" * 64
        assert served.status().queues[0].pid == worker


def test_a_server_that_is_slow_and_answers_is_waited_for(
    vuproc_device: ServeDevice, server: Server, tmp_path: Path
) -> None:
    """Each answer is a sign of life, though the others have waited for longer by then."""
    (tmp_path / "hasty.py").write_text(HASTY.replace("SILENT_S = 0.5", "SILENT_S = 4"))
    served = vuproc_device(disk_of(server, type=f"{tmp_path / 'hasty.py'}:Hasty"))
    with served.guest() as guest:
        disk = Block(guest)
        server.delay_s = 0.25
        tokens = [disk.submit(BlkType.IN, n, in_=[512]) for n in range(20)]
        for token in tokens:
            assert guest.wait(token).data[-1] == bytes([BlkStatus.OK])
    assert len({came.connection for came in server.came}) == 1


def test_a_server_that_is_about_to_end_is_followed_by_the_next(
    vuproc_device: ServeDevice, server: Server
) -> None:
    server.errors[Command.WRITE] = nbd.ESHUTDOWN
    served = vuproc_device(disk_of(server))
    with served.guest() as guest:
        disk = Block(guest)
        token = disk.submit(BlkType.OUT, 0, [b"e" * 512])
        served.wait_for_line("the server is about to end")
        server.errors.clear()
        assert guest.wait(token).data[-1] == bytes([BlkStatus.OK])


@pytest.mark.parametrize(
    ("flags", "taken"),
    [
        (ALL | ExportFlag.READ_ONLY, False),
        (ALL & ~ExportFlag.SEND_FLUSH, False),
        (ALL | 1 << 10, True),  # what a server can do beyond
    ],
)
def test_what_comes_back_is_to_do_as_much_as_before(
    vuproc_device: ServeDevice, server: Server, flags: ExportFlag, taken: bool
) -> None:
    served = vuproc_device(disk_of(server))
    with served.guest() as guest:
        disk = Block(guest)
        disk.write(0, b"f" * 512)
        server.stop()
        server.flags = flags
        server.start()
        token = disk.submit(BlkType.IN, 0, in_=[512])
        connections = server.connections
        server.wait(lambda: server.connections > connections + (0 if taken else 1))
        came = [came.kind for came in server.came]
        server.flags = ALL
        assert guest.wait(token).data[0] == b"f" * 512
        assert taken or came == [Command.WRITE]


def test_an_export_that_has_become_smaller_is_not_taken(
    vuproc_device: ServeDevice, server: Server
) -> None:
    served = vuproc_device(disk_of(server))
    with served.guest() as guest:
        disk = Block(guest)
        disk.write(0, b"shrinks-" * 64)
        whole, server.disk = server.disk, server.disk[:512]
        server.stop()
        server.start()
        served.wait_for_line("the server hung up")
        token = disk.submit(BlkType.IN, 0, in_=[512])
        connections = server.connections
        server.wait(lambda: server.connections > connections + 1)
        server.disk = whole
        assert guest.wait(token).data[0] == b"shrinks-" * 64


@pytest.mark.parametrize(
    "reply",
    [
        nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, 1 << 40),
        nbd.SIMPLE_REPLY.pack(0, 0, 1),
        b"\xff" * 4096,
    ],
)
def test_a_reply_to_nothing_is_the_end_of_the_connection(
    vuproc_device: ServeDevice, server: Server, reply: bytes
) -> None:
    served = vuproc_device(disk_of(server))
    with served.guest() as guest:
        disk = Block(guest)
        right, server.reply = server.reply, lambda _: reply
        token = disk.submit(BlkType.OUT, 0, [b"y" * 512])
        served.wait_for_line("the server answers what it was not asked")
        server.reply = right
        assert guest.wait(token).data[-1] == bytes([BlkStatus.OK])


# Masters.


def test_a_master_that_follows_needs_no_server(vuproc_device: ServeDevice, server: Server) -> None:
    served = vuproc_device(disk_of(server), arguments=["--supervised"])
    with served.guest() as guest:
        disk = Block(guest)
        disk.write(0, b"master--" * 64)
        server.stop()
        kill_master(served)
        token = disk.submit(BlkType.IN, 0, in_=[512])
        server.start()
        assert guest.wait(token).data[0] == b"master--" * 64
        assert disk.config()["capacity"] == SIZE // SECTOR_SIZE


def kill_master(served: Served) -> None:
    pid = served.status().pid
    os.kill(pid, 9)
    served.wait_for_line("went on with the session of the last master")


# What is wrong at the start.


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("nbd:localhost:10809", "it is nbd://"),
        ("http://localhost/disk", "it is nbd://"),
        ("nbds://localhost/disk", "TLS is not to be had"),
        ("nbd+unix:///disk", "absolute path"),
        ("nbd+unix:///disk?socket=relative.sock", "absolute path"),
        ("nbd://localhost/disk?socket=/x", "means nothing here"),
        ("nbd://localhost:99999/disk", "[Pp]ort"),
        ("nbd://localhost/" + "n" * 5000, "more than 4096 bytes"),
    ],
)
def test_a_uri_that_is_none(uri: str, reason: str) -> None:
    (field, message), *_ = BlkOptions(nbd=uri).problems()
    assert field == "nbd"
    assert re.search(reason, message)


def test_nobody_there(tmp_path: Path) -> None:
    server = Server(tmp_path / "none.sock", SIZE)
    assert problems(server) == [
        ("nbd", f"export 'disk' at {tmp_path}/none.sock: No such file or directory")
    ]


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        ({"flags": ALL | ExportFlag.READ_ONLY}, {}, "is read-only; set readonly: true"),
        ({"flags": ALL & ~ExportFlag.CAN_MULTI_CONN}, {"queues": 2}, "for queues: 1"),
        ({"block_sizes": (4096, 4096, 1 << 20)}, {}, "set block_size: 4096"),
        ({"block_sizes": (0, 1, 2)}, {}, "what cannot be"),
        ({"block_sizes": (1, 1, 256)}, {}, "takes 256 bytes at a time, and a block has 512"),
        ({"disk": bytearray(1000)}, {}, "has 1000 bytes, which are no blocks of 512"),
        ({"greeting": b"HTTP/1.1 400 Bad R"}, {}, "this is no NBD server"),
        ({"greeting": nbd.INIT + bytes(10)}, {}, "of before 2011"),
        ({"instead": b""}, {}, "hung up in the handshake"),
        ({"instead": bytes(20)}, {}, "answers something else"),
    ],
)
def test_an_export_that_cannot_be_had(
    server: Server, change: dict[str, Any], options: dict[str, Any], reason: str
) -> None:
    for name, value in change.items():
        setattr(server, name, value)
    ((field, message),) = problems(server, **options)
    assert (field, reason in message) == ("nbd", True), message


def test_a_servers_own_words_are_cut_and_escaped(server: Server) -> None:
    server.instead = option_reply(nbd.OptionError.POLICY, b"\x1b[2J\n" + b"no" * 1000)
    ((_, message),) = problems(server)
    assert "POLICY (\\x1b[2J\\nnono" in message and len(message) < 500 and message.isprintable()


def test_a_server_that_answers_before_it_was_asked(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        stream = NbdStream(ours)
        stream.send(Piece(Command.WRITE, 0, 0, 8 << 20, lambda error: None, bytes(8 << 20)))
        theirs.sendall(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, 1))
        with pytest.raises(NbdError, match="what it was not asked"):
            stream.turn()
        stream.close()


@given(data=st.data())
def test_replies_come_in_pieces_of_any_size(data: st.DataObject) -> None:
    ours, theirs = socket.socketpair()
    came: dict[int, bytearray] = {}
    errors: dict[int, int] = {}
    stream = NbdStream(ours)
    with theirs, closing(stream):
        sizes = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
        for cookie, size in enumerate(sizes, 1):
            came[cookie] = bytearray(size)

            def into(at: int, part: memoryview, cookie: int = cookie) -> None:
                came[cookie][at : at + len(part)] = part

            def done(error: int, cookie: int = cookie) -> None:
                errors[cookie] = error

            stream.send(Piece(Command.READ, 0, 0, size, done, b"", into))
        stream.turn()
        order = data.draw(st.permutations(range(1, len(sizes) + 1)))
        failing = data.draw(st.sets(st.sampled_from(order)))
        replies = b""
        for cookie in order:
            error = 5 if cookie in failing else 0
            replies += nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, error, cookie)
            replies += b"" if error else bytes([cookie]) * sizes[cookie - 1]
        while replies:
            count = data.draw(st.integers(1, len(replies)))
            theirs.sendall(replies[:count])
            replies = replies[count:]
            stream.turn()
    assert errors == {cookie: 5 if cookie in failing else 0 for cookie in order}
    for cookie, size in enumerate(sizes, 1):
        assert came[cookie] == (bytes(size) if cookie in failing else bytes([cookie]) * size)
    assert not stream.outstanding


def test_a_name_that_the_server_does_not_have(server: Server) -> None:
    ((_, message),) = BlkOptions(nbd=server.uri.replace("disk?", "tape?")).problems()
    assert message.endswith("the server has no such export (none of that name)")


@pytest.mark.parametrize("option", ["image", "base", "ram"])
def test_one_thing_is_served(server: Server, tmp_path: Path, option: str) -> None:
    value: object = 512 if option == "ram" else str(tmp_path / "disk.raw")
    assert [field for field, text in problems(server, **{option: value}) if "exclude" in text]


def test_tcp(vuproc_device: ServeDevice, server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server._run(server._accept, listener)
        uri = f"nbd://127.0.0.1:{listener.getsockname()[1]}/disk"
        with vuproc_device({"type": "blk", "nbd": uri}).guest() as guest:
            Block(guest).write(0, b"t" * 512)
        assert server.disk.startswith(b"t" * 512)
        listener.shutdown(socket.SHUT_RDWR)
