"""A disk that a Ceph cluster has, against a real one: of the long form, since its packages are only
unpacked then.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.guest.ceph import POOL, Cluster, running
from tests.guest.files import SAY_SUMS, WRITE_FILES, check_file_system, sums_of
from vuproc.device_file.check import load
from vuproc.errors import ConfigErrors
from vuproc.spec.blk import SECTOR_SIZE, BlkFeature, BlkStatus, BlkType
from vuproc.spec.virtio import DeviceId
from vuproc.testing.block import Block
from vuproc.testing.serve import Served, serve
from vuproc.testing.vms import ClientMissing, boot_uml, clients

pytestmark = pytest.mark.timeout(240)

SIZE = 64 << 20
MIB = 1 << 20
BOUND_S = 60.0


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    try:
        with running(tmp_path_factory.mktemp("ceph")) as cluster:
            yield cluster
    except ClientMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def cluster(shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    for name, value in shared_cluster.ceph.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "path", [*sys.path, str(shared_cluster.ceph.modules)])
    return shared_cluster


@contextmanager
def serving(cluster: Cluster, image: str, mode: str = "standard", **more: Any) -> Iterator[Served]:
    device = {"type": "blk", "rbd": image, "rbd_conf": str(cluster.conf), **more}
    # Where the keyring is; an installed Ceph's is in /etc/ceph.
    places = [str(cluster.folder), str(cluster.ceph.libraries), str(cluster.ceph.modules)]
    with serve(device, file={"sandbox": {"mode": mode, "readable": places}}) as served:
        yield served


def made(cluster: Cluster, name: str, *options: str, size: int = SIZE) -> str:
    image = f"{POOL}/{name}"
    cluster.rbd("create", image, "--size", f"{size >> 20}M", *options)
    return image


@pytest.mark.parametrize("mode", ["standard", "strict"])
@pytest.mark.parametrize("features", [(), ("--image-feature", "layering")], ids=["all", "plain"])
def test_every_request(cluster: Cluster, mode: str, features: tuple[str, ...]) -> None:
    image = made(cluster, f"requests-{mode}-{len(features)}", *features)
    data = os.urandom(5 * MIB)
    with serving(cluster, image, mode, queues=2) as served:
        with served.guest(queues=2, memory=64 * MIB) as guest:
            disk = Block(guest)
            assert disk.config()["capacity"] == SIZE // SECTOR_SIZE
            disk.write(3, data)
            disk.flush()
            assert disk.read(3, len(data), queue=1) == data
            zeroed = struct.pack("<QII", 3, 8, 0)
            assert disk.request(BlkType.WRITE_ZEROES, 0, [zeroed]).status == BlkStatus.OK
            assert disk.read(3, 8192) == bytes(4096) + data[4096:8192]
            discarded = struct.pack("<QII", 0, 16384, 0)
            assert disk.request(BlkType.DISCARD, 0, [discarded]).status == BlkStatus.OK
        assert not [line for line in served.lines if "WARNING" in line or "ERROR" in line]
    assert "Watchers: none" in cluster.rbd("status", image)


def test_what_a_dead_worker_had_on_its_way_comes_no_more(cluster: Cluster) -> None:
    """Its writes wait in the object store that stands still; it dies, and the next one begins only
    when the cluster takes nothing more of it.
    """
    image = made(cluster, "fenced")
    assert cluster.osd is not None
    with serving(cluster, image) as served, served.guest(memory=64 * MIB) as guest:
        disk = Block(guest)
        disk.write(0, bytes(MIB))
        for turn in range(3):
            mine = bytes([turn + 1]) * MIB
            cluster.osd.send_signal(signal.SIGSTOP)
            token = disk.submit(BlkType.OUT, 0, [mine])
            served.kill_worker()
            served.wait_worker()
            cluster.osd.send_signal(signal.SIGCONT)
            assert guest.wait(token, BOUND_S).data[-1] == bytes([BlkStatus.OK])
            newer = os.urandom(MIB)
            disk.write(0, newer)
            assert disk.read(0, MIB) == newer
        assert not [line for line in served.lines if "could not be shut out" in line]
    blocked = cluster.mon({"prefix": "osd blocklist ls"})
    assert blocked.count("127.0.0.1:0/") >= 3


def test_whoever_is_shut_out_stays_so(cluster: Cluster) -> None:
    image = made(cluster, "out")
    with serving(cluster, image) as served, served.guest() as guest:
        disk = Block(guest)
        disk.write(0, b"x" * 512)
        address = cluster.rbd("status", image).partition("watcher=")[2].split()[0]
        cluster.mon({"prefix": "osd blocklist", "blocklistop": "add", "addr": address})
        deadline = time.monotonic() + BOUND_S
        while disk.request(BlkType.OUT, 0, [bytes(512)]).status == BlkStatus.OK:
            assert time.monotonic() < deadline
        served.wait_for_line("has shut this client out (blocklisted)")
        served.kill_worker()
        served.wait_worker()
        served.wait_for_line("shut this client out")


def test_it_grows_by_a_reload(cluster: Cluster) -> None:
    image = made(cluster, "grows")
    with serving(cluster, image) as served, served.guest(channel=True) as guest:
        disk = Block(guest)
        disk.write(0, b"x" * 512)
        cluster.rbd("resize", image, "--size", "96M")
        lines = served.reload()
        assert any("device.rbd: it is not what it was" in line for line in lines)
        guest.wait_config_change(BOUND_S)
        assert disk.config()["capacity"] == (96 << 20) // SECTOR_SIZE
        disk.write((80 << 20) // SECTOR_SIZE, b"y" * 512)
        assert disk.read((80 << 20) // SECTOR_SIZE, 512) == b"y" * 512


def test_a_snapshot_is_read(cluster: Cluster) -> None:
    image = made(cluster, "snapped")
    with serving(cluster, image) as served, served.guest() as guest:
        Block(guest).write(0, b"before  " * 64)
        cluster.rbd("snap", "create", f"{image}@first")
        Block(guest).write(0, b"after   " * 64)
    with serving(cluster, f"{image}@first", readonly=True) as served, served.guest() as guest:
        assert guest.front_end.features & BlkFeature.RO
        assert Block(guest).read(0, 512) == b"before  " * 64
        assert Block(guest).request(BlkType.OUT, 0, [bytes(512)]).status == BlkStatus.IOERR
    assert "snapshot" in problem_of(cluster, f"{image}@first")


def test_a_namespace_is_a_place_of_its_own(cluster: Cluster) -> None:
    cluster.rbd("namespace", "create", f"{POOL}/tenant")
    image = made(cluster, "tenant/own")
    with serving(cluster, image) as served, served.guest() as guest:
        Block(guest).write(0, b"x" * 512)
    assert "no such file" in problem_of(cluster, f"{POOL}/own")


def test_a_second_writer_waits_for_the_first(cluster: Cluster) -> None:
    image = made(cluster, "locked")
    with serving(cluster, image) as first, first.guest() as guest:
        Block(guest).write(0, b"1" * 512)
        with serving(cluster, image) as second, second.guest() as other:
            token = Block(other).submit(BlkType.IN, 0, in_=[512])
            second.wait_for_line("it is locked by 127.0.0.1")
            Block(guest).write(0, b"2" * 512)
            first.stop()
            found = other.wait(token, BOUND_S).data
            assert (found[0], found[-1]) == (b"2" * 512, bytes([BlkStatus.OK]))


def test_two_vuprocs_take_turns_as_in_a_migration(cluster: Cluster) -> None:
    """Each has the image open, and the lock goes to whoever writes."""
    image = made(cluster, "moves")
    with (
        serving(cluster, image, locking="off") as here,
        serving(cluster, image, locking="off") as there,
        here.guest() as one,
        there.guest() as two,
    ):
        sides = [Block(one), Block(two)]
        for turn in range(4):
            sides[turn % 2].write(turn, bytes([turn + 1]) * SECTOR_SIZE)
            sides[turn % 2].flush()
            found = sides[(turn + 1) % 2].read(0, (turn + 1) * SECTOR_SIZE)
            assert found == b"".join(bytes([n + 1]) * SECTOR_SIZE for n in range(turn + 1))
        for served in (here, there):
            assert not [line for line in served.lines if "WARNING" in line or "ERROR" in line]


def problem_of(cluster: Cluster, image: str, **more: object) -> str:
    path = cluster.folder / "disk.yaml"
    keys = {"rbd": f"'{image}'", "rbd_conf": cluster.conf, **more}
    text = ", ".join(f"{key}: {value}" for key, value in keys.items())
    path.write_text(f"socket: ./disk.sock\ndevice: {{type: blk, {text}}}\n")
    with pytest.raises(ConfigErrors) as caught:
        load(path)
    return str(caught.value)


def test_what_is_wrong_is_said_with_its_place(cluster: Cluster) -> None:
    assert "no such file" in problem_of(cluster, f"{POOL}/absent")
    assert "no pool absent" in problem_of(cluster, "absent/absent")
    assert "no key" in problem_of(cluster, f"{POOL}/absent", rbd_user="nobody")
    assert "ceph.conf" in problem_of(cluster, f"{POOL}/absent", rbd_conf="/absent/ceph.conf")


def test_files_are_right_though_worker_and_store_come_and_go(
    cluster: Cluster, tmp_path: Path
) -> None:
    image = made(cluster, "guest")
    assert cluster.osd is not None
    busy = """
say busy yes
for n in 1 2 3 4 5 6; do { echo $n; cat /tmp/seed; } >/mnt/more$n; sync; done
rm /mnt/more*
"""
    with serving(cluster, image) as served:
        script = WRITE_FILES + busy + "umount /mnt; mount -t ext4 /dev/vda /mnt" + SAY_SUMS
        programs = [clients.mke2fs()]
        devices = {served.socket: DeviceId.BLK}
        with boot_uml(devices, script=f"{script}umount /mnt\n", programs=programs) as guest:
            guest.wait_for("busy=yes")
            served.kill_worker()
            served.wait_worker()
            cluster.osd.send_signal(signal.SIGSTOP)
            served.kill_worker()
            served.wait_worker()
            cluster.osd.send_signal(signal.SIGCONT)
            said = dict(guest.finish().values)
        assert not [line for line in served.lines if "ERROR" in line]
    del said["busy"]
    copy = tmp_path / "copy.raw"
    cluster.rbd("export", image, str(copy))
    check_file_system(copy)
    assert sums_of(copy) == said
