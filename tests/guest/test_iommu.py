"""A Linux guest whose disk reaches memory through QEMU's emulation of Intel's IOMMU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.guest.files import SAY_SUMS, WRITE_FILES, check_file_system, sums_of
from tests.guest.load import in_long_form
from tests.guest.qemus import QUEUE_SIZE, newer
from vuproc.testing import serve
from vuproc.testing.vms import Qemu, VhostUserDevice, boot_qemu, clients
from vuproc.testing.vms.qemu import IOMMU

pytestmark = pytest.mark.timeout(300)

SCRIPT = f"""
say groups $(ls /sys/kernel/iommu_groups | wc -l)
say platform $(cut -c34 /sys/bus/virtio/devices/virtio0/features)
{WRITE_FILES}
umount /mnt
say written yes
mount -t ext4 /dev/vda /mnt
{SAY_SUMS}
umount /mnt
"""


BEHIND_VIRTIO = SCRIPT.replace("virtio0", "virtio1")  # the first is the IOMMU itself
LATER = "trixie"
"""Whose kernel has the driver of virtio-iommu. It is Linux 6.12."""


STRICT, LAZY = "iommu.strict=1", "iommu.strict=0"
"""Whether Linux has each translation taken back by itself, or now and then all of them. QEMU 7.2
says nothing of the latter to a device.
"""


@pytest.mark.parametrize(
    ("qemu", "mode", "packed"),
    [
        (Qemu.INSTALLED, STRICT, False),
        *((qemu, LAZY, True) for qemu in newer()),
        *in_long_form(
            (Qemu.INSTALLED, STRICT, True),
            *((qemu, STRICT, True) for qemu in newer()),
            *((qemu, LAZY, False) for qemu in newer()),
        ),
    ],
)
def test_files_that_the_guest_writes_are_in_the_image(
    tmp_path: Path, qemu: Qemu, packed: bool, mode: str
) -> None:
    image = tmp_path / "disk.raw"
    image.touch()
    os.truncate(image, 64 << 20)
    properties = {**IOMMU, "num-queues": 2, "packed": "on" if packed else "off"}
    properties["queue-size"] = QUEUE_SIZE
    device = {"type": "blk", "image": image, "queues": 2, "queue_size": QUEUE_SIZE}
    with serve(device, file={"iommu": True}) as served:
        disk = VhostUserDevice(socket=served.socket, properties=properties)
        programs = [clients.mke2fs()]
        with boot_qemu([disk], script=SCRIPT, programs=programs, qemu=qemu, iommu=mode) as guest:
            guest.wait_for("written", timeout_s=250)
            served.kill_worker(0)
            said = dict(guest.finish(timeout_s=250).values)
    assert (said.pop("platform"), said.pop("written")) == ("1", "yes")
    assert int(said.pop("groups")) > 0
    check_file_system(image)
    assert sums_of(image) == said
    assert not [line for line in served.lines if "ERROR" in line], served.lines


@pytest.mark.proves(
    "IOTLB_MSG", "BACKEND_IOTLB_MSG", "VIRTIO_F_ACCESS_PLATFORM", front_end="QEMU 7.2"
)
@pytest.mark.proves(
    "IOTLB_MSG", "BACKEND_IOTLB_MSG", "VIRTIO_F_ACCESS_PLATFORM", front_end="QEMU 10.0"
)
@pytest.mark.parametrize(
    ("qemu", "packed"),
    [
        (Qemu.INSTALLED, False),
        *((qemu, True) for qemu in newer()),
        *in_long_form((Qemu.INSTALLED, True), *((qemu, False) for qemu in newer())),
    ],
)
def test_files_that_are_written_behind_a_virtio_iommu(
    tmp_path: Path, qemu: Qemu, packed: bool, shown: Callable[[Iterable[str]], None]
) -> None:
    image = tmp_path / "disk.raw"
    image.touch()
    os.truncate(image, 64 << 20)
    properties = {**IOMMU, "num-queues": 2, "packed": "on" if packed else "off"}
    properties["queue-size"] = QUEUE_SIZE
    device = {"type": "blk", "image": image, "queues": 2, "queue_size": QUEUE_SIZE}
    with serve(device, file={"iommu": True, "log_level": "debug"}) as served:
        with boot_qemu(
            [VhostUserDevice(socket=served.socket, properties=properties)],
            script=BEHIND_VIRTIO,
            modules=("virtio_iommu", "virtio_blk"),
            programs=[clients.mke2fs()],
            qemu=qemu,
            iommu=STRICT,
            virtio_iommu=True,
            suite=LATER,
        ) as guest:
            guest.wait_for("written", timeout_s=250)
            served.kill_worker(0)
            said = dict(guest.finish(timeout_s=250).values)
    assert (said.pop("platform"), said.pop("written")) == ("1", "yes")
    assert int(said.pop("groups")) > 0
    check_file_system(image)
    assert sums_of(image) == said
    shown(served.lines)
    assert not [line for line in served.lines if "ERROR" in line], served.lines
