"""The life of `vuproc run`: sockets, reconnects, signals, and what is left when it is killed."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vuproc.shm.segment import PREFIX, Segment
from vuproc.testing.block import Block
from vuproc.testing.guest import Guest
from vuproc.testing.plugin import ServeDevice
from vuproc.testing.serve import serve

BOUND_S = 20.0
DISK = {"type": "blk", "ram": "1MiB"}


def write_file(folder: Path, **more: object) -> Path:
    path = folder / "disk.yaml"
    path.write_text(json.dumps({"socket": "./disk.sock", "device": DISK, **more}))
    return path


@contextmanager
def running(*arguments: str, fds: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """`vuproc run` with any arguments, killed at the end if the test has not ended it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vuproc", "run", *arguments],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        pass_fds=fds,
    )
    assert process.stderr is not None
    with process, process.stderr:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def read_until(process: subprocess.Popen[str], wanted: str) -> list[str]:
    """The log up to the line that holds `wanted`."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if wanted in line:
            return lines
    raise AssertionError(f"ended without {wanted!r}: {''.join(lines)}")


def use(guest: Guest) -> None:
    """Some real work: what is written is read back."""
    block = Block(guest)
    block.write(8, b"w" * 512)
    assert block.read(8, 512) == b"w" * 512


def test_it_survives_disconnects_with_the_same_listener(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(DISK)
    inode = served.socket.stat().st_ino
    for _ in range(3):
        with served.guest() as guest:
            use(guest)
    assert served.socket.stat().st_ino == inode


def test_exit_on_disconnect_ends_it_with_code_0() -> None:
    with serve(DISK, file={"exit_on_disconnect": True}) as served:
        with served.guest() as guest:
            use(guest)
        assert served.wait(BOUND_S) == 0
        assert not served.socket.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_a_signal_drains_and_ends_it_with_code_0_and_no_socket(
    tmp_path: Path, number: signal.Signals
) -> None:
    path = write_file(tmp_path)
    with running(str(path)) as process:
        read_until(process, "serving blk")
        with Guest(tmp_path / "disk.sock") as guest:
            use(guest)
            process.send_signal(number)
            assert process.wait(BOUND_S) == 0
            assert guest.front_end.closed_by_peer()
    assert sorted(os.listdir(tmp_path)) == ["disk.yaml"]


def test_a_second_instance_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    path = write_file(tmp_path)
    with running(str(path)) as first:
        read_until(first, "serving blk")
        with Guest(tmp_path / "disk.sock") as guest:
            with running(str(path)) as second:
                assert second.wait(BOUND_S) == 1
                read_until(second, "another vuproc is serving this socket")
            use(guest)
        first.terminate()
        assert first.wait(BOUND_S) == 0


def test_what_a_killed_master_leaves_is_replaced_and_its_workers_end(tmp_path: Path) -> None:
    path = write_file(tmp_path)
    with running(str(path)) as first:
        read_until(first, "serving blk")
        with Guest(tmp_path / "disk.sock") as guest:
            use(guest)
            workers = [os.pidfd_open(pid) for pid in descendants(first.pid)]
            assert len(workers) >= 2
            first.kill()
            for pidfd in workers:
                poller = select.poll()
                poller.register(pidfd, select.POLLIN)
                assert poller.poll(BOUND_S * 1000), "a process outlives the master"
                os.close(pidfd)
    assert (tmp_path / "disk.sock").exists()
    with running(str(path)) as second:
        read_until(second, "serving blk")
        assert not segments_of(first.pid)
        assert segments_of(second.pid)
        with Guest(tmp_path / "disk.sock") as guest:
            use(guest)
        second.terminate()
        assert second.wait(BOUND_S) == 0
        assert not segments_of(second.pid)


def test_client_mode_connects_when_the_vmm_listens_and_again_after_a_disconnect(
    tmp_path: Path,
) -> None:
    meeting = tmp_path / "vmm.sock"
    path = write_file(tmp_path, socket={"path": str(meeting), "mode": "client"})
    with running(str(path)) as process:
        read_until(process, "waiting for the VMM to listen")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as vmm:
            vmm.bind(str(meeting))
            vmm.listen()
            vmm.settimeout(BOUND_S)
            for _ in range(2):
                connection, _ = vmm.accept()
                with Guest(connection) as guest:
                    use(guest)
        process.terminate()
        assert process.wait(BOUND_S) == 0
    assert meeting.exists(), "the socket is the VMM's"


def test_an_inherited_connection_is_served_until_it_ends(tmp_path: Path) -> None:
    path = write_file(tmp_path)
    ours, theirs = socket.socketpair()
    with (
        theirs,
        running(str(path), "--fd", str(theirs.fileno()), fds=(theirs.fileno(),)) as process,
    ):
        theirs.close()
        with Guest(ours) as guest:
            use(guest)
        assert process.wait(BOUND_S) == 0
    assert sorted(os.listdir(tmp_path)) == ["disk.yaml"]


def test_an_inherited_listener_is_served_again_and_again(tmp_path: Path) -> None:
    path = write_file(tmp_path)
    meeting = tmp_path / "inherited.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(meeting))
        listener.listen()
        number = listener.fileno()
        with running(str(path), "--fd", str(number), fds=(number,)) as process:
            for _ in range(2):
                with Guest(meeting) as guest:
                    use(guest)
            process.terminate()
            assert process.wait(BOUND_S) == 0


def test_a_second_front_end_waits_for_the_first_and_is_served_then(
    vuproc_device: ServeDevice,
) -> None:
    served = vuproc_device(DISK)
    with served.guest() as first:
        use(first)
        waiting = served.connect()
        use(first)
    with waiting:
        waiting.negotiate()


def test_a_silent_connection_does_not_keep_another_out_for_ever(
    vuproc_device: ServeDevice,
) -> None:
    served = vuproc_device(DISK)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.connect(str(served.socket))
        begun = time.monotonic()
        with served.guest() as guest:
            use(guest)
        assert time.monotonic() - begun < BOUND_S


def descendants(pid: int) -> list[int]:
    """Every process below `pid`."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        children = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        for child in map(int, children):
            found += [child, *descendants(child)]
    return found


def segments_of(pid: int) -> list[str]:
    """The segments that process `pid` owns or owned; other devices may come and go meanwhile."""
    found = []
    for name in os.listdir("/dev/shm"):
        if f"/{name}".startswith(PREFIX):
            try:
                with Segment.attach(f"/{name}") as segment:
                    if segment.owner == pid:
                        found.append(name)
            except (FileNotFoundError, ValueError):  # gone, or not named yet
                continue
    return found
