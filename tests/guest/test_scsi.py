"""Linux on the disks and the CD of a SCSI host: User-Mode Linux, and QEMU behind its firmware."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from tests.guest.deaths import Gate, WorkerKiller, meanwhile
from tests.guest.files import SAY_SUMS, WRITE_FILES, check_file_system, sums_of
from vuproc.spec.virtio import DeviceId
from vuproc.testing import Served, serve
from vuproc.testing.vms import VhostUserDevice, boot_qemu, boot_uml, clients

pytestmark = pytest.mark.timeout(240)

SIZE = 64 << 20
GROWN = 96 << 20
MODULES = ("virtio_scsi", "sd_mod", "sr_mod")
# The bus is scanned by a thread of the kernel.
WAIT = """
tries=0
until [ -b /dev/sda ] && [ -b /dev/sr0 ] || [ $tries -ge 100 ]; do
    tries=$((tries + 1))
    sleep 0.1
done
say cd $(sha256sum </dev/sr0 | cut -d' ' -f1)
say model $(cat /sys/block/sda/device/model)
say cache $(cat /sys/class/scsi_disk/*/cache_type)
say fixed $(cat /sys/block/sr0/ro)
"""
FILES = WRITE_FILES.replace("/dev/vda", "/dev/sda")
BUSY = "until [ -e UNTIL ]; do cp /mnt/file1 /mnt/copy; sync; done; rm /mnt/copy\n"
AGAIN = f"umount /mnt; mount -t ext4 /dev/sda /mnt{SAY_SUMS}"
EVENTS = """
rm /mnt/file3
sync
fstrim /mnt && say trimmed yes
say units $(ls -d /sys/class/scsi_disk/* | wc -l)
tries=0
until [ "$(cat /sys/block/sda/size)" = GROWN ] || [ $tries -ge 150 ]; do
    tries=$((tries + 1))
    sleep 0.1
done
say size $(cat /sys/block/sda/size)
tries=0
until [ "$(ls -d /sys/class/scsi_disk/* | wc -l)" = 2 ] || [ $tries -ge 150 ]; do
    tries=$((tries + 1))
    sleep 0.1
done
say plugged $(ls -d /sys/class/scsi_disk/* | wc -l)
umount /mnt
""".replace("GROWN", str(GROWN // 512))


def images(folder: Path) -> tuple[Path, str]:
    """An empty disk, and the checksum of a CD beside it."""
    (folder / "disk").touch()
    os.truncate(folder / "disk", SIZE)
    cd = os.urandom(1 << 20)
    (folder / "cd").write_bytes(cd)
    return folder / "disk", hashlib.sha256(cd).hexdigest()


def device_file(folder: Path, *, unplugged: str = "[]", size: int = 256, queues: int = 1) -> Path:
    path = folder / "scsi.yaml"
    path.write_text(
        f"socket: {folder}/s\ndevice:\n  type: scsi\n  queue_size: {size}\n"
        f"  unplugged: {unplugged}\n  request_queues: {queues}\n  luns:\n"
        "    - {image: ./disk, serial: uml-0, product: A DISK}\n"
        "    - {image: ./cd, kind: cdrom}\n"
        "    - {ram: 8MiB}\n"
    )
    return path


def check(said: dict[str, str], cd: str) -> None:
    assert (said.pop("cd"), said.pop("model"), said.pop("fixed")) == (cd, "A DISK", "1")
    assert said.pop("cache") == "write back"


def test_uml_writes_trims_and_hears_of_changes_while_workers_are_killed(tmp_path: Path) -> None:
    disk, cd = images(tmp_path)
    gate = Gate(tmp_path)
    script = gate.script(WAIT + FILES + "say written yes\n" + BUSY + AGAIN + EVENTS)
    with serve(device_file(tmp_path, unplugged="[2]")) as served:
        devices = {served.socket: DeviceId.SCSI}
        with boot_uml(
            devices, script=script, modules=MODULES, programs=[clients.mke2fs()]
        ) as guest:
            killer = WorkerKiller(served.socket)
            with meanwhile(killer):
                killer.await_deaths()
                gate.open()
                guest.wait_for("units")
            used = os.stat(disk).st_blocks
            os.truncate(disk, GROWN)
            served.reload()
            guest.wait_for("size")
            device_file(tmp_path)
            served.reload()
            said: dict[str, Any] = dict(guest.finish().values)
        print(f"{killer.kills.total()} workers were killed")
        assert not [line for line in served.lines if "ERROR" in line]
    check(said, cd)
    assert (said.pop("written"), said.pop("trimmed"), said.pop("units")) == ("yes", "yes", "1")
    assert (said.pop("size"), said.pop("plugged")) == (str(GROWN // 512), "2")
    assert used * 512 < SIZE // 2
    assert {name: said[name] for name in ("file1", "file2")} == {
        name: found for name, found in sums_of(disk).items() if name != "file3"
    }
    check_file_system(disk)


def test_qemus_firmware_and_its_linux_have_the_same_disk(tmp_path: Path) -> None:
    disk, cd = images(tmp_path)
    script = WAIT + FILES + AGAIN + "umount /mnt\n"
    file = device_file(tmp_path, unplugged="[2]")
    with serve(file, arguments=["--log-level", "debug"]) as served:
        device = qemu_device(served)
        modules = ("virtio_pci", *MODULES)
        with boot_qemu(
            [device], script=script, modules=modules, programs=[clients.mke2fs()]
        ) as guest:
            guest.wait_for("cd")
            # The firmware has looked for something to boot, and has stopped its rings.
            assert any("GET_VRING_BASE" in line for line in served.lines)
            served.wait_worker(2, other_than=served.kill_worker(2))
            said = dict(guest.finish().values)
        assert not [line for line in served.lines if "ERROR" in line]
    check(said, cd)
    assert said == sums_of(disk)
    check_file_system(disk)


def test_a_guest_with_two_cpus_has_a_queue_for_each(tmp_path: Path) -> None:
    disk, _ = images(tmp_path)
    script = WAIT + FILES + "say written yes\n"
    for cpu in (1, 2):
        script += f"say read{cpu} $(taskset {cpu} dd if=/dev/sda bs=4k count=300 iflag=direct"
        script += " 2>/dev/null | wc -c)\n"
    script += AGAIN + "umount /mnt\n"
    with serve(device_file(tmp_path, unplugged="[2]", queues=2)) as served:
        modules = ("virtio_pci", *MODULES)
        with boot_qemu(
            [qemu_device(served, queues=2)],
            script=script,
            modules=modules,
            programs=[clients.mke2fs()],
            suite="trixie",
        ) as guest:
            guest.wait_for("written")
            for queue in (2, 3):
                served.wait_worker(queue, other_than=served.kill_worker(queue))
            said = dict(guest.finish().values)
        queues = served.status().queues
        assert not [line for line in served.lines if "ERROR" in line]
    assert said["read1"] == said["read2"] == str(300 * 4096)
    assert all(queues[queue].requests >= 300 for queue in (2, 3)), queues
    assert sums_of(disk).items() <= said.items()
    check_file_system(disk)


def qemu_device(served: Served, queues: int = 1) -> VhostUserDevice:
    properties = {"num_queues": queues, "virtqueue_size": 256}
    return VhostUserDevice(
        socket=served.socket, driver="vhost-user-scsi-pci", properties=properties
    )
