"""A Linux guest, emulated by QEMU, with a network interface that is served."""

from __future__ import annotations

import pytest

from tests.guest.load import in_long_form
from tests.guest.qemus import QUEUE_SIZE, newer
from vuproc.testing import Served, serve
from vuproc.testing.vms import Qemu, VhostUserNet, boot_qemu

pytestmark = pytest.mark.timeout(240)

RX, TX = 0, 1
PINGS = 3

# The neighbour is made up, and known, so that each ping is a frame and no answer is waited for.
# What comes back has its address, and is counted by the interface before it is thrown away.
SCRIPT = f"""
count() {{ cat /sys/class/net/eth0/statistics/$1; }}
ip link set eth0 up
ip addr add 10.0.0.1/24 dev eth0
arp -s 10.0.0.2 02:00:00:00:00:02
say address $(cat /sys/class/net/eth0/address)
say mtu $(cat /sys/class/net/eth0/mtu)
ping -c {PINGS} -W 1 10.0.0.2 >/dev/null || true
say first $(count tx_packets)
until [ -e /tmp/second ]; do
    ping -c 1 -W 1 10.0.0.2 >/dev/null || true
    [ "$(count tx_packets)" -lt {4 * PINGS} ] || touch /tmp/second
done
ip addr flush dev eth0
tries=0
until [ "$(count rx_packets)" = "$(count tx_packets)" ] || [ $tries -ge WAITS ]; do
    tries=$((tries + 1))
    sleep 0.1
done
say sent $(count tx_packets)
say received $(count rx_packets)
"""


def counted(served: Served, first: int, name: str) -> int:
    """Of all receive queues (first 0), or all transmit queues (first 1)."""
    return sum(queue.counters[name] for queue in served.status().queues[first::2])


@pytest.mark.parametrize("qemu", newer())
@pytest.mark.parametrize(
    ("backend", "packed", "pairs"),
    [("loopback", "on", 2), *in_long_form(("loopback", "off", 1), ("null", "on", 1))],
)
def test_a_guests_interface_comes_up_and_sends(
    backend: str, packed: str, pairs: int, qemu: Qemu
) -> None:
    """Not with QEMU 7.2, which Linux 6.1 ends with SIGSEGV at the start of such a device."""
    description = {"type": "net", "backend": backend, "pairs": pairs, "mtu": 1400}
    description["queue_size"] = QUEUE_SIZE
    looped = backend == "loopback"
    script = SCRIPT.replace("WAITS", "100" if looped else "0")
    with serve(description) as served:
        properties: dict[str, str | int] = {"packed": packed}
        properties |= {"mac": "52:54:00:00:00:01", "host_mtu": 1400}
        device = VhostUserNet(socket=served.socket, pairs=pairs, properties=properties)
        modules = ("virtio_pci", "virtio_net")
        with boot_qemu([device], script=script, modules=modules, qemu=qemu) as guest:
            guest.wait_for("first")
            killed = served.kill_worker(TX)
            served.wait_worker(TX, other_than=killed)
            said = guest.finish().values
        assert (said["address"], said["mtu"]) == ("52:54:00:00:00:01", "1400")
        sent, received = int(said["sent"]), int(said["received"])
        assert sent >= 4 * PINGS
        assert counted(served, TX, "requests") >= sent
        if looped:
            # The worker that was killed may have had a frame in its hands.
            assert 4 * PINGS - 1 <= received <= counted(served, RX, "requests")
        else:
            assert received == 0
            assert counted(served, TX, "dropped") == counted(served, TX, "requests")
        assert not [line for line in served.lines if "ERROR" in line]
