"""QEMU's own front-end, without a guest: each test is the driver, register by register."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.field.events import status, wait_until
from tests.field.test_c4_config_feature import Bare
from tests.guest.disk import BACKEND, Disk
from vuproc.spec.blk import CONFIG, REQUEST_HEADER, SECTOR_SIZE, BlkFeature, BlkStatus, BlkType
from vuproc.spec.virtio import Feature
from vuproc.testing.serve import serve
from vuproc.testing.vms import HaltedQemu, PciQueue, Segment, VhostUserDevice, VirtioPci
from vuproc.testing.vms.qemu import FIRST_SLOT
from vuproc.testing.vms.qtest import FIRST_FREE

EVERYTHING = BlkFeature.MQ | BlkFeature.FLUSH | Feature.INDIRECT_DESC | Feature.EVENT_IDX
BLOCK = 4096
UNSET = 0xFF


class Request:
    """A block request in guest memory: header, data and status."""

    def __init__(
        self, queue: PciQueue, kind: BlkType, sector: int = 0, data: bytes | int = 0
    ) -> None:
        """`data` is what goes out, or the number of bytes that come in."""
        self.machine = queue.machine
        header = self.machine.allocate(REQUEST_HEADER.size)
        self.machine.write(header, REQUEST_HEADER.pack(type=kind, sector=sector))
        self.size = data if isinstance(data, int) else len(data)
        self.data = self.machine.allocate(self.size)
        self.status = self.machine.allocate(1)
        self.machine.write(self.status, bytes([UNSET]))
        self.segments = [Segment(header, REQUEST_HEADER.size)]
        if isinstance(data, bytes):
            self.machine.write(self.data, data)
        if self.size:
            self.segments.append(Segment(self.data, self.size, isinstance(data, int)))
        self.segments.append(Segment(self.status, 1, True))

    def run(self, queue: PciQueue, *, indirect: bool = False) -> int:
        """Submits, kicks, waits for the interrupt; the number of bytes that the device wrote."""
        head = queue.add(self.segments, indirect=indirect)
        queue.notify()
        return queue.wait(1)[head]

    def verdict(self) -> int:
        return self.machine.read(self.status, 1)[0]

    def contents(self) -> bytes:
        return self.machine.read(self.data, self.size)


def attached(served: Disk, queues: int = 2) -> list[VhostUserDevice]:
    return [VhostUserDevice(socket=served.socket, properties={"num-queues": queues})]


def started(machine: HaltedQemu, features: int = EVERYTHING) -> tuple[VirtioPci, list[PciQueue]]:
    device = VirtioPci(machine, FIRST_SLOT)
    device.negotiate(features)
    queues = [device.queue(index) for index in range(device.common("num_queues"))]
    device.start()
    return device, queues


def test_config_space_tells_capacity_and_queues(disk: Callable[..., Disk]) -> None:
    served = disk(queues=2, size=8 << 20)
    with HaltedQemu(attached(served)) as machine:
        device = VirtioPci(machine, FIRST_SLOT)
        device.negotiate(EVERYTHING)
        config = CONFIG.unpack(device.config(0, CONFIG.size))
    assert config["capacity"] * SECTOR_SIZE == 8 << 20
    assert config["num_queues"] == 2


@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize(
    "features", [EVERYTHING, EVERYTHING & ~Feature.EVENT_IDX], ids=["event-idx", "flags"]
)
def test_each_queue_writes_and_reads_back(
    disk: Callable[..., Disk], features: int, indirect: bool
) -> None:
    served = disk(queues=2)
    data = os.urandom(BLOCK)
    with HaltedQemu(attached(served)) as machine:
        _, queues = started(machine, features)
        for queue in queues:
            # More than the ring has entries, so that its indices wrap.
            for turn in range(3):
                at = (queue.index * 3 + turn) * BLOCK // SECTOR_SIZE
                write = Request(queue, BlkType.OUT, at, data)
                assert write.run(queue, indirect=indirect) == 1
                assert write.verdict() == BlkStatus.OK
                read = Request(queue, BlkType.IN, at, BLOCK)
                assert read.run(queue, indirect=indirect) == BLOCK + 1
                assert (read.verdict(), read.contents()) == (BlkStatus.OK, data)
    assert served.image.read_bytes()[: 6 * BLOCK] == data * 6


def test_many_requests_with_one_kick_all_complete(disk: Callable[..., Disk]) -> None:
    served = disk(queues=2)
    with HaltedQemu(attached(served)) as machine:
        _, queues = started(machine)
        requests = {}
        for number in range(40):
            request = Request(queues[1], BlkType.OUT, number, bytes([number]) * SECTOR_SIZE)
            requests[queues[1].add(request.segments)] = request
        queues[1].notify()
        assert queues[1].wait(40) == dict.fromkeys(requests, 1)
        assert {request.verdict() for request in requests.values()} == {BlkStatus.OK}
    wanted = b"".join(bytes([number]) * SECTOR_SIZE for number in range(40))
    assert served.image.read_bytes()[: len(wanted)] == wanted


def test_flush_and_a_request_that_is_unknown(disk: Callable[..., Disk]) -> None:
    served = disk(queues=1)
    with HaltedQemu(attached(served, 1)) as machine:
        _, (queue,) = started(machine)
        flush = Request(queue, BlkType.FLUSH)
        assert (flush.run(queue), flush.verdict()) == (1, BlkStatus.OK)
        unknown = Request(queue, BlkType.SECURE_ERASE)
        assert (unknown.run(queue), unknown.verdict()) == (1, BlkStatus.UNSUPP)


def test_after_a_reset_the_queues_start_again(disk: Callable[..., Disk]) -> None:
    served = disk(queues=2)
    with HaltedQemu(attached(served)) as machine:
        for turn in range(4):
            # Each start negotiates anew and puts the rings elsewhere.
            device, queues = started(machine)
            for queue in queues:
                data = bytes([16 * turn + queue.index]) * BLOCK
                write = Request(queue, BlkType.OUT, 8 * queue.index, data)
                assert (write.run(queue), write.verdict()) == (1, BlkStatus.OK)
            device.reset()
    contents = served.image.read_bytes()
    assert contents[: 2 * BLOCK] == bytes([48]) * BLOCK + bytes([49]) * BLOCK


def test_a_queue_that_the_driver_never_sets_up_does_not_hinder_the_other(
    disk: Callable[..., Disk],
) -> None:
    served = disk(queues=2)
    with HaltedQemu(attached(served)) as machine:
        device = VirtioPci(machine, FIRST_SLOT)
        device.negotiate(EVERYTHING)
        queue = device.queue(0, 16)
        device.start()
        write = Request(queue, BlkType.OUT, 0, b"q" * BLOCK)
        assert (write.run(queue), write.verdict()) == (1, BlkStatus.OK)


@pytest.mark.skipif(BACKEND != "vuproc", reason="QEMU's back-end gives up at a broken ring")
def test_a_broken_ring_leaves_the_other_queue_alive_and_a_reset_revives_it(
    disk: Callable[..., Disk],
) -> None:
    served = disk(queues=2, expected_error="queue 0: ring broken")
    with HaltedQemu(attached(served)) as machine:
        device, (broken, healthy) = started(machine)
        broken.publish(broken.size)  # no such descriptor
        broken.notify()
        write = Request(healthy, BlkType.OUT, 0, b"h" * BLOCK)
        assert (write.run(healthy), write.verdict()) == (1, BlkStatus.OK)
        assert list(broken.completed()) == []
        # Its worker may look a moment later, and a ring that is reset before was never broken.
        wait_until(
            lambda: status(served.socket)["queues"][0]["state"] == "broken", "queue 0 is broken"
        )
        device.reset()
        _, (revived, _) = started(machine)
        read = Request(revived, BlkType.IN, 0, BLOCK)
        assert (read.run(revived), read.contents()) == (BLOCK + 1, b"h" * BLOCK)


def test_a_vmm_killed_with_requests_in_its_rings_is_followed_by_another(
    disk: Callable[..., Disk],
) -> None:
    served = disk(queues=2)
    for turn in range(3):
        with HaltedQemu(attached(served)) as machine:
            _, queues = started(machine)
            write = Request(queues[0], BlkType.OUT, 0, bytes([turn]) * BLOCK)
            assert (write.run(queues[0]), write.verdict()) == (1, BlkStatus.OK)
            for number in range(20):
                late = Request(queues[1], BlkType.OUT, 8 + 8 * number, b"l" * BLOCK)
                queues[1].add(late.segments)
            queues[1].notify()
            machine.kill()
    with HaltedQemu(attached(served)) as machine:
        _, queues = started(machine)
        read = Request(queues[1], BlkType.IN, 0, BLOCK)
        assert (read.run(queues[1]), read.contents()) == (BLOCK + 1, bytes([2]) * BLOCK)


def test_c4_qemu_has_nothing_to_say_of_a_device_without_configuration_space() -> None:
    with serve(Bare) as served:
        devices = [VhostUserDevice(socket=served.socket, driver="vhost-user-rng-pci")]
        with HaltedQemu(devices) as machine:
            # It answers once all devices are made, and what it thinks of them is printed by then.
            machine.read(FIRST_FREE, 1)
            machine.process.take_in()
            assert machine.process.lines == []
