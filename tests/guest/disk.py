"""The disk that the clients here are let loose on: an image and a back-end which serves it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vuproc.testing import serve
from vuproc.testing.vms import clients

# Set to `storage-daemon` to run the same tests against QEMU's back-end: if a test fails there too,
# the client or the test is at fault and not the device.
BACKEND = os.environ.get("VUPROC_GUEST_BACKEND", "vuproc")
STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Disk:
    """A served image: `socket` is where a front-end connects, `pid` the back-end's process."""

    socket: Path
    image: Path
    pid: int


@contextlib.contextmanager
def storage_daemon(directory: Path, image: Path, queues: int) -> Iterator[Disk]:
    """QEMU's storage daemon with one vhost-user-blk export."""
    path = directory / "disk.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        # It takes a socket that listens already, so there is no start to wait for.
        listener.bind(str(path))
        listener.listen(1)
        export = (
            f"type=vhost-user-blk,id=e,node-name=disk,addr.type=fd,addr.str={listener.fileno()}"
        )
        process = subprocess.Popen(
            [
                clients.storage_daemon(),
                *("--blockdev", f"driver=file,node-name=disk,discard=unmap,filename={image}"),
                *("--export", f"{export},writable=on,num-queues={queues}"),
            ],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
        )
    try:
        yield Disk(path, image, process.pid)
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)


@contextlib.contextmanager
def vuproc(image: Path, queues: int, expected_error: str | None, packed: bool) -> Iterator[Disk]:
    """`vuproc run` on the image. Its log must hold no ERROR but `expected_error`, and that one."""
    device = {"type": "blk", "image": image, "queues": queues}
    with serve(device, file={"packed": packed}) as served:
        yield Disk(served.socket, image, served.pid)
    errors = [line for line in served.lines if "ERROR" in line]
    if expected_error is not None:
        assert any(expected_error in line for line in errors), served.lines
        errors = [line for line in errors if expected_error not in line]
    assert not errors, errors


@contextlib.contextmanager
def serve_image(
    directory: Path, *, queues: int, size: int, expected_error: str | None, packed: bool
) -> Iterator[Disk]:
    """An empty image of `size` bytes in `directory`, served by the back-end under test.

    packed: it offers packed rings.
    """
    image = directory / "disk.raw"
    image.touch()
    os.truncate(image, size)
    if BACKEND == "storage-daemon":
        with storage_daemon(directory, image, queues) as disk:
            yield disk
    else:
        with vuproc(image, queues, expected_error, packed) as disk:
            yield disk
