"""The entropy device, read by Linux's own driver."""

from __future__ import annotations

import pytest

from tests.devices.test_rng import stream
from tests.guest.deaths import ENOUGH, WorkerKiller, meanwhile
from vuproc.testing import serve
from vuproc.testing.vms import VhostUserDevice, boot_qemu

pytestmark = pytest.mark.timeout(150)

SEED, COUNT, RATE = 42, 4096, 3000
SCRIPT = f"""
say current $(cat /sys/class/misc/hw_random/rng_current)
for part in before after; do
    say reading $part
    dd if=/dev/hwrng of=/tmp/read bs=64 count={COUNT // 64} iflag=fullblock 2>/dev/null
    say $part $(hexdump -v -e '1/1 "%02x"' /tmp/read)
done
"""


def test_a_guest_reads_the_stream_of_a_seed_over_deaths() -> None:
    with serve({"type": "rng", "seed": SEED, "rate": RATE}) as served:
        device = VhostUserDevice(socket=served.socket, driver="vhost-user-rng-pci")
        modules = ("virtio_pci", "virtio_rng")
        with boot_qemu([device], script=SCRIPT, modules=modules) as guest:
            guest.wait_for("reading=before")
            killer = WorkerKiller(served.socket)
            with meanwhile(killer):
                said = guest.finish().values
    print(f"{killer.kills.total()} workers were killed")
    assert killer.kills.total() >= ENOUGH
    assert said["current"].startswith("virtio_rng")
    whole = stream(SEED, 1 << 20)
    at = 0
    for part in ("before", "after"):
        read = bytes.fromhex(said[part])
        assert len(read) == COUNT
        # The kernel reads some for itself, and what was on its way at the death is lost: what the
        # guest sees is in the stream, in its order, and nothing twice.
        for begin in range(0, COUNT, 8):
            at = whole.index(read[begin : begin + 8], at) + 8
    assert not [line for line in served.lines if "ERROR" in line]
