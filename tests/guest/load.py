"""What guests do while the processes behind their disk die, and how it is checked afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.guest.files import check_file_system, sum_of
from tests.guest.lagging import LaggingBlk, SlowBlk
from vuproc.spec.virtio import DeviceId
from vuproc.testing.serve import reference
from vuproc.testing.vms import Qemu, VhostUserDevice, boot_qemu, boot_uml, clients
from vuproc.testing.vms.linux import LinuxGuest, Report

LONG = os.environ.get("VUPROC_LONG", "") not in ("", "0")
FILES = 3
"""Files that each writer writes in turn."""
SIZE = 128 << 20
LAGGING = "lagging"
"""In Python and out of order; the other engines are the disk's own."""
SLOW = "slow"
"""The same, and later."""
OURS = {LAGGING: LaggingBlk, SLOW: SlowBlk}
BEGINS = "load=begins"
ENDED = "load=ended"


def in_long_form(*cases: Any) -> tuple[Any, ...]:
    """Cases that are left out otherwise: others show the same, and each boots a guest or two."""
    return cases if LONG else ()


# Each writer makes one file after the other, with and without the page cache, and reads each back
# from the disk. What it last meant to be in a file it keeps in memory, as a checksum.
LOAD = """
mke2fs -q -t ext4 /dev/vda
mount -t ext4 /dev/vda /mnt
dd if=/dev/urandom of=/tmp/seed bs=65536 count=4 2>/dev/null
write_once() {
    name=cpu$1.$(($2 % FILES))
    { echo $1 $2; cat /tmp/seed; } | dd of=/tmp/now$1 bs=4096 conv=sync 2>/dev/null
    if [ $(($2 % 2)) = 0 ]; then
        dd if=/tmp/now$1 of=/mnt/$name bs=16384 oflag=direct 2>/dev/null
    else
        dd if=/tmp/now$1 of=/mnt/$name bs=4096 conv=fsync 2>/dev/null
    fi
    dd if=/mnt/$name of=/tmp/back$1 bs=8192 iflag=direct 2>/dev/null
    cmp /tmp/now$1 /tmp/back$1 || say different $name
    sha256sum </tmp/now$1 | cut -d' ' -f1 >/tmp/sum.$name
}
# Each file at least once, however slow the machine is.
writer() {
    round=0
    while [ $round -lt FILES ] || more; do
        round=$((round + 1))
        write_once $1 $round
    done
    say rounds$1 $round
}
# Keeps the queues full of large writes meanwhile.
noise() {
    while more; do
        dd if=/dev/zero of=/mnt/noise$1 bs=65536 count=64 conv=fsync 2>/dev/null
    done
}
# Has the disk write to the guest's page cache, and looks later what is there: of two files in turn,
# for a page is likely to get back what it had if there is but one.
reader() {
    for name in left right; do
        for n in $(seq 8); do echo $name; cat /tmp/seed; done >/mnt/$name$1
        sha256sum </mnt/$name$1 >/tmp/$name$1
    done
    sync
    passes=0
    while more; do
        for name in left right; do
            echo 1 >/proc/sys/vm/drop_caches
            cat /mnt/$name$1 >/dev/null
            sha256sum </mnt/$name$1 | cmp - /tmp/$name$1 || say different $name$1
        done
        passes=$((passes + 1))
        say pass $passes
    done
    say passes$1 $passes
}
dmesg -c >/dev/null
MORE
say load begins
for cpu in CPUS; do
    for task in TASKS; do
        $task $cpu &
        pids="${pids:-} $!"
        taskset -p -c $cpu $! >/dev/null
    done
done
for pid in $pids; do wait $pid; done
say load ended
say packed $(cut -c35 /sys/block/vda/device/features)
umount /mnt
dmesg -r | grep -iE 'error|fail|timeout|hung|aborted|corrupt' >/tmp/complaints || true
say complaints $(wc -l </tmp/complaints)
while IFS= read -r line; do say complaint "$line"; done </tmp/complaints
for sum in /tmp/sum.*; do say ${sum#/tmp/sum.} $(cat $sum); done
"""


