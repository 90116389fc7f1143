"""One image, one writer: a second vuproc is refused, and so is QEMU, over every death."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.field.events import status
from vuproc.devices.blk_image import Image
from vuproc.errors import FileRefused
from vuproc.fd import Fd
from vuproc.ops.admin import Request, ask
from vuproc.shm.segment import sweep
from vuproc.testing.block import Block
from vuproc.testing.serve import Served, serve

BOUND_S = 60.0
SECTOR = 512


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def device_file(image: Path, name: str, options: str = "") -> Path:
    file = image.parent / f"{name}.yaml"
    file.write_text(f"socket: ./{name}.sock\ndevice:\n  type: blk\n  image: ./disk.img\n{options}")
    return file


def is_locked(image: Path) -> bool:
    """Asked as a reader would, and nothing is taken."""
    reader = Image(str(image), readonly=True, direct=False, locking=True)
    try:
        assert list(reader.replaced({})) == []
    except FileRefused:
        return True
    return False


def processes(served: Served) -> dict[str, int]:
    """The process ids, once a master is there."""
    found = status(served)
    return {"master": found["pid"], "worker": found["queues"][0]["pid"]}


def test_b7_second_writer_is_refused_over_all_deaths(image: Path) -> None:
    first, second = device_file(image, "first"), device_file(image, "second")
    command = [sys.executable, "-m", "vuproc", "run", str(second)]
    with serve(first, arguments=["--supervised"]) as served:
        with served.guest(timeout_s=BOUND_S) as guest:
            Block(guest).write(0, b"1" * SECTOR)
            refused = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S)
            assert refused.returncode == 1
            assert f"{image}: another program has it open" in refused.stderr
            assert "locking: off" in refused.stderr
            for victim in ("worker", "master"):
                before = processes(served)[victim]
                os.kill(before, signal.SIGKILL)
                # Also in between: the keeper has the open file.
                while processes(served)[victim] == before:
                    assert is_locked(image)
                assert is_locked(image)
            ask(served.socket, Request("upgrade"))
            served.wait_for_line("becoming the new program", BOUND_S)
            assert is_locked(image)
            processes(served)
            assert Block(guest).read(0, SECTOR) == b"1" * SECTOR
            assert is_locked(image)
    assert not is_locked(image)


def test_b7_start_after_everything_was_killed(image: Path) -> None:
    """The kernel may have its files for a moment longer."""
    file = device_file(image, "disk", "  direct: true\n  engine: io_uring\n")
    command = [sys.executable, "-m", "vuproc", "run", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "serving" in line:
                break
        process.kill()
    with serve(file) as served, served.guest() as guest:
        assert Block(guest).read(0, SECTOR) == bytes(SECTOR)
    sweep()


@contextmanager
def qemu_disk(image: Path, readonly: str) -> Iterator[None]:
    """A stopped machine of QEMU's that has the image as its disk; RuntimeError with what it says
    if it cannot have it.
    """
    drive = f"file={image},format=raw,if=none,id=disk,readonly={readonly}"
    with subprocess.Popen(
        [*QEMU, "-qmp", "stdio", "-drive", drive, "-device", "virtio-blk-pci,drive=disk"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            # It answers once its disk is there.
            process.stdin.write('{"execute": "qmp_capabilities"}\n')
            process.stdin.flush()
            said = []
            for line in process.stdout:
                said.append(line)
                if line.startswith('{"return"'):
                    yield
                    return
            raise RuntimeError("".join(said))
        finally:
            process.kill()


QEMU = ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-nodefaults", "-display", "none", "-S"]


@pytest.mark.skipif(shutil.which(QEMU[0]) is None, reason=f"{QEMU[0]} is not installed")
def test_b7_qemu_and_vuproc_exclude_each_other(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vuproc.devices.blk_image.LOCK_PATIENCE_S", 0.0)
    ours = {
        readonly: Image(str(image), readonly=readonly == "on", direct=False, locking=True)
        for readonly in ("on", "off")
    }
    for theirs, mine in (("off", "off"), ("off", "on"), ("on", "off")):
        with qemu_disk(image, theirs), pytest.raises(FileRefused, match="another program"):
            ours[mine].open()
        with opened(ours[mine]), pytest.raises(RuntimeError, match=r'Failed to get .*"write" lock'):
            with qemu_disk(image, theirs):
                pass
    with qemu_disk(image, "on"), opened(ours["on"]):
        pass


@contextmanager
def opened(image: Image) -> Iterator[dict[str, Fd]]:
    files = image.open()
    try:
        yield files
    finally:
        for fd in files.values():
            fd.close()
