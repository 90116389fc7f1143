"""Where connections come from: stale and live sockets, client mode, inherited descriptors."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from pathlib import Path

import pytest

from vuproc.fd import Fd
from vuproc.listener import Connector, Inherited, Listener, ListenError, Source


def accepted(source: Source) -> socket.socket:
    """The next connection, within ten seconds."""
    number = source.fileno()
    if number is not None:
        poller = select.poll()
        poller.register(number, select.POLLIN)
        assert poller.poll(10_000)
    connection = source.accept()
    assert connection is not None
    return connection


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(str(path))
    return client


def left_by(listener: Listener) -> tuple[socket.socket, Fd]:
    """What a process that dies leaves of it."""
    sock, lock = listener.left
    left = sock.dup(), lock.dup()
    listener._reserve.close()
    for owner in (sock, lock):
        owner.close()
    return left


def test_listens_with_the_permissions_asked_for_and_removes_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = Listener(path, 0o640)
    listener.open()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with connect(path), accepted(listener):
        pass
    listener.close()
    assert os.listdir(tmp_path) == []


def test_nobody_there_is_none(tmp_path: Path) -> None:
    listener = Listener(tmp_path / "s", 0o600)
    listener.open()
    assert listener.accept() is None
    listener.close()


def test_e09_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    listener = Listener(path, 0o600)
    listener.open()
    with connect(path), accepted(listener):
        pass
    listener.close()


def test_e09_a_second_instance_is_refused_and_disturbs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = Listener(path, 0o600)
    listener.open()
    with pytest.raises(ListenError, match="another vuproc"):
        Listener(path, 0o600)
    with connect(path), accepted(listener):
        pass
    listener.close()


def test_e09_another_programs_live_socket_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(ListenError, match="another program"):
            Listener(path, 0o600)
    assert sorted(os.listdir(tmp_path)) == ["s"]


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(ListenError, match="not a socket"):
        Listener(path, 0o600)
    assert path.read_text() == "precious"
    assert os.listdir(tmp_path) == ["s"]


def test_a_socket_that_was_replaced_meanwhile_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = Listener(path, 0o600)
    listener.open()
    path.unlink()
    path.write_text("somebody else's")
    listener.close()
    assert path.read_text() == "somebody else's"


def test_b2_the_path_appears_when_it_accepts(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = Listener(path, 0o640)
    assert not path.exists()
    listener.open()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with connect(path), accepted(listener):
        pass
    listener.close()
    assert os.listdir(tmp_path) == []


def test_b2_one_that_is_never_opened_leaves_nothing(tmp_path: Path) -> None:
    Listener(tmp_path / "s", 0o600).close()
    assert os.listdir(tmp_path) == []


def test_b2_what_a_dead_start_left_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(tmp_path / "s.new"))
    listener = Listener(tmp_path / "s", 0o600)
    listener.open()
    assert sorted(os.listdir(tmp_path)) == ["s", "s.lock"]
    listener.close()


def test_b2_a_file_of_the_draft_s_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s.new").write_text("precious")
    with pytest.raises(ListenError, match=r"s\.new: exists and is not a socket"):
        Listener(tmp_path / "s", 0o600)
    assert (tmp_path / "s.new").read_text() == "precious"
    assert os.listdir(tmp_path) == ["s.new"]


def test_b2_a_file_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    listener = Listener(tmp_path / "s", 0o600)
    (tmp_path / "s").write_text("precious")
    with pytest.raises(ListenError, match="meanwhile"):
        listener.open()
    listener.close()
    assert os.listdir(tmp_path) == ["s"]


@pytest.mark.parametrize("length", [1, 100, 104, 107])
@pytest.mark.parametrize("opened", [False, True])
def test_b2_a_successor_goes_on_with_the_socket(tmp_path: Path, length: int, opened: bool) -> None:
    """Whether its predecessor came to open it or not; at a path as long as can be, too."""
    folder = tmp_path / "f"
    if length > 1:
        folder = Path(f"{folder}{'x' * (length - 2 - len(str(folder)))}")
    folder.mkdir()
    path = folder / "s"
    first = Listener(path, 0o600)
    if opened:
        first.open()
        waiting = connect(path)
    successor = Listener(path, 0o600, left_by(first))
    assert path.exists() == opened
    successor.open()
    with connect(path) if not opened else waiting, accepted(successor):
        pass
    successor.close()
    assert os.listdir(folder) == []


@pytest.mark.parametrize("opened", [False, True])
def test_b2_a_successor_for_another_path_removes_the_old_one(tmp_path: Path, opened: bool) -> None:
    first = Listener(tmp_path / "s", 0o600)
    if opened:
        first.open()
    successor = Listener(tmp_path / "other", 0o600, left_by(first))
    successor.open()
    assert sorted(os.listdir(tmp_path)) == ["other", "other.lock"]
    successor.close()


def test_a_missing_folder_is_an_error_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="missing"):
        Listener(tmp_path / "missing" / "s", 0o600)


def test_client_mode_tries_again_until_the_vmm_listens(tmp_path: Path) -> None:
    path = tmp_path / "s"
    connector = Connector(path)
    assert connector.accept() is None
    first = connector.delay()
    assert connector.accept() is None
    assert 0 < first < connector.delay() <= 1.0
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as vmm:
        vmm.bind(str(path))
        vmm.listen()
        with accepted(connector):
            pass
    assert not connector.exhausted()


def test_an_inherited_connection_is_served_once() -> None:
    ours, theirs = socket.socketpair()
    source = Inherited(ours.detach())
    assert source.fileno() is None
    assert not source.exhausted()
    with accepted(source), theirs:
        assert source.exhausted()
        assert source.accept() is None
    source.close()


def test_an_inherited_listener_is_served_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    listening.listen()
    source = Inherited(listening.detach())
    for _ in range(2):
        with connect(path), accepted(source):
            pass
    assert not source.exhausted()
    source.close()


def test_an_inherited_descriptor_that_is_no_unix_stream_socket_is_refused() -> None:
    read, write = os.pipe()
    with pytest.raises(ListenError, match=f"--fd {read}"):
        Inherited(read)
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right, pytest.raises(ListenError):
        Inherited(left.fileno())
    os.close(read)
    os.close(write)


def test_c5_who_may_connect_is_not_said_of_what_a_link_leads_to(tmp_path: Path) -> None:
    """Whoever the socket was given to may put something else in its place."""
    path, other = tmp_path / "s.sock", tmp_path / "other"
    other.touch(0o600)
    listener = Listener(path, 0o600)
    listener.open()
    path.unlink()
    path.symlink_to(other)
    with pytest.raises(OSError, match=r"another file|symbolic"):
        listener.permit(0o666)
    assert stat.S_IMODE(other.stat().st_mode) == 0o600
    listener.close()


def test_c5_a_socket_that_cannot_be_given_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_arguments: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chown", refused)
    path = tmp_path / "s.sock"
    with pytest.raises(ListenError, match=r"s\.sock: cannot be given to user 1: Operation not"):
        Listener(path, 0o600, owner=(1, -1))
    assert list(tmp_path.iterdir()) == []
