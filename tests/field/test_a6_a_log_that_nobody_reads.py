"""Standard error is a full pipe: nothing of vuproc stands still because of that."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vuproc.ops.admin import AdminError, Request, ask
from vuproc.testing.guest import Guest

BOUND_S = 30.0
LOOK_S = 0.02


@contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """Reading and writing end of a pipe without room."""
    reader, writer = os.pipe()
    try:
        room = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        os.write(writer, b"x" * (room - 1) + b"\n")
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


@contextmanager
def running(folder: Path, stderr: int, *arguments: str) -> Iterator[tuple[Path, int]]:
    """`vuproc run` of a disk with that standard error: its socket, and its process id."""
    socket, path = folder / "d.sock", folder / "d.yaml"
    path.write_text(json.dumps({"socket": str(socket), "device": {"type": "blk", "ram": "1MiB"}}))
    command = [sys.executable, "-m", "vuproc", "run", *arguments, str(path)]
    process = subprocess.Popen(command, stderr=stderr, stdin=subprocess.DEVNULL)
    try:
        yield socket, process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(BOUND_S) == 0
    finally:
        process.kill()
        process.wait()


def status(socket: Path, but: int = 0) -> dict[str, Any]:
    """As soon as a master answers, another than process `but`."""
    deadline = time.monotonic() + BOUND_S
    while True:
        try:
            found = ask(socket, Request("status"), BOUND_S)
            if found["pid"] != but:
                return found
        except AdminError:
            pass
        assert time.monotonic() < deadline, "no master answers"
        select.select([], [], [], LOOK_S)  # nothing announces a master that has come up


def read_until(reader: int, wanted: str) -> str:
    data = b""
    deadline = time.monotonic() + BOUND_S
    while wanted.encode() not in data:
        assert select.select([reader], [], [], deadline - time.monotonic())[0], data
        data += os.read(reader, 65536)
    return data.decode()


def test_a6_a_master_serves_answers_and_ends(tmp_path: Path) -> None:
    with full_pipe() as (reader, writer):
        with running(tmp_path, writer) as (socket, _):
            for _ in range(3):
                status(socket)
                with Guest(socket) as guest:
                    assert guest.do(0, [bytes(16)], [512, 1]).written == 513
            text = read_until(reader, "nobody read them")
            assert "vuproc d: WARNING: lines not shown, as nobody read them: " in text


def test_a6_a_keeper_starts_another_master_and_ends(tmp_path: Path) -> None:
    with full_pipe() as (reader, writer):
        with running(tmp_path, writer, "--supervised") as (socket, _):
            first = status(socket)["pid"]
            with Guest(socket) as guest:
                os.kill(first, signal.SIGKILL)
                assert guest.do(0, [bytes(16)], [512, 1], timeout_s=BOUND_S).written == 513
                status(socket, but=first)
            # As many as it had to say; the next master counts its own.
            read_until(reader, "vuproc keeper: lines not shown, as nobody read them: 1")
