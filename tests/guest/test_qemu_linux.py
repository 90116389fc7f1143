"""A Linux guest with two processors, emulated by QEMU, on a served disk of several queues."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.guest.disk import Disk
from tests.guest.files import SAY_PACKED, SAY_SUMS, WRITE_FILES, check_file_system, sums_of
from tests.guest.load import in_long_form
from vuproc.testing.vms import VhostUserDevice, boot_qemu, clients

pytestmark = pytest.mark.timeout(180)

# A write and a read on each processor, so on each queue that the guest has.
ON_EACH_CPU = """
for cpu in 0 1; do
    taskset -c $cpu dd if=/tmp/seed of=/mnt/cpu$cpu bs=4096 oflag=direct 2>/dev/null
    taskset -c $cpu dd if=/mnt/cpu$cpu of=/tmp/back$cpu bs=4096 iflag=direct 2>/dev/null
    cmp /tmp/seed /tmp/back$cpu && say cpu$cpu same
done
"""


def attached(served: Disk, queues: int, *, packed: bool = False) -> list[VhostUserDevice]:
    properties: dict[str, str | int] = {"num-queues": queues, "packed": "on" if packed else "off"}
    return [VhostUserDevice(socket=served.socket, properties=properties)]


@pytest.mark.parametrize(("queues", "packed"), [(4, False), (2, True), *in_long_form((2, False))])
def test_files_that_the_guest_writes_are_in_the_image(
    disk: Callable[..., Disk], queues: int, packed: bool
) -> None:
    served = disk(queues=queues)
    script = "say queues $(ls /sys/block/vda/mq | wc -l)" + WRITE_FILES + ON_EACH_CPU
    script += "umount /mnt; mount -t ext4 /dev/vda /mnt" + SAY_SUMS + "umount /mnt\n" + SAY_PACKED
    devices = attached(served, queues, packed=packed)
    with boot_qemu(devices, script=script, programs=[clients.mke2fs()]) as guest:
        said = dict(guest.finish().values)
    # Linux takes a queue for each processor: with four offered, two are never started.
    assert said.pop("packed") == str(int(packed))
    assert (said.pop("queues"), said.pop("cpu0"), said.pop("cpu1")) == ("2", "same", "same")
    check_file_system(served.image)
    assert sums_of(served.image) == said


@pytest.mark.parametrize("packed", [True, *in_long_form(False)])
def test_the_guest_reboots_and_finds_its_files(disk: Callable[..., Disk], packed: bool) -> None:
    """With packed rings the firmware's are split, before the first boot and the second."""
    served = disk(queues=2)
    script = f"""
if mount -t ext4 /dev/vda /mnt 2>/dev/null; then
    say boot second
    {SAY_SUMS}
    umount /mnt
else
    {WRITE_FILES}
    say boot first
    {SAY_SUMS}
    umount /mnt
    reboot -f
fi
"""
    with boot_qemu(
        attached(served, 2, packed=packed),
        script=script,
        programs=[clients.mke2fs()],
        reboots=True,
    ) as guest:
        guest.wait_for("boot=first")
        first = dict(guest.wait_for(f"file{n}=").split("=") for n in (1, 2, 3))
        guest.wait_for("boot=second")
        said = guest.finish().values
    assert {name: said[name] for name in first} == first == sums_of(served.image)


def test_a_vmm_killed_while_it_writes_leaves_a_disk_that_the_next_one_repairs(
    disk: Callable[..., Disk],
) -> None:
    served = disk(queues=2)
    busy = """
for cpu in 0 1; do
    (while true; do taskset -c $cpu cp /tmp/seed /mnt/noise$cpu; sync; done) &
done
say busy yes
wait
"""
    script = WRITE_FILES + SAY_SUMS + busy
    with boot_qemu(attached(served, 2), script=script, programs=[clients.mke2fs()]) as guest:
        sums = dict(guest.wait_for(f"file{n}=").split("=") for n in (1, 2, 3))
        guest.wait_for("busy")
        guest.kill()
    script = "mount -t ext4 /dev/vda /mnt" + SAY_SUMS + "umount /mnt\n"
    with boot_qemu(attached(served, 2), script=script) as guest:
        assert guest.finish().values == sums
    check_file_system(served.image)
