"""The second half: a real Linux kernel makes a file system on the disk, and the host looks."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from vuproc.spec.virtio import DeviceId
from vuproc.testing.demo.failure import DemoFailed
from vuproc.testing.vms import (
    ClientMissing,
    LinuxGuest,
    VhostUserDevice,
    boot_qemu,
    boot_uml,
    clients,
)
from vuproc.testing.vms.linux import MARK

HOST_TIMEOUT_S = 60.0
FILES = 3

SCRIPT = """
say kernel $(uname -r)
say disk $(($(blockdev --getsize64 /dev/vda) >> 20)) MiB, queues: $(ls /sys/block/vda/mq | wc -l)
mke2fs -q {options} /dev/vda
mount /dev/vda /mnt
dd if=/dev/urandom of=/tmp/seed bs=65536 count=32 2>/dev/null
for n in $(seq {files}); do {{ echo $n; cat /tmp/seed; }} >/mnt/file$n; done
sync
umount /mnt
mount /dev/vda /mnt
for n in $(seq {files}); do say file$n $(sha256sum </mnt/file$n | cut -d' ' -f1); done
umount /mnt
"""


def boot(console: Console, socket: Path, image: Path, queues: int) -> None:
    """Boots the first guest that can be had and checks its work. Raises DemoFailed.

    Where there is none this says why, which is no failure.
    """
    try:
        programs = [clients.mke2fs()]
        options = "-F -t ext4"
    except ClientMissing:
        # The one in busybox makes ext2 without a question.
        programs, options = [], "-F"
    script = SCRIPT.format(options=options, files=FILES)
    device = VhostUserDevice(socket=socket, properties={"num-queues": queues})
    guests: Sequence[tuple[str, Callable[[], LinuxGuest]]] = [
        (
            "User-Mode Linux",
            lambda: boot_uml({socket: DeviceId.BLK}, script=script, programs=programs),
        ),
        (
            "Linux in QEMU, emulated",
            lambda: boot_qemu([device], script=script, programs=programs),
        ),
    ]
    for name, start in guests:
        began = time.monotonic()
        try:
            guest = start()
        except ClientMissing as missing:
            console.print(f"[yellow]skipped:[/] {missing}", soft_wrap=True)
            continue
        with guest:
            console.print(f"{name} boots on {socket.name} ...")
            report = guest.finish()
        for line in report.lines:
            console.print(f"  guest: {line.removeprefix(MARK)}", markup=False)
        console.print(f"boot, mkfs, write, sync, read, power off: {time.monotonic() - began:.1f} s")
        sums = {f"file{n}": report.values[f"file{n}"] for n in range(1, FILES + 1)}
        compare(console, image, sums)
        return
    console.print("No Linux guest can be had here; the built-in driver's part stands by itself.")


def compare(console: Console, image: Path, sums: dict[str, str]) -> None:
    """Has the host check the file system and each file's checksum, where e2fsprogs is there."""
    e2fsck, debugfs = tool("e2fsck"), tool("debugfs")
    if e2fsck is None or debugfs is None:
        console.print("[yellow]skipped:[/] the host has no e2fsck and debugfs to look with")
        return
    checked = host([e2fsck, "-fn", str(image)])
    if checked.returncode != 0:
        raise DemoFailed(f"e2fsck on the image: {checked.stdout.decode(errors='replace')}")
    console.print("host: e2fsck finds the file system clean")
    for name, guest_sum in sums.items():
        contents = host([debugfs, "-R", f"cat /{name}", str(image)]).stdout
        if hashlib.sha256(contents).hexdigest() != guest_sum:
            raise DemoFailed(f"{name} in the image is not what the guest wrote")
        console.print(f"host: {name} in the image has the guest's checksum")


def tool(name: str) -> str | None:
    """A program of the host, also where only root has it on the path."""
    return shutil.which(name) or shutil.which(name, path=clients.SEARCH_PATH)


def host(command: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    """Runs one of them, within a bound."""
    return subprocess.run(command, capture_output=True, timeout=HOST_TIMEOUT_S, check=False)
