"""Linux's network driver on a tap: TCP, with what driver and interface leave to each other."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from pathlib import Path

import pytest

from tests.devices.network_of_ours import bring_up, captured, network
from tests.guest.deaths import ENOUGH, WorkerKiller, meanwhile
from tests.guest.qemus import QUEUE_SIZE, newer
from vuproc.testing import serve
from vuproc.testing.vms import Qemu, VhostUserNet, boot_qemu

pytestmark = pytest.mark.timeout(240)

TAP, HOST, PORT = "vutap0", "10.9.8.1", 4000
SENT = 6 << 20
BOUND_S = 90.0
SCRIPT = f"""
ip link set eth0 up
ip addr add 10.9.8.2/24 dev eth0
say there $(nc {HOST} {PORT} | sha256sum)
head -c {SENT} /dev/urandom > /tmp/back
say back $(sha256sum < /tmp/back)
nc {HOST} {PORT + 1} < /tmp/back
say link $(cat /sys/class/net/eth0/carrier)
"""


def listening(port: int) -> socket.socket:
    made = socket.create_server((HOST, port))
    made.settimeout(BOUND_S)
    return made


@pytest.mark.parametrize("qemu", newer())
def test_a_guest_talks_to_the_host_while_its_workers_are_killed(tmp_path: Path, qemu: Qemu) -> None:
    capture = tmp_path / "all.pcap"
    file = {"type": "net", "backend": "tap", "interface": TAP, "capture": str(capture)}
    block = os.urandom(SENT)
    went, came = hashlib.sha256(), hashlib.sha256()
    with network(), serve(file, queue_size=QUEUE_SIZE) as served:
        bring_up(TAP, HOST)
        with listening(PORT) as first, listening(PORT + 1) as second:

            def give() -> None:
                with first.accept()[0] as client:
                    # So much in any case, and until enough workers have died over it.
                    while True:
                        client.sendall(block)
                        went.update(block)
                        if killer.kills.total() >= ENOUGH:
                            break

            def take() -> None:
                with second.accept()[0] as client:
                    while data := client.recv(1 << 16):
                        came.update(data)

            threads = [threading.Thread(target=each) for each in (give, take)]
            killer = WorkerKiller(served.socket)
            for thread in threads:
                thread.start()
            device = VhostUserNet(socket=served.socket)
            modules = ("virtio_pci", "virtio_net")
            with boot_qemu([device], script=SCRIPT, modules=modules, qemu=qemu) as guest:
                with meanwhile(killer):
                    said = guest.finish().values
            for thread in threads:
                thread.join(BOUND_S)
                assert not thread.is_alive()
    assert said["there"].split()[0] == went.hexdigest()
    assert said["back"].split()[0] == came.hexdigest()
    assert said["link"] == "1"
    print(f"{killer.kills.total()} workers were killed")
    assert killer.kills.total() >= ENOUGH
    # Segments that nobody has cut, since either leaves that to the other.
    assert max(map(len, captured(capture))) > 10_000
