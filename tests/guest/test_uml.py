"""User-Mode Linux on a served disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.guest.disk import Disk
from tests.guest.files import SAY_PACKED, SAY_SUMS, WRITE_FILES, check_file_system, sums_of
from vuproc.spec.virtio import DeviceId
from vuproc.testing.serve import serve
from vuproc.testing.vms import boot_uml, clients

pytestmark = pytest.mark.timeout(150)


@pytest.mark.parametrize("packed", [True, False])
def test_files_that_uml_writes_are_in_the_image(disk: Callable[..., Disk], packed: bool) -> None:
    """It takes packed rings wherever they are offered."""
    served = disk(queues=1, packed=packed)
    script = WRITE_FILES + "umount /mnt; mount -t ext4 /dev/vda /mnt" + SAY_SUMS + "umount /mnt\n"
    script += SAY_PACKED
    devices = {served.socket: DeviceId.BLK}
    with boot_uml(devices, script=script, programs=[clients.mke2fs()]) as guest:
        said = dict(guest.finish().values)
    assert said.pop("packed") == str(int(packed))
    check_file_system(served.image)
    assert sums_of(served.image) == said


def test_a_second_boot_finds_the_files_of_the_first(disk: Callable[..., Disk]) -> None:
    served = disk(queues=1)
    devices = {served.socket: DeviceId.BLK}
    first = WRITE_FILES + SAY_SUMS + "umount /mnt\n"
    with boot_uml(devices, script=first, programs=[clients.mke2fs()]) as guest:
        written = guest.finish().values
    with boot_uml(
        devices, script="mount -t ext4 /dev/vda /mnt" + SAY_SUMS + "umount /mnt"
    ) as guest:
        found = guest.finish().values
    assert found == written
    assert sorted(found) == ["file1", "file2", "file3"]


def test_uml_killed_while_it_writes_leaves_a_disk_that_the_next_one_repairs(
    disk: Callable[..., Disk],
) -> None:
    served = disk(queues=1)
    devices = {served.socket: DeviceId.BLK}
    busy = "(while true; do cat /tmp/seed >/mnt/noise; sync; done) &\nsay busy yes\nwait\n"
    script = WRITE_FILES + SAY_SUMS + busy
    with boot_uml(devices, script=script, programs=[clients.mke2fs()]) as guest:
        sums = dict(guest.wait_for(f"file{n}=").split("=") for n in (1, 2, 3))
        guest.wait_for("busy")
        guest.kill()
    with boot_uml(
        devices, script="mount -t ext4 /dev/vda /mnt" + SAY_SUMS + "umount /mnt"
    ) as guest:
        assert guest.finish().values == sums
    check_file_system(served.image)


@pytest.mark.proves(
    "VRING_KICK",
    "BACKEND_VRING_CALL",
    "PROTOCOL_F_INBAND_NOTIFICATIONS",
    front_end="User-Mode Linux 6.1",
)
def test_uml_with_in_band_notifications_only(
    tmp_path: Path, shown: Callable[[Iterable[str]], None]
) -> None:
    """It takes them when they are offered, and then sends no descriptor to kick or to call by."""
    image = tmp_path / "disk.raw"
    image.touch()
    os.truncate(image, 64 << 20)
    file = {"inband_notifications": True, "log_level": "debug"}
    script = WRITE_FILES + "umount /mnt; mount -t ext4 /dev/vda /mnt" + SAY_SUMS + "umount /mnt\n"
    with serve({"type": "blk", "image": image}, file=file) as served:
        devices = {served.socket: DeviceId.BLK}
        with boot_uml(devices, script=script, programs=[clients.mke2fs()]) as guest:
            said = guest.finish().values
    check_file_system(image)
    assert sums_of(image) == said
    log = "\n".join(served.lines)
    shown(served.lines)
    assert "SET_VRING_KICK" not in log and "SET_VRING_CALL" not in log
