"""An owner of a file descriptor closes it once, tells what it is, and warns if it is forgotten."""

from __future__ import annotations

import fcntl
import gc
import os
import socket
from pathlib import Path

import pytest

from vuproc.fd import Fd, FdKind


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def test_close_is_idempotent_and_never_touches_the_number_again() -> None:
    fd = Fd(os.eventfd(0))
    number = fd.fileno()
    fd.close()
    assert fd.closed
    assert not is_open(number)
    with Fd(os.eventfd(0)) as other:
        assert other.fileno() == number
        fd.close()
        assert is_open(number)


def test_a_closed_owner_has_no_number() -> None:
    fd = Fd(os.eventfd(0))
    fd.close()
    with pytest.raises(ValueError, match="closed"):
        fd.fileno()
    with pytest.raises(ValueError, match="closed"):
        fd.take()


def test_take_gives_the_descriptor_away() -> None:
    fd = Fd(os.eventfd(0))
    number = fd.take()
    assert fd.closed
    assert is_open(number)
    os.close(number)


def test_dup_is_a_second_owner_with_close_on_exec() -> None:
    with Fd(os.eventfd(0)) as fd, fd.dup() as copy:
        assert copy is not fd
        assert copy != fd
        assert copy.fileno() != fd.fileno()
        assert fcntl.fcntl(copy.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="no file descriptor"):
        Fd(-1)


def test_a_forgotten_owner_closes_and_warns() -> None:
    fd = Fd(os.eventfd(0))
    number = fd.fileno()
    with pytest.warns(ResourceWarning, match=f"Fd\\({number}\\)"):
        del fd
        gc.collect()
    assert not is_open(number)


def test_two_owners_of_one_number_are_not_equal() -> None:
    fd = Fd(os.eventfd(0))
    twin = Fd(fd.fileno())
    assert fd != twin
    assert len({fd, twin}) == 2
    twin.take()
    fd.close()


def test_kinds(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    reader, writer = os.pipe()
    one, other = socket.socketpair()
    cases = [
        (os.eventfd(0), FdKind.EVENTFD),
        (reader, FdKind.PIPE),
        (writer, FdKind.PIPE),
        (one.detach(), FdKind.SOCKET),
        (other.detach(), FdKind.SOCKET),
        (os.memfd_create("memory"), FdKind.FILE),
        (os.open(file, os.O_RDONLY), FdKind.FILE),
        (os.open(file, os.O_PATH), FdKind.OTHER),
        (os.open(tmp_path, os.O_RDONLY), FdKind.OTHER),
        (os.open("/dev/null", os.O_RDWR), FdKind.OTHER),
        (os.pidfd_open(os.getpid()), FdKind.OTHER),
    ]
    for number, kind in cases:
        with Fd(number) as fd:
            assert fd.kind is kind


def test_size_is_the_file_size_at_this_moment() -> None:
    with Fd(os.memfd_create("memory")) as fd:
        assert fd.size == 0
        os.ftruncate(fd.fileno(), 4096)
        assert fd.size == 4096


@pytest.mark.parametrize(
    ("flags", "readable", "writable"),
    [
        (os.O_RDONLY, True, False),
        (os.O_WRONLY, False, True),
        (os.O_RDWR, True, True),
        (os.O_PATH, False, False),
    ],
)
def test_access(tmp_path: Path, flags: int, readable: bool, writable: bool) -> None:
    file = tmp_path / "file"
    file.touch()
    with Fd(os.open(file, flags)) as fd:
        assert (fd.readable, fd.writable) == (readable, writable)


def test_the_text_shows_the_number() -> None:
    fd = Fd(os.eventfd(0))
    assert repr(fd) == f"Fd({fd.fileno()})"
    fd.close()
    assert repr(fd) == "Fd(closed)"


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_sockets_of_a_pair_are_paired(kind: socket.SocketKind) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, kind)
    with Fd(left.detach()) as one, Fd(right.detach()) as other:
        assert one.paired
        assert other.paired


def test_f05_socket_with_an_address_at_either_end_is_not_paired(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "listener"))
        listener.listen()
        client.connect(str(tmp_path / "listener"))
        accepted, _ = listener.accept()
        with accepted:
            for sock in (listener, client, accepted):
                with Fd(os.dup(sock.fileno())) as fd:
                    assert not fd.paired


def test_what_is_no_connected_socket_is_not_paired() -> None:
    with Fd(os.eventfd(0)) as bell, Fd(socket.socket(socket.AF_UNIX).detach()) as alone:
        assert not bell.paired
        assert not alone.paired


def test_notify_adds_one_to_an_eventfd() -> None:
    with Fd(os.eventfd(5)) as fd:
        assert fd.notify()
        assert os.eventfd_read(fd.fileno()) == 6


def test_f09_notify_never_blocks_on_a_full_eventfd() -> None:
    most = (1 << 64) - 2
    with Fd(os.eventfd(0)) as fd:
        os.eventfd_write(fd.fileno(), most)
        assert not fd.notify()
        assert os.eventfd_read(fd.fileno()) == most


def test_f08_notify_survives_an_end_that_is_closed_or_read_only() -> None:
    reader, writer = os.pipe()
    with Fd(reader) as read_end, Fd(writer) as write_end:
        assert not read_end.notify()
        read_end.close()
        assert not write_end.notify()
