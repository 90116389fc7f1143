"""Guests that write while the processes which serve their disk are killed, and notice nothing."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.guest.deaths import PERIOD_S, kill_all, workers_die
from tests.guest.files import check_file_system, sum_of
from tests.guest.lagging import LaggingBlk
from vuproc.admin import Request, ask
from vuproc.spec.virtio import DeviceId
from vuproc.testing import serve
from vuproc.testing.errors import ServeFailed
from vuproc.testing.guests import VhostUserDevice, boot_qemu, boot_uml, clients
from vuproc.testing.guests.linux import LinuxGuest, Report
from vuproc.testing.serve import reference

LONG = bool(os.environ.get("VUPROC_LONG"))
LOAD_S = 30 if LONG else 10
"""Seconds of load in the guest while workers are killed."""
RESTARTS_LOAD_S = 20
"""Seconds of load in which the whole device is killed: each start and reconnection takes two."""
FILES = 3
"""Files that each writer writes in turn."""
SIZE = 128 << 20
DEATHS_OF_ALL = 3
SOME_REQUESTS = 8
WORK_TIMEOUT_S = 30.0
LOOK_S = 0.005

pytestmark = pytest.mark.timeout(240)

# Each writer makes one file after the other, with and without the page cache, and reads each back
# from the disk. What it last meant to be in a file it keeps in memory, as a checksum.
LOAD = """
mke2fs -q -t ext4 /dev/vda
mount -t ext4 /dev/vda /mnt
dd if=/dev/urandom of=/tmp/seed bs=65536 count=4 2>/dev/null
writer() {
    round=0
    while [ $(date +%s) -lt $end ]; do
        round=$((round + 1))
        name=cpu$1.$((round % FILES))
        { echo $1 $round; cat /tmp/seed; } | dd of=/tmp/now$1 bs=4096 conv=sync 2>/dev/null
        if [ $((round % 2)) = 0 ]; then
            dd if=/tmp/now$1 of=/mnt/$name bs=16384 oflag=direct 2>/dev/null
        else
            dd if=/tmp/now$1 of=/mnt/$name bs=4096 conv=fsync 2>/dev/null
        fi
        dd if=/mnt/$name of=/tmp/back$1 bs=8192 iflag=direct 2>/dev/null
        cmp /tmp/now$1 /tmp/back$1 || say different $name
        sha256sum </tmp/now$1 | cut -d' ' -f1 >/tmp/sum.$name
        say round $1 $round
    done
}
# Keeps the queues full of large writes meanwhile.
noise() {
    while [ $(date +%s) -lt $end ]; do
        dd if=/dev/zero of=/mnt/noise$1 bs=65536 count=128 conv=fsync 2>/dev/null
    done
}
dmesg -c >/dev/null
end=$(($(date +%s) + SECONDS))
say load begins
for cpu in CPUS; do
    for task in writer noise; do
        $task $cpu &
        pids="${pids:-} $!"
        taskset -p -c $cpu $! >/dev/null
    done
done
for pid in $pids; do wait $pid; done
say load ended
umount /mnt
dmesg -r | grep -iE 'error|fail|timeout|hung|aborted|corrupt' >/tmp/complaints || true
say complaints $(wc -l </tmp/complaints)
while IFS= read -r line; do say complaint "$line"; done </tmp/complaints
for sum in /tmp/sum.*; do say ${sum#/tmp/sum.} $(cat $sum); done
"""


def load(cpus: int, seconds: int) -> str:
    words = {"FILES": FILES, "SECONDS": seconds, "CPUS": " ".join(map(str, range(cpus)))}
    script = LOAD
    for word, value in words.items():
        script = script.replace(word, str(value))
    return script


def uml(socket: Path) -> LinuxGuest:
    return boot_uml({socket: DeviceId.BLK}, script=load(1, LOAD_S), programs=[clients.mke2fs()])


def qemu(socket: Path, *, seconds: int = LOAD_S, reconnect_s: int | None = None) -> LinuxGuest:
    disk = VhostUserDevice(socket=socket, properties={"num-queues": 2}, reconnect_s=reconnect_s)
    return boot_qemu([disk], script=load(2, seconds), programs=[clients.mke2fs()])


def new_disk(directory: Path, queues: int) -> tuple[Path, dict[str, Any]]:
    """An empty image, and the device that serves it, out of order."""
    image = directory / "disk.raw"
    image.touch()
    os.truncate(image, SIZE)
    return image, {"type": reference(LaggingBlk), "image": str(image), "queues": queues}


def check(report: Report, image: Path, cpus: int) -> None:
    """The guest saw no fault, and the host finds what the guest wrote."""
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


@pytest.mark.parametrize(("boot", "queues"), [(uml, 1), (qemu, 2)])
def test_a_guest_notices_nothing_of_workers_that_are_killed(
    tmp_path: Path, boot: Callable[[Path], LinuxGuest], queues: int
) -> None:
    image, device = new_disk(tmp_path, queues)
    with serve(device) as served, boot(served.socket) as guest:
        guest.wait_for("load=begins")
        with workers_die(served.socket) as killer:
            guest.wait_for("load=ended")
        report = guest.finish()
        shown = ask(served.socket, Request("status"))["queues"]
    for queue in shown:
        kills = killer.kills[queue["queue"]]
        busy = killer.in_service[queue["queue"]]
        print(f"queue {queue['queue']}: {kills} kills, {busy} in a request of {queue['requests']}")
        # At each turn but those for which the machine had no time.
        assert kills > LOAD_S / PERIOD_S / 4
        assert queue["restarts"] == kills
    assert not [line for line in served.lines if "ERROR" in line]
    check(report, image, queues)


def await_requests(socket: Path) -> None:
    """Until each queue of a device has done some work and one is in the middle of a request."""
    deadline = time.monotonic() + WORK_TIMEOUT_S
    never = threading.Event()
    while True:
        queues = ask(socket, Request("status"))["queues"]
        worked = all(queue["requests"] >= SOME_REQUESTS for queue in queues)
        if worked and any(queue["in_service"] is not None for queue in queues):
            return
        assert time.monotonic() < deadline, queues
        never.wait(LOOK_S)


def test_a_guest_notices_nothing_of_a_device_that_is_killed_and_started_again(
    tmp_path: Path,
) -> None:
    """Master and workers at once; QEMU reconnects and hands the in-flight records back."""
    image, device = new_disk(tmp_path, queues=2)
    socket, device_file = tmp_path / "disk.sock", tmp_path / "disk.yaml"
    device_file.write_text(json.dumps({"socket": str(socket), "device": device}))
    with contextlib.ExitStack() as stack:
        guest: LinuxGuest | None = None
        for _ in range(DEATHS_OF_ALL):
            with pytest.raises(ServeFailed, match="exit code -9"), serve(device_file) as served:
                if guest is None:
                    guest = qemu(socket, seconds=RESTARTS_LOAD_S, reconnect_s=1)
                    stack.enter_context(guest)
                    guest.wait_for("load=begins")
                await_requests(socket)
                kill_all(served.pid)
        assert guest is not None
        with serve(device_file) as served:
            await_requests(socket)
            guest.wait_for("load=ended")
            report = guest.finish()
    assert not [line for line in served.lines if "ERROR" in line]
    check(report, image, cpus=2)
