"""A disk goes on with the image that was opened, whatever becomes of its path."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.field.events import status, wait_until
from vuproc.ops.admin import Request, ask
from vuproc.testing.block import Block
from vuproc.testing.guest import Guest
from vuproc.testing.serve import Served, serve

BOUND_S = 60.0
SECTOR = 512
SIZE = 1 << 20
OLD, NEW = b"o" * SECTOR, b"n" * SECTOR


class Disk:
    """A supervised disk of two queues, its device file and the files that it may be."""

    def __init__(self, folder: Path, served: Served) -> None:
        self.file, self.image = folder / "disk.yaml", folder / "disk.img"
        self.other = folder / "other.img"
        self.served = served

    def status(self) -> dict[str, Any]:
        """Also while a master is starting."""
        return status(self.served)

    def reload(self) -> list[str]:
        lines: list[str] = ask(self.served.socket, Request("reload"), BOUND_S)["lines"]
        return lines

    def kill_master(self) -> None:
        pid = self.status()["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: self.status()["pid"] != pid, "another master")

    def kill_worker(self, queue: int) -> None:
        pid = self.served.kill_worker(queue)
        self.served.wait_worker(queue, other_than=pid)

    def run(self, verb: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vuproc", verb, str(self.file)]
        return subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S)


TEXT = "socket: ./disk.sock\ndevice:\n  type: blk\n  queues: 2\n  image: ./disk.img\n"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    (tmp_path / "disk.yaml").write_text(TEXT)
    (tmp_path / "disk.img").write_bytes(OLD * (SIZE // SECTOR))
    (tmp_path / "other.img").write_bytes(NEW * (SIZE // SECTOR))
    with serve(tmp_path / "disk.yaml", arguments=["--supervised"]) as served:
        yield Disk(tmp_path, served)


def connect(disk: Disk) -> Guest:
    return disk.served.guest(queues=2, timeout_s=BOUND_S)


def first_sectors(guest: Guest) -> list[bytes]:
    return [Block(guest).read(0, SECTOR, queue=queue) for queue in range(2)]


def test_a5_replaced_image_is_taken_up_by_reload_and_by_all_queues(disk: Disk) -> None:
    with connect(disk) as guest:
        assert first_sectors(guest) == [OLD, OLD]
        os.rename(disk.other, disk.image)
        disk.kill_worker(0)
        assert first_sectors(guest) == [OLD, OLD]
        disk.kill_master()
        disk.served.wait_for_line(f"another file is at {disk.image} now; going on with the one")
        assert first_sectors(guest) == [OLD, OLD]
        assert disk.run("upgrade").returncode == 0
        assert first_sectors(guest) == [OLD, OLD]
        (line,) = disk.reload()
        assert line == (
            f"{disk.file}:5:3: device.image: another file is at {disk.image} now: "
            "takes effect with the next front-end"
        )
        disk.kill_worker(1)
        assert first_sectors(guest) == [OLD, OLD]
    with connect(disk) as guest:
        assert first_sectors(guest) == [NEW, NEW]
        disk.kill_master()
        disk.kill_worker(0)
        assert first_sectors(guest) == [NEW, NEW]
        assert disk.reload()[0].endswith("nothing has changed")


def test_a5_removed_image_is_served_on_and_named(disk: Disk) -> None:
    with connect(disk) as guest:
        block = Block(guest)
        block.write(8, b"w" * SECTOR)
        disk.image.unlink()
        disk.kill_worker(0)
        disk.kill_master()
        assert block.read(8, SECTOR) == b"w" * SECTOR
        assert block.config()["capacity"] == SIZE // SECTOR
        # The verbs for a device that runs do not ask whether it could be started.
        assert disk.run("status").returncode == 0
        for verb in ("reload", "upgrade"):
            refused = disk.run(verb)
            assert refused.returncode == 1
            reason = f"disk.yaml:5:10: image: {disk.image}: no such file or directory"
            assert reason in refused.stderr
        disk.kill_worker(1)
        assert block.read(8, SECTOR, queue=1) == b"w" * SECTOR


def test_a5_upgrade_to_another_image_ends_the_session_of_the_first(disk: Disk) -> None:
    with connect(disk) as guest:
        assert first_sectors(guest) == [OLD, OLD]
        disk.file.write_text(TEXT.replace("disk.img", "other.img"))
        assert disk.run("upgrade").returncode == 0
        disk.served.wait_for_line("the session of the last master is lost: the device's files")
    with connect(disk) as guest:
        assert first_sectors(guest) == [NEW, NEW]


def test_a5_reload_that_waited_for_its_front_end_is_looked_at_again(disk: Disk) -> None:
    with connect(disk) as guest:
        os.rename(disk.other, disk.image)
        assert "another file" in disk.reload()[0]
        disk.image.write_bytes(b"")
        assert first_sectors(guest) == [OLD, OLD]
    disk.served.wait_for_line("going on as before: ")
    with connect(disk) as guest:
        assert first_sectors(guest) == [OLD, OLD]


def test_a5_image_that_is_opened_otherwise_is_not_kept_from_itself(disk: Disk) -> None:
    """By its own lock, which the workers of the program before hold until they are relieved."""
    with connect(disk) as guest:
        disk.file.write_text(f"{TEXT}  readonly: true\n")
        assert disk.reload()[0].endswith("takes effect with the next front-end")
        Block(guest).write(0, NEW)
    with connect(disk) as guest:
        assert first_sectors(guest) == [NEW, NEW]
        with pytest.raises(OSError, match="status 1"):
            Block(guest).write(0, OLD)
