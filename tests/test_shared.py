"""Files for the workers of a device: memory, taps, pseudo terminals, sockets."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.devices.keeping import Count, Counts, Wired
from vuproc import shared
from vuproc.errors import FileRefused
from vuproc.fd import Fd
from vuproc.testing import Served, ServeFailed, serve

SIZE = 2048


# Memory.


def test_a_struct_is_in_its_file() -> None:
    file = shared.struct_file(Count)
    one, other = shared.struct(Count, file), shared.struct(Count, file)
    assert (one.requests, one.workers) == (0, 0)
    one.requests = 1 << 40
    other.workers = 7
    assert (other.requests, one.workers) == (1 << 40, 7)
    assert file.size == ctypes.sizeof(Count)
    file.close()
    # The mapping is its own.
    one.requests = 3
    assert other.requests == 3


def test_the_file_of_a_struct_cannot_be_cut() -> None:
    file = shared.struct_file(Count)
    for size in (0, 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(file.fileno(), size)
    file.close()


def test_a_file_that_is_too_short_is_named() -> None:
    file = Fd(os.memfd_create("short", os.MFD_CLOEXEC))
    with pytest.raises(ValueError, match="Count has 16 bytes, and the file 0"):
        shared.struct(Count, file)
    file.close()


def test_a_device_counts_over_the_death_of_its_workers() -> None:
    with serve(Counts) as served, served.guest() as guest:
        answers = [guest.do(0, [b"count"], [SIZE]).content for _ in range(3)]
        assert answers == [b"1 1", b"2 1", b"3 1"]
        # It counts up and is killed, and its successor counts what it does itself.
        assert guest.do(0, [b"die"], [SIZE]).content == b"6 2"
        killed = served.kill_worker()
        assert guest.do(0, [b"count"], [SIZE]).content == b"7 3"
        assert served.wait_worker(other_than=killed) != killed


def test_it_counts_over_the_death_of_its_master() -> None:
    with serve(Counts, arguments=["--supervised"]) as served, served.guest() as guest:
        assert guest.do(0, [b"count"], [SIZE]).content == b"1 1"
        master, after = served.status().pid, len(served.lines)
        os.kill(master, 9)
        served.wait_for_line("went on with the session", after=after)
        requests, _ = guest.do(0, [b"count"], [SIZE]).content.split()
        assert requests == b"2"


# Pseudo terminals.


def test_a_pty_passes_bytes_as_they_are() -> None:
    made = shared.pty()
    try:
        assert made.path == os.ttyname(made.terminal.fileno()) == shared.pty_path(made.master)
        every = bytes(range(256))
        os.write(made.master.fileno(), every)
        assert os.read(made.terminal.fileno(), SIZE) == every
        os.write(made.terminal.fileno(), every)
        assert os.read(made.master.fileno(), SIZE) == every
        with pytest.raises(BlockingIOError):
            os.read(made.master.fileno(), 1)
        # Somebody comes and goes.
        os.close(os.open(made.path, os.O_RDWR | os.O_NOCTTY))
        with pytest.raises(BlockingIOError):
            os.read(made.master.fileno(), 1)
    finally:
        made.master.close()
        made.terminal.close()


def test_a_device_at_a_pty_goes_on_after_a_death(tmp_path: Path) -> None:
    with serve(Wired, wire="pty", path=str(tmp_path / "name")) as served:
        with open((tmp_path / "name").read_text(), "r+b", buffering=0) as terminal:
            passes(served, terminal.fileno())


# Sockets.


def test_a_socket_listens_and_is_in_use_then(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with shared_socket(path) as listener:
        assert os.stat(path).st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            server, _ = listener.accept()
            server.close()
        with pytest.raises(FileRefused, match=f"device.wire: {path}: somebody listens on it"):
            shared.listening_socket(path, option="wire")
    # Its file is left, and nobody listens.
    assert os.path.exists(path)
    with shared_socket(path, mode=0o666) as listener:
        assert os.stat(path).st_mode & 0o777 == 0o666


def shared_socket(path: str, mode: int = 0o600) -> socket.socket:
    made = socket.socket(fileno=shared.listening_socket(path, mode=mode).take())
    made.settimeout(20)
    return made


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("mine")
    with pytest.raises(FileRefused, match=r"device\.path: .*/s: "):
        shared.listening_socket(str(path))
    assert path.read_text() == "mine"
    with pytest.raises(FileRefused, match="no such file or directory"):
        shared.listening_socket(str(tmp_path / "none" / "s"))
    with pytest.raises(FileRefused, match="too long"):
        shared.listening_socket(str(tmp_path / ("s" * 200)))


def test_a_device_at_a_socket_goes_on_after_a_death(tmp_path: Path) -> None:
    path = tmp_path / "wire"
    with serve(Wired, wire="socket", path=str(path)) as served:
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as client:
                # The listening socket is there whether there is a worker or not.
                client.connect(str(path))
                passes(served, client.fileno(), deaths=0)
            killed = served.kill_worker()
            served.wait_worker(other_than=killed)
        # Another process is refused the path; a check of the same file is not an error.
        with pytest.raises(ServeFailed, match="somebody listens on it"):
            with serve(Wired, wire="socket", path=str(path)):
                pass


def passes(served: Served, wire: int, *, deaths: int = 2) -> None:
    """Both ways, again after each death of a worker."""
    with served.guest(queues=2) as guest:
        guest.keep_filled(0, count=16, size=SIZE)
        for turn in range(deaths + 1):
            guest.do(1, [b"to %d" % turn])
            assert os.read(wire, SIZE) == b"to %d" % turn
            os.write(wire, b"from %d" % turn)
            assert guest.receive(0) == b"from %d" % turn
            if turn < deaths:
                killed = served.kill_worker()
                served.wait_worker(other_than=killed)


# Taps, in a network namespace of the test's own.

TAP = """
import os, socket, subprocess, sys
from tests.devices.keeping import Wired
from tests.test_shared import SIZE, FileRefused, passes, shared
from vuproc.testing import serve

