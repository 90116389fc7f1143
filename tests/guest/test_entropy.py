"""Devices that finish their requests from tasks, timers and threads, read by Linux's own driver."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.guest.entropy import WAYS, WORD
from vuproc.testing import serve
from vuproc.testing.vms import VhostUserDevice, boot_qemu

pytestmark = pytest.mark.timeout(150)

CHUNK, CHUNKS = 64, 24
"""Bytes that the driver reads at a time, and how many times."""
SCRIPT = f"""
cd /sys/class/misc/hw_random
say available $(cat rng_available)
for number in 0 1 2; do
    echo virtio_rng.$number >rng_current
    for part in before during after; do
        say reading$number $part
        dd if=/dev/hwrng of=/tmp/read bs={CHUNK} count={CHUNKS} iflag=fullblock 2>/dev/null
        say $part$number $(hexdump -v -e '1/1 "%02x"' /tmp/read)
    done
done
"""


def test_a_guest_reads_what_each_way_gives_over_a_death() -> None:
    with ExitStack() as stack:
        served = [stack.enter_context(serve(way)) for way in WAYS]
        devices = [
            VhostUserDevice(socket=each.socket, driver="vhost-user-rng-pci") for each in served
        ]
        modules = ("virtio_pci", "virtio_rng")
        with boot_qemu(devices, script=SCRIPT, modules=modules) as guest:
            for number, each in enumerate(served):
                guest.wait_for(f"reading{number}=during")
                killed = each.kill_worker()
                each.wait_worker(other_than=killed)
            said = guest.finish().values
    assert said["available"].split()[:3] == [f"virtio_rng.{number}" for number in range(3)]
    for number, way in enumerate(WAYS):
        read = [bytes.fromhex(said[f"{part}{number}"]) for part in ("before", "during", "after")]
        assert [len(content) for content in read] == [CHUNK * CHUNKS] * 3
        numbers = list(way.numbers(b"".join(read)))
        # The kernel reads some for itself; what the guest sees comes once, and in order.
        assert numbers == sorted(set(numbers))
        assert len(numbers) == 3 * CHUNKS * CHUNK // WORD.size
    for each in served:
        assert not [line for line in each.lines if "ERROR" in line]
