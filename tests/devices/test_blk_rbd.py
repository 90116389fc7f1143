"""A disk that a Ceph cluster has, with a stand-in for Ceph's modules (`ceph_stand_in`).
`tests/guest/test_ceph.py` has a real cluster.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.devices.ceph_folder import SIZE, Cluster, made, until
from tests.devices.test_blk import ranges
from vuproc.devices.blk import BlkOptions
from vuproc.devices.rbd_name import RbdName
from vuproc.spec.blk import DISCARD_F_UNMAP, SECTOR_SIZE, BlkFeature, BlkStatus, BlkType
from vuproc.spec.virtio import Feature
from vuproc.testing.block import Block
from vuproc.testing.guest import Guest
from vuproc.testing.plugin import ServeDevice
from vuproc.testing.serve import Served

OK = bytes([BlkStatus.OK])


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return made(tmp_path, monkeypatch)


def problems(image: str, **options: Any) -> list[tuple[str, str]]:
    return list(BlkOptions(rbd=image, **options).problems())


def test_requests_are_calls_and_errors_are_the_requests(
    vuproc_device: ServeDevice, cluster: Cluster
) -> None:
    data = os.urandom(9 << 20)
    served = vuproc_device(cluster.device(queues=2), file=cluster.sandbox)
    with served.guest(queues=2, memory=64 << 20) as guest:
        offered = guest.front_end.features
        assert not offered & Feature.IN_ORDER
        assert offered & BlkFeature.DISCARD and offered & BlkFeature.WRITE_ZEROES
        disk = Block(guest)
        assert disk.config()["capacity"] == SIZE // SECTOR_SIZE
        disk.write(7, data)
        assert disk.read(7, len(data), queue=1) == data
        disk.flush()
        assert disk.request(BlkType.DISCARD, 0, [ranges((0, 8, 0), (16, 8, 0))]).status == 0
        zeroes = [ranges((32, 4, 0), (40, 4, DISCARD_F_UNMAP))]
        assert disk.request(BlkType.WRITE_ZEROES, 0, zeroes).status == 0
        calls = cluster.calls()
        errors_are_named(guest, served, cluster)
    start, piece = 7 * SECTOR_SIZE, 4 << 20
    pieces = [f"{start + at} {min(piece, len(data) - at)}" for at in range(0, len(data), piece)]
    assert calls == [
        *(f"write {one}" for one in pieces),
        *(f"read {one}" for one in pieces),
        "flush",
        "discard 0 4096",
        "discard 8192 4096",
        "zero 16384 2048 1",
        "zero 20480 2048 0",
    ]


def errors_are_named(guest: Guest, served: Served, cluster: Cluster) -> None:
    disk = Block(guest)
    for number, kind in enumerate(("read", "write", "flush")):
        error = (errno.EDQUOT, errno.ENOSPC, errno.EROFS)[number]
        (cluster.folder / "errors").write_text(f"{kind} {error}\n")
        done = {
            "read": disk.request(BlkType.IN, 0, in_=[512]).status,
            "write": disk.request(BlkType.OUT, 0, [bytes(512)]).status,
            "flush": disk.request(BlkType.FLUSH, 0).status,
        }
        assert {which for which, status in done.items() if status} == {kind}
        assert done[kind] == BlkStatus.IOERR
        served.wait_for_line(errno.errorcode[error])


def test_whoever_follows_a_dead_worker_has_it_shut_out_first(
    vuproc_device: ServeDevice, cluster: Cluster
) -> None:
    served = vuproc_device(cluster.device(), file=cluster.sandbox)
    with served.guest() as guest:
        disk = Block(guest)
        disk.write(0, b"1" * 512)
        first = cluster.image.with_name("disk.lock").read_text()
        (cluster.folder / "hold").touch()
        token = disk.submit(BlkType.OUT, 8, [b"2" * 512])
        until(lambda: cluster.calls()[-1] == "write 4096 512")
        served.kill_worker()
        served.wait_worker()
        (cluster.folder / "hold").unlink()
        assert guest.wait(token).data[-1] == OK
        assert (cluster.folder / "blocklist").read_text() == f"{first}\n"
        assert cluster.calls().count("write 4096 512") == 2
    served.stop()
    # An orderly end leaves nobody to be shut out, and no lock.
    assert not cluster.image.with_name("disk.lock").exists()
    assert cluster.calls()[-1] == "close"


def test_it_grows_by_a_reload(vuproc_device: ServeDevice, cluster: Cluster) -> None:
    served = vuproc_device(cluster.device(), file=cluster.sandbox)
    with served.guest(channel=True) as guest:
        os.truncate(cluster.image, 2 * SIZE)
        assert any("device.rbd: it is not what it was" in line for line in served.reload())
        guest.wait_config_change()
        disk = Block(guest)
        assert disk.config()["capacity"] == 2 * SIZE // SECTOR_SIZE
        disk.write(SIZE // SECTOR_SIZE, b"x" * 512)


def test_what_is_wrong_is_said(cluster: Cluster) -> None:
    conf = {"rbd_conf": str(cluster.conf)}
    (cluster.folder / "pool" / "disk@snap").write_bytes(bytes(512))
    assert problems("pool/disk", **conf) == []
    assert problems("pool/disk@snap", readonly=True, **conf) == []
    for image, more, text in (
        ("disk", {}, "disk: it is POOL/[NAMESPACE/]IMAGE[@SNAPSHOT]"),
        ("pool/absent", {}, "error opening image absent"),
        ("pool/tenant/disk", {}, "rbd pool/tenant/disk: error opening image disk"),
        ("absent/disk", {}, "no pool absent"),
        ("pool/disk", {"rbd_user": "nobody"}, "no key"),
        ("pool/disk@snap", {}, "is a snapshot; set readonly: true"),
    ):
        ((option, said),) = problems(image, **conf, **more)
        assert option == "rbd" and text in said, said
    ((_, said),) = problems("pool/disk", rbd_conf="/absent/ceph.conf")
    assert said.startswith("rbd pool/disk: /absent/ceph.conf: ")
    assert ("rbd_user", "rbd_user is for rbd") in list(BlkOptions(ram=512, rbd_user="x").problems())
    assert ("engine", "io_uring is for an image, not for what a server has") in problems(
        "pool/disk", engine="io_uring", **conf
    )


def test_without_cephs_modules_it_says_where_they_are() -> None:
    program = (
        "from vuproc.devices import rbd_binding\n"
        "rbd_binding.FOLDERS = ()\n"
        "try: rbd_binding.load()\n"
        "except rbd_binding.RbdUnavailable as error: print(error)\n"
    )
    said = subprocess.check_output([sys.executable, "-P", "-c", program], text=True)
    assert "there is no module rados here" in said and "python3-rbd" in said


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("pool/disk", RbdName("pool", "disk")),
        ("pool/ns/disk@snap", RbdName("pool", "disk", "ns", "snap")),
        ("a b/c:d", RbdName("a b", "c:d")),
    ],
)
def test_names(text: str, name: RbdName) -> None:
    assert RbdName.of(text) == name
    assert str(name) == f"rbd {text}"


@pytest.mark.parametrize("text", ["", "disk", "/disk", "pool/", "a/b/c/d", "pool/disk@", "p/d@a@b"])
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="POOL"):
        RbdName.of(text)