interface = "vuproctest0"
with serve(Wired, wire=f"tap:{interface}") as served:
    try:
        shared.tap(interface)
    except FileRefused as refused:
        print(refused)
    with open(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6", "w") as off:
        off.write("1")  # it would send frames of its own
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as wire:
        import fcntl, struct
        up = struct.pack("16sH22x", interface.encode(), 0x1 | 0x40)
        fcntl.ioctl(wire, 0x8914, up)  # SIOCSIFFLAGS: up and running
        wire.bind((interface, 0x88B5))
        frame = bytes(12) + bytes.fromhex("88b5")
        with served.guest(queues=2) as guest:
            guest.keep_filled(0, count=16, size=SIZE)
            for turn in range(3):
                guest.do(1, [frame + b"to %d" % turn])
                wire.settimeout(20)
                assert wire.recv(SIZE) == frame + b"to %d" % turn
                wire.send((frame + b"from %d" % turn).ljust(60, b"."))
                assert guest.receive(0) == (frame + b"from %d" % turn).ljust(60, b".")
                killed = served.kill_worker()
                served.wait_worker(other_than=killed)
print("gone" if not os.path.exists(f"/sys/class/net/{interface}") else "still there")
print("passed")
"""


def test_a_device_at_a_tap_goes_on_after_a_death() -> None:
    tried = subprocess.run(
        ["unshare", "--net", "test", "-r", shared.TUN_DEVICE], capture_output=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"no network namespace, or no {shared.TUN_DEVICE}, to be had here")
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", TAP],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert lines[:1] == ["device.tap: network interface vuproctest0: it is in use"], done.stderr
    assert lines[-1:] == ["passed"], done.stderr


@pytest.mark.parametrize("name", ["", "n" * 16])
def test_what_is_no_name_of_an_interface_is_refused(name: str) -> None:
    with pytest.raises(FileRefused, match="no name of 1 to 15 bytes"):
        shared.tap(name)
