"""Devices on the memory of a Xen domain: its frames, and pages that it has granted."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.xen import privileged, stand_in
from tests.xen.domain import GrantedRam, Hypervisor, XenRegion
from tests.xen.seer import Seer
from vuproc.spec.blk import BlkType
from vuproc.spec.vhost_user import ProtocolFeature, XenFlag
from vuproc.testing import Served, serve
from vuproc.testing.block import Block, outcome
from vuproc.testing.errors import Refused
from vuproc.testing.guest import Guest

pytestmark = pytest.mark.timeout(120)

SIZE = 4 << 20
BLOCK = 12 << 10
ON_DEMAND = XenFlag.NO_ADVANCE
FILE = {"xen": "on"}


@pytest.fixture(scope="module")
def hypervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hypervisor]:
    """That which is here; else the stand-in, which whatever is started from here on finds."""
    if privileged.is_here():
        with closing(privileged.Domain()) as domain:
            yield domain
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(stand_in.build(tmp_path_factory.mktemp("xen"))))
        yield stand_in.StandIn()


@contextmanager
def disk(folder: Path, engine: str = "auto") -> Iterator[Served]:
    image = folder / "disk.raw"
    image.write_bytes(random.Random(1).randbytes(SIZE))
    with serve({"type": "blk", "image": str(image), "engine": engine}, file=FILE) as served:
        yield served


@contextmanager
def granting(served: Served, ram: GrantedRam, *, packed: bool = False) -> Iterator[Guest]:
    """A guest whose requests lie in another region than its rings."""
    with served.guest(memory=ram, packed=packed) as guest:
        ram.rings_are_made = True
        yield guest


def use(guest: Guest, image: Path) -> None:
    """Read and write, and compare."""
    block, content = Block(guest), image.read_bytes()
    for place in range(0, SIZE // 2, 64 << 10):
        assert block.read(place // 512, BLOCK) == content[place : place + BLOCK]
    data = os.urandom(BLOCK)
    block.write(SIZE // 1024, data)
    assert image.read_bytes()[SIZE // 2 :][:BLOCK] == data


@pytest.mark.proves("PROTOCOL_F_XEN_MMAP", front_end="built-in")
@pytest.mark.parametrize("engine", ["map", "sync", "io_uring", "python"])
def test_a_domain_is_served_by_its_frames(
    tmp_path: Path, hypervisor: Hypervisor, engine: str
) -> None:
    ram = hypervisor.foreign()
    with disk(tmp_path, engine) as served, served.guest(memory=ram) as guest:
        assert guest.front_end.protocol_features & ProtocolFeature.XEN_MMAP
        use(guest, tmp_path / "disk.raw")
        pid = served.kill_worker()
        served.wait_worker(other_than=pid)
        use(guest, tmp_path / "disk.raw")


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("engine", ["map", "sync", "io_uring", "python"])
@pytest.mark.parametrize("flag", [0, ON_DEMAND], ids=["in advance", "on demand"])
def test_a_domain_is_served_by_its_grants(
    tmp_path: Path, hypervisor: Hypervisor, engine: str, flag: int, packed: bool
) -> None:
    ram = hypervisor.granted(flag)
    with disk(tmp_path, engine) as served, granting(served, ram, packed=packed) as guest:
        use(guest, tmp_path / "disk.raw")
        if flag:
            assert ram.mapped() == ram.rings
        served.wait_worker(other_than=served.kill_worker())
        use(guest, tmp_path / "disk.raw")


def test_what_a_device_only_reads_is_mapped_for_just_that(
    tmp_path: Path, hypervisor: Hypervisor
) -> None:
    ram = hypervisor.granted(ON_DEMAND, read_only=True)
    with disk(tmp_path) as served, granting(served, ram) as guest:
        # Its status cannot be written: the ring breaks, and nothing else does.
        Block(guest).submit(BlkType.IN, 0, in_=[512])
        served.wait_for_line("the grants of a buffer cannot be mapped")
        assert ram.mapped() == ram.rings
    ram = hypervisor.granted(ON_DEMAND, read_only=True)
    with serve(Seer, file=FILE) as served, granting(served, ram) as guest:
        assert guest.do(out=[b"read"]).written == 0


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_handler_has_views_of_it_and_a_slice_outlives_its_request(
    hypervisor: Hypervisor, packed: bool
) -> None:
    ram = hypervisor.granted(ON_DEMAND)
    with serve(Seer, file=FILE) as served, granting(served, ram, packed=packed) as guest:
        assert guest.do(out=[b"one ", b"two"], in_=[64]).content == b"one two"
        # The kept slice has its page mapped still, and nobody dies of it.
        assert len(ram.mapped()) == len(ram.rings) + 1
        answer = guest.do(out=[b"three"], in_=[64]).content
        assert answer[4:] == b"three"
        assert served.status().queues[0].restarts == 0


def test_a_worker_that_dies_in_a_request_maps_its_buffers_anew(
    tmp_path: Path, hypervisor: Hypervisor
) -> None:
    ram = hypervisor.granted(ON_DEMAND)
    with disk(tmp_path, "python") as served, granting(served, ram) as guest:
        block = Block(guest)
        data = {n: os.urandom(BLOCK) for n in range(0, SIZE // 2, 8 * BLOCK)}
        tokens = [block.submit(BlkType.OUT, n // 512, [content]) for n, content in data.items()]
        served.kill_worker()
        for token in tokens:
            assert outcome(guest.wait(token)).status == 0
    image = (tmp_path / "disk.raw").read_bytes()
    for place, content in data.items():
        assert image[place : place + BLOCK] == content


def test_memory_that_is_not_there_is_refused_with_its_reason(
    tmp_path: Path, hypervisor: Hypervisor
) -> None:
    with disk(tmp_path) as served, served.connect() as front_end:
        front_end.negotiate()
        ram = hypervisor.foreign()
        region = ram.regions[0]
        assert isinstance(region, XenRegion)
        try:
            region.domain = hypervisor.absent
            with pytest.raises(Refused):
                front_end.set_memory(ram.regions)
            served.wait_for_line(f"domain {hypervisor.absent}: no such process")
            region.domain, region.size = hypervisor.domain, region.size + 4096
            with pytest.raises(Refused):
                front_end.set_memory(ram.regions)
            # Of frames that are not the domain's; busy, says Linux 6.1 under Xen 4.17.
            line = served.wait_for_line(f"domain {hypervisor.domain}: ")
            assert line.endswith(("invalid argument", "device or resource busy"))
        finally:
            ram.close()


def test_it_is_not_offered_unless_asked_for(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(SIZE))
    with serve({"type": "blk", "image": str(image)}) as served, served.connect() as front_end:
        front_end.negotiate()
        assert not front_end.protocol_features & ProtocolFeature.XEN_MMAP
