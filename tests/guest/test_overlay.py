"""A real guest on a disk in two layers, whose workers are killed meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.guest.deaths import Gate, WorkerKiller, meanwhile
from tests.guest.files import SAY_SUMS, WRITE_FILES, check_file_system, sums_of
from vuproc.spec.virtio import DeviceId
from vuproc.testing.block import Block
from vuproc.testing.serve import serve
from vuproc.testing.vms import boot_uml, clients

pytestmark = pytest.mark.timeout(150)

SIZE = 64 << 20
CHANGE = """
mount -t ext4 /dev/vda /mnt
cp /mnt/file3 /mnt/copy
until [ -e UNTIL ]; do
    # In place: the blocks of which the overlay has its own stay as few as they are.
    for n in 1 2 3 4 5 6; do
        dd if=/mnt/copy of=/mnt/more$n bs=65536 conv=notrunc 2>/dev/null; sync
    done
done
for n in 1 2; do echo changed $n >>/mnt/file$n; sync; done
"""


def test_a_guest_goes_on_where_it_was_and_the_base_stays(tmp_path: Path) -> None:
    base, overlay, flat = (tmp_path / name for name in ("base.raw", "top.overlay", "flat.raw"))
    base.touch()
    os.truncate(base, SIZE)
    with serve({"type": "blk", "image": str(base)}) as served:
        script = WRITE_FILES + SAY_SUMS + "umount /mnt\n"
        devices = {served.socket: DeviceId.BLK}
        with boot_uml(devices, script=script, programs=[clients.mke2fs()]) as guest:
            original = guest.finish().values
    golden = base.read_bytes()
    gate = Gate(tmp_path)
    layers = {"type": "blk", "base": str(base), "image": str(overlay)}

    with serve(layers) as served:
        devices = {served.socket: DeviceId.BLK}
        script = gate.script(CHANGE + SAY_SUMS + "umount /mnt\n")
        with boot_uml(devices, script=script) as guest:
            killer = WorkerKiller(served.socket)
            with meanwhile(killer):
                killer.await_deaths()
                gate.open()
                changed = dict(guest.finish().values)
        print(f"{killer.kills.total()} workers were killed")
    assert changed["file3"] == original["file3"]
    assert all(changed[name] != original[name] for name in ("file1", "file2"))

    with serve(layers) as served:
        devices = {served.socket: DeviceId.BLK}
        again = "mount -t ext4 /dev/vda /mnt" + SAY_SUMS + "umount /mnt\n"
        with boot_uml(devices, script=again) as guest:
            assert guest.finish().values == changed
        with served.guest() as driver:
            disk = Block(driver)
            flat.write_bytes(b"".join(disk.read(at << 11, 1 << 20) for at in range(SIZE >> 20)))
    check_file_system(flat)
    assert sums_of(flat) == changed
    assert base.read_bytes() == golden
    assert overlay.stat().st_blocks * 512 < SIZE // 4
