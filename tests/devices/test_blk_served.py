"""The block device as it is served: `vuproc run`, workers, and a driver on each queue."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vuproc.cli.hint import hint
from vuproc.device_file.check import load
from vuproc.ops.admin import Request, ask
from vuproc.spec.blk import CONFIG, SECTOR_SIZE, BlkFeature, BlkStatus, BlkType
from vuproc.testing.block import Block
from vuproc.testing.plugin import ServeDevice
from vuproc.testing.serve import serve

SIZE = 4 << 20
QUEUES = 4
QEMU_BOUND_S = 60
STOP_BOUND_S = 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(SIZE))
    return path


def blk(image: Path, **options: object) -> dict[str, object]:
    return {"type": "blk", "image": str(image), **options}


def holds_memory(pid: int) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        return any("memfd:vuproc-ram" in os.readlink(f"{folder}/{n}") for n in os.listdir(folder))
    except OSError:
        return False


def test_all_queues_write_one_disk(vuproc_device: ServeDevice, image: Path) -> None:
    shuffled = random.Random(1)
    with vuproc_device(blk(image, queues=QUEUES)).guest(queues=QUEUES) as guest:
        disk = Block(guest)
        assert disk.config()["num_queues"] == QUEUES
        parts = [shuffled.randbytes(64 << 10) for _ in range(QUEUES * 4)]
        tokens = [
            disk.submit(BlkType.OUT, number * 128, [part], queue=number % QUEUES)
            for number, part in enumerate(parts)
        ]
        for token in tokens:
            assert guest.wait(token).data[-1] == bytes([BlkStatus.OK])
        disk.flush(queue=1)
        for number, part in enumerate(parts):
            assert disk.read(number * 128, len(part), queue=(number + 1) % QUEUES) == part
    assert image.read_bytes()[: len(parts) << 16] == b"".join(parts)


@pytest.mark.parametrize(
    ("begin", "name"), [(b"QFI\xfb", "QCOW2"), (b"KDMV", "VMDK"), (b"vhdxfile", "VHDX")]
)
def test_an_image_in_another_format_is_said_to_be_served_as_it_is(
    vuproc_device: ServeDevice, image: Path, begin: bytes, name: str
) -> None:
    with image.open("r+b") as file:
        file.write(begin)
    served = vuproc_device(blk(image))
    served.wait_for_line(f"disk.raw begins as a {name} file does, and is served byte for byte")
    with served.guest() as guest:
        assert Block(guest).read(0, 512).startswith(begin)


def test_one_worker_for_all_queues(vuproc_device: ServeDevice, image: Path) -> None:
    served = vuproc_device(blk(image, queues=2), file={"workers": [[0, 1]]})
    with served.guest(queues=2) as guest:
        Block(guest).write(0, b"a" * 512, queue=0)
        assert Block(guest).read(0, 512, queue=1) == b"a" * 512


def test_serial_and_capacity(vuproc_device: ServeDevice, image: Path) -> None:
    with vuproc_device(blk(image, serial="demo-0")).guest() as guest:
        disk = Block(guest)
        assert disk.get_id() == "demo-0"
        assert disk.config()["capacity"] == SIZE // SECTOR_SIZE


def test_data_outlives_the_front_end_and_vuproc(image: Path) -> None:
    for number in range(2):
        with serve(blk(image)) as served:
            for _ in range(2):
                with served.guest() as guest:
                    expected = b"x" * 512 if number else bytes(512)
                    assert Block(guest).read(0, 512) == expected
            if number == 0:
                with served.guest() as guest:
                    Block(guest).write(0, b"x" * 512)


def test_memory_disk_outlives_its_workers(vuproc_device: ServeDevice) -> None:
    served = vuproc_device({"type": "blk", "ram": "4MiB", "queues": 2})
    with served.guest(queues=2) as guest:
        disk = Block(guest)
        disk.write(8, b"m" * 4096)
        first = [shown["pid"] for shown in ask(served.socket, Request("status"))["queues"]]
        assert len(first) == 2
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        for pid in first:
            served.wait_for_line(f"worker {pid} ended (killed by SIGKILL)")
        for queue in range(2):
            assert disk.read(8, 4096, queue=queue) == b"m" * 4096
    with served.guest() as guest:
        assert Block(guest).read(8, 4096) == b"m" * 4096


def test_read_only_disk(vuproc_device: ServeDevice, image: Path) -> None:
    with vuproc_device(blk(image, readonly=True)).guest() as guest:
        disk = Block(guest)
        assert guest.front_end.features & BlkFeature.RO
        assert disk.request(BlkType.OUT, 0, [bytes(512)]).status == BlkStatus.IOERR
        assert disk.read(0, 512) == bytes(512)


def test_write_cache_is_switched_by_the_driver(vuproc_device: ServeDevice, image: Path) -> None:
    with vuproc_device(blk(image, queues=2)).guest(queues=2) as guest:
        front_end, wce = guest.front_end, CONFIG.offsets["wce"]
        assert front_end.get_config(wce, 1) == b"\1"
        front_end.set_config(wce, b"\0")
        assert front_end.get_config(wce, 1) == b"\0"
        Block(guest).write(0, b"w" * 512, queue=1)
        with pytest.raises(Exception, match="SET_CONFIG"):
            front_end.set_config(0, bytes(8))
        assert Block(guest).config()["capacity"] == SIZE // SECTOR_SIZE


def test_f11_image_that_has_shrunk_is_ioerr(vuproc_device: ServeDevice, image: Path) -> None:
    with vuproc_device(blk(image)).guest() as guest:
        disk = Block(guest)
        os.truncate(image, SIZE // 2)
        assert disk.request(BlkType.IN, SIZE // 512 - 1, in_=[512]).status == BlkStatus.IOERR
        assert disk.read(0, 512) == bytes(512)


@pytest.mark.parametrize("mode", ["server", "client"])
def test_qemu_takes_the_flags_of_its_hint(tmp_path: Path, image: Path, mode: str) -> None:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    path = tmp_path / "disk.yaml"
    socket = f"{{path: ./disk.sock, mode: {mode}}}"
    path.write_text(f"socket: {socket}\ndevice: {{type: blk, image: {image}, queues: 2}}\n")
    lines = [line for line in hint("qemu", load(path), "64M").splitlines() if line[0] != "#"]
    command = shlex.split(" ".join(line.removesuffix("\\") for line in lines))
    command += ["-accel", "tcg", "-S", "-display", "none", "-nodefaults", "-monitor", "stdio"]

    def qemu() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            input="info qtree\nquit\n",
            capture_output=True,
            text=True,
            timeout=QEMU_BOUND_S,
            check=False,
        )

    if mode == "server":
        with serve(path) as served:
            done = qemu()
            served.wait_for_line("front-end disconnected")
    else:
        with running(path):
            done = qemu()
    # As a server it says that it waits; nothing else is worth a word.
    complaints = [line for line in done.stderr.splitlines() if ": info: " not in line]
    assert (done.returncode, complaints) == (0, [])
    assert "vhost-user-blk" in done.stdout
    assert "num-queues = 2" in done.stdout


@contextmanager
def running(path: Path) -> Iterator[None]:
    """`vuproc run` on a device file in client mode, which has no socket to wait for."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vuproc", "run", str(path)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
        process.terminate()
        assert process.wait(STOP_BOUND_S) == 0
    finally:
        process.kill()
        process.wait()
