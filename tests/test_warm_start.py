"""What a standby master prepares, and how it becomes the master, with the keeper's end in hand."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vuproc.handover.keeper.descriptors import become
from vuproc.warm_start import _builtin_type

BOUND_S = 60.0

WAITS = """
import json, os, signal, sys
from vuproc.warm_start import wait_for_turn
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGHUP])
warm = wait_for_turn()
def content(fd): return os.pread(fd.fileno(), 9, 0).decode()
read = {name: [content(fd) for fd in fds] for name, fds in warm.left.items()}
comm = open("/proc/self/comm").read().strip()
pending = sorted(signal.sigpending())
print(json.dumps([read, sorted(os.environ), comm, pending, warm.forkserver.pid]), flush=True)
warm.forkserver.close()
"""


@pytest.mark.parametrize(
    ("content", "device_type"),
    [
        (b"socket: ./s\ndevice: {type: blk, ram: 1MiB}\n", ("vuproc.devices.blk:Blk",)),
        (b"device: {type: net}", ("vuproc.devices.net:Net",)),
        (b"device: {type: ./mine.py:Mine}", ()),
        (b"device: {type: package.module:Mine}", ()),
        (b"device: {type: [blk]}", ()),
        (b"device: blk", ()),
        (b"- device", ()),
        (b"nonsense: [", ()),
        (b"\x82\xa4name\xff", ()),
        (b"", ()),
    ],
)
def test_of_a_device_file_the_built_in_type_alone_is_imported(
    content: bytes, device_type: tuple[str, ...]
) -> None:
    assert _builtin_type(content) == device_type


@contextmanager
def standby(content: bytes) -> Iterator[tuple[subprocess.Popen[str], socket.socket, socket.socket]]:
    """One that was started as a keeper does; the socket at which it waits, and what it says."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind("")
        inbox.settimeout(BOUND_S)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        file = os.memfd_create("device-file")
        os.write(file, content)
        environ = {
            **os.environ,
            "NOTIFY_SOCKET": "@" + inbox.getsockname()[1:].decode(),
            "VUPROC_KEEPER": str(os.getpid()),
        }

        def arranged() -> None:
            stored = [("device-file", file), ("standby", theirs.fileno())]
            become([sys.executable, "-c", WAITS], stored, environ)

        with ours:
            process = subprocess.Popen(
                [sys.executable], preexec_fn=arranged, stdout=subprocess.PIPE, text=True
            )
            theirs.close()
            os.close(file)
            with process:
                try:
                    yield process, ours, inbox
                finally:
                    process.kill()


def said(inbox: socket.socket) -> str:
    return inbox.recv(4096).decode()


def test_it_waits_and_is_the_master_then() -> None:
    with standby(b"device: {type: blk}") as (process, channel, inbox):
        assert said(inbox) == "X_VUPROC_STANDBY=ready"
        with open(f"/proc/{process.pid}/comm") as file:
            assert file.read() == "vuproc-standby\n"
        process.send_signal(signal.SIGHUP)
        files = [os.memfd_create(name) for name in "abc"]
        for number, name in zip(files, "abc", strict=True):
            os.write(number, name.encode())
        socket.send_fds(channel, [b"1:one:two"], files[:2])
        socket.send_fds(channel, [b"0:two"], files[2:])
        assert said(inbox) == "X_VUPROC_STANDBY=taken"
        assert process.stdout is not None
        left, environ, comm, pending, forkserver = json.loads(process.stdout.readline())
        assert left == {"one": ["a"], "two": ["b", "c"]}
        assert {"NOTIFY_SOCKET", "VUPROC_KEEPER"} <= set(environ)
        assert comm != "vuproc-standby"
        assert pending == [], "what came before its turn was for another master"
        assert forkserver
        assert process.wait(BOUND_S) == 0
        for number in files:
            os.close(number)


def test_it_leaves_when_nobody_has_a_use_for_it() -> None:
    with standby(b"") as (process, channel, inbox):
        assert said(inbox) == "X_VUPROC_STANDBY=ready"
        channel.close()
        assert process.wait(BOUND_S) == 0


def test_its_forkserver_has_imported_all_by_then_and_hears_of_no_keeper() -> None:
    with standby(b"device: {type: blk}") as (process, _, inbox):
        assert said(inbox) == "X_VUPROC_STANDBY=ready"
        (child,) = children(process.pid)
        with open(f"/proc/{child}/environ") as file:
            names = {entry.partition("=")[0] for entry in file.read().split("\0")}
        assert not names & {"NOTIFY_SOCKET", "VUPROC_KEEPER", "LISTEN_FDS", "LISTEN_PID"}
        pidfd = os.pidfd_open(child)
        process.kill()
        assert select.select([pidfd], [], [], BOUND_S)[0]
        os.close(pidfd)


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]
