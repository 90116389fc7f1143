"""QEMU listens and the device connects to it."""

from __future__ import annotations

import os
from pathlib import Path

from vuproc.spec.blk import CONFIG, BlkFeature
from vuproc.testing import serve
from vuproc.testing.vms import HaltedQemu, VhostUserDevice, VirtioPci
from vuproc.testing.vms.qemu import FIRST_SLOT

DEVICE_FILE = """\
socket: {{path: {socket}, mode: client}}
device: {{type: blk, image: {image}, queues: 2}}
"""


def test_the_device_connects_to_a_vmm_that_listens_and_to_the_next_one(tmp_path: Path) -> None:
    image, device_file = tmp_path / "disk.raw", tmp_path / "disk.yaml"
    image.touch()
    os.truncate(image, 8 << 20)
    path = tmp_path / "vmm.sock"
    device_file.write_text(DEVICE_FILE.format(socket=path, image=image))
    device = VhostUserDevice(socket=path, properties={"num-queues": 2}, server=True)
    with HaltedQemu([device]) as first:
        with serve(device_file):
            assert capacity(first) == 8 << 20
            first.kill()
            # The device tries again until somebody listens there.
            with HaltedQemu([device]) as second:
                assert capacity(second) == 8 << 20


def capacity(machine: HaltedQemu) -> int:
    driver = VirtioPci(machine, FIRST_SLOT)
    driver.negotiate(BlkFeature.MQ)
    return int(CONFIG.unpack(driver.config(0, CONFIG.size))["capacity"]) * 512