FOR_SECONDS = """end=$(($(date +%s) + SECONDS))
more() { [ $(date +%s) -lt $end ]; }"""
UNTIL_TOLD = """(read -r line </dev/ttyS1; echo >/tmp/enough) &
more() { ! [ -e /tmp/enough ]; }"""


def _script(cpus: int, more: str, tasks: str = "writer noise") -> str:
    words = {
        "MORE": more,
        "FILES": FILES,
        "CPUS": " ".join(map(str, range(cpus))),
        "TASKS": tasks,
    }
    script = LOAD
    for word, value in words.items():
        script = script.replace(word, str(value))
    return script


def uml(socket: Path, seconds: int) -> LinuxGuest:
    """User-Mode Linux with one queue, under load for so long; packed, as it is offered."""
    script = _script(1, _for(seconds))
    return boot_uml({socket: DeviceId.BLK}, script=script, programs=[clients.mke2fs()])


def qemu(
    socket: Path, seconds: int, *, reconnect_s: int | None = None, packed: bool = False
) -> LinuxGuest:
    """An emulated Linux with two queues, under load for so long."""
    return _emulated(socket, _script(2, _for(seconds)), packed=packed, reconnect_s=reconnect_s)


def qemu_until_told(
    socket: Path,
    extra: Sequence[str],
    *,
    packed: bool,
    version: Qemu = Qemu.INSTALLED,
    properties: Mapping[str, str | int] = MappingProxyType({}),
) -> LinuxGuest:
    """The same until a line comes in by its second serial port; it reads much, too. `properties`
    are further ones of the disk.
    """
    script = _script(2, UNTIL_TOLD, "writer reader")
    return _emulated(
        socket, script, packed=packed, extra=extra, version=version, properties=properties
    )


def _for(seconds: int) -> str:
    return FOR_SECONDS.replace("SECONDS", str(seconds))


def _emulated(
    socket: Path,
    script: str,
    *,
    packed: bool,
    reconnect_s: int | None = None,
    extra: Sequence[str] = (),
    version: Qemu = Qemu.INSTALLED,
    properties: Mapping[str, str | int] = MappingProxyType({}),
) -> LinuxGuest:
    basic: dict[str, str | int] = {"num-queues": 2, "packed": "on" if packed else "off"}
    disk = VhostUserDevice(
        socket=socket, properties={**basic, **properties}, reconnect_s=reconnect_s
    )
    programs = [clients.mke2fs()]
    return boot_qemu([disk], script=script, programs=programs, extra=extra, qemu=version)


def packed(socket: Path, seconds: int, *, reconnect_s: int | None = None) -> LinuxGuest:
    """The same on packed rings."""
    return qemu(socket, seconds, reconnect_s=reconnect_s, packed=True)


QUEUES: dict[Callable[..., LinuxGuest], int] = {uml: 1, qemu: 2, packed: 2}
"""Of the disk that such a guest is given."""


def new_disk(directory: Path, queues: int, engine: str = LAGGING) -> tuple[Path, dict[str, Any]]:
    """An empty image, and the device that serves it by such an engine."""
    image = directory / "disk.raw"
    image.touch()
    os.truncate(image, SIZE)
    ours = OURS.get(engine)
    kind = {"type": reference(ours)} if ours else {"type": "blk", "engine": engine}
    return image, {**kind, "image": str(image), "queues": queues}


def check(report: Report, image: Path, boot: Callable[..., LinuxGuest]) -> None:
    """The guest saw no fault, had its kind of ring, and the host finds what the guest wrote."""
    cpus = QUEUES[boot]
    assert report.values["packed"] == str(int(boot is not qemu))
    assert "different" not in report.values, report.lines
    complaints = [line for line in report.lines if line.startswith("complaint=")]
    assert not complaints
    assert report.values["complaints"] == "0"
    sums: Mapping[str, str] = {
        name: value for name, value in report.values.items() if name.startswith("cpu")
    }
    assert len(sums) == cpus * FILES
    check_file_system(image)
    assert {name: sum_of(image, name) for name in sums} == sums
    rounds = [report.values[f"rounds{cpu}"] for cpu in range(cpus)]
    print(f"files written and read back by each processor: {', '.join(rounds)}")
