"""A cluster that is away, answers late, or takes nothing more of its client; with the stand-in for
Ceph's modules. Of the long form.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.devices.ceph_folder import Cluster, made, until
from tests.devices.test_blk_nbd import resume
from vuproc.spec.blk import BlkStatus, BlkType
from vuproc.testing.block import Block
from vuproc.testing.plugin import ServeDevice

OK = bytes([BlkStatus.OK])


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return made(tmp_path, monkeypatch)


def test_whoever_is_shut_out_stays_so(vuproc_device: ServeDevice, cluster: Cluster) -> None:
    served = vuproc_device(cluster.device(), file=cluster.sandbox)
    with served.guest() as guest:
        disk = Block(guest)
        disk.write(0, bytes(512))
        ours = cluster.image.with_name("disk.lock").read_text()
        (cluster.folder / "blocklist").write_text(f"{ours}\n")
        assert disk.request(BlkType.OUT, 0, [bytes(512)]).status == BlkStatus.IOERR
        served.wait_for_line("has shut this client out (blocklisted)")
        served.kill_worker()
        served.wait_worker()
        # The next one does not so much as open the image.
        served.wait_for_line("is not open: the cluster has shut this client out")
        assert cluster.calls() == ["write 0 512"] * 2


def test_a_ring_that_stops_gives_back_and_nothing_overtakes(
    vuproc_device: ServeDevice, cluster: Cluster
) -> None:
    """What is under way when the ring stops is done before what comes after it."""
    served = vuproc_device(cluster.device(), file=cluster.sandbox)
    with served.guest() as guest:
        disk = Block(guest)
        disk.write(0, bytes(512))
        (cluster.folder / "hold").touch()
        token = disk.submit(BlkType.OUT, 0, [b"1" * 512])
        until(lambda: len(cluster.calls()) == 2)
        resume(guest, guest.stop_queue(0))
        (cluster.folder / "hold").unlink()
        assert guest.wait(token).data[-1] == OK
        assert cluster.calls()[1:] == ["write 0 512"] * 2


def test_a_cluster_that_is_away_is_asked_again(
    vuproc_device: ServeDevice, cluster: Cluster
) -> None:
    served = vuproc_device(cluster.device(), file=cluster.sandbox)
    (cluster.folder / "refuse").write_text("error connecting to the cluster")
    with served.guest() as guest:
        disk = Block(guest)
        token = disk.submit(BlkType.OUT, 0, [bytes(512)])
        served.wait_for_line("error connecting to the cluster")
        (cluster.folder / "refuse").unlink()
        assert guest.wait(token).data[-1] == OK
        served.wait_for_line("open again")


HASTY = """
from vuproc.devices import rbd_link
from vuproc.devices.blk import Blk as Hasty
rbd_link.PATIENCE_S = 0.3
"""


def test_no_guest_waits_for_ever(
    vuproc_device: ServeDevice, cluster: Cluster, tmp_path: Path
) -> None:
    """Neither for an image that does not open nor for calls that do not end."""
    (tmp_path / "hasty.py").write_text(HASTY)
    device = {**cluster.device(), "type": f"{tmp_path}/hasty.py:Hasty"}
    served = vuproc_device(device, file=cluster.sandbox)
    (cluster.folder / "hang").touch()
    with served.guest() as guest:
        disk = Block(guest)
        for _ in range(2):
            assert disk.request(BlkType.OUT, 0, [bytes(512)]).status == BlkStatus.IOERR
        (cluster.folder / "hang").unlink()
        until(lambda: disk.request(BlkType.OUT, 0, [bytes(512)]).status == BlkStatus.OK)
        # One that the ring's stop has given up, and those that come after it.
        before = len(cluster.calls())
        (cluster.folder / "hold").touch()
        token = disk.submit(BlkType.OUT, 0, [b"1" * 512])
        until(lambda: len(cluster.calls()) == before + 1)
        resume(guest, guest.stop_queue(0))
        assert guest.wait(token).data[-1] == bytes([BlkStatus.IOERR])
        assert len(cluster.calls()) == before + 1
        (cluster.folder / "hold").unlink()
        until(lambda: disk.request(BlkType.OUT, 0, [bytes(512)]).status == BlkStatus.OK)


def test_a_user_who_may_not_shut_others_out_is_told(
    vuproc_device: ServeDevice, cluster: Cluster
) -> None:
    (cluster.folder / "not-yours").touch()
    served = vuproc_device(cluster.device(locking="off"), file=cluster.sandbox)
    with served.guest() as guest:
        disk = Block(guest)
        disk.write(0, bytes(512))
        served.kill_worker()
        served.wait_worker()
        disk.write(0, bytes(512))
        served.wait_for_line("could not be shut out, which this user may not do")


def test_who_cannot_open_the_image_leaves_nobody_to_shut_out(
    vuproc_device: ServeDevice, cluster: Cluster
) -> None:
    """One attempt after the other must not fill the cluster's list."""
    served = vuproc_device(cluster.device(), file=cluster.sandbox)
    lock = cluster.image.with_name("disk.lock")
    lock.write_text("127.0.0.1:0/1")
    with served.guest() as guest:
        disk = Block(guest)
        token = disk.submit(BlkType.OUT, 0, [bytes(512)])
        served.wait_for_line("it is locked by 127.0.0.1:0/1")
        until(lambda: cluster.calls().count("close") >= 2)
        lock.unlink()
        assert guest.wait(token).data[-1] == OK
        assert not (cluster.folder / "blocklist").exists()
