"""Whoever finds the socket's path can connect: from the first moment, and while masters change."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from tests.field.events import status
from tests.field.running import (
    VUPROC,
    await_made,
    run_to_end,
    started,
    stop,
    wait_until,
    write_file,
)
from vuproc.testing.block import Block
from vuproc.testing.guest import Guest


@pytest.mark.parametrize("supervised", [[], ["--supervised"]], ids=["alone", "supervised"])
def test_b2_whoever_sees_the_path_is_served(tmp_path: Path, supervised: list[str]) -> None:
    file, path = write_file(tmp_path), tmp_path / "disk.sock"
    for _ in range(2):
        with started([*VUPROC, "run", *supervised, file]) as process:
            await_made(path, process)
            with Guest(path) as guest:
                Block(guest).read(0, 512)
            assert status(path)["pid"]
            assert stop(process)[0] == 0


def test_b2_the_path_is_never_dead_while_masters_change(tmp_path: Path) -> None:
    file, path = write_file(tmp_path), tmp_path / "disk.sock"
    with started([*VUPROC, "run", "--supervised", file]) as process:
        await_made(path, process)
        with Connecting(path) as refused:
            first = status(path)
            file.write_text(file.read_text().replace("1MiB", "2MiB"))
            assert run_to_end([*VUPROC, "reload", file]).returncode == 0
            assert run_to_end([*VUPROC, "upgrade", file]).returncode == 0
            os.kill(first["pid"], signal.SIGKILL)
            wait_until(lambda: status(path)["pid"] != first["pid"], process)
        assert refused == []
        assert stop(process)[0] == 0


class Connecting:
    """Somebody who connects to both sockets at any time; it lists what went wrong."""

    def __init__(self, path: Path) -> None:
        self._paths = [str(path), f"{path}.admin"]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.errors: list[OSError] = []

    def _run(self) -> None:
        while not self._done.wait(0.02):
            for path in self._paths:
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                    client.setblocking(False)
                    try:
                        client.connect(path)
                    except BlockingIOError:
                        pass  # its backlog is full, so somebody listens
                    except OSError as error:
                        self.errors.append(error)

    def __enter__(self) -> list[OSError]:
        self._thread.start()
        return self.errors

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
