"""QEMUs newer than the installed one, with a Linux guest on a disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.guest.files import SAY_SUMS, WRITE_FILES, check_file_system, sums_of
from tests.guest.qemus import QUEUE_SIZE, newer
from vuproc.testing import serve
from vuproc.testing.vms import Qemu, VhostUserDevice, boot_qemu, clients

pytestmark = pytest.mark.timeout(180)

SCRIPT = f"""
say queues $(ls /sys/block/vda/mq | wc -l)
{WRITE_FILES}
umount /mnt
say written yes
mount -t ext4 /dev/vda /mnt
{SAY_SUMS}
umount /mnt
"""


@pytest.mark.parametrize("qemu", newer())
def test_files_that_the_guest_writes_are_in_the_image(tmp_path: Path, qemu: Qemu) -> None:
    image = tmp_path / "disk.raw"
    image.touch()
    os.truncate(image, 64 << 20)
    properties = {"num-queues": 2, "queue-size": QUEUE_SIZE}
    with serve({"type": "blk", "image": image, "queues": 2, "queue_size": QUEUE_SIZE}) as served:
        disk = VhostUserDevice(socket=served.socket, properties=properties)
        programs = [clients.mke2fs()]
        with boot_qemu([disk], script=SCRIPT, programs=programs, qemu=qemu) as guest:
            guest.wait_for("written")
            served.kill_worker(0)
            said = dict(guest.finish().values)
    assert (said.pop("queues"), said.pop("written")) == ("2", "yes")
    check_file_system(image)
    assert sums_of(image) == said
    # The only event is the death: nothing that this QEMU does is worth a warning.
    events = [line for line in served.lines if "WARNING" in line or "ERROR" in line]
    assert all("worker" in line and "SIGKILL" in line for line in events), events


@pytest.mark.parametrize("qemu", newer())
def test_each_says_its_version(qemu: Qemu) -> None:
    installed, other = (clients.qemu_version(clients.qemu(each)) for each in (Qemu.INSTALLED, qemu))
    assert other > installed
