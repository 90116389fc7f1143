"""What real front-ends do, each in its way, and all of which must work."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from tests.conformance import processes
from tests.conformance.checks import BROKEN_WITHIN_S, SECTOR, serves_newcomer, works
from vuproc.fd import Fd
from vuproc.spec.blk import CONFIG
from vuproc.spec.vhost_user import VRING_NO_FD, ProtocolFeature
from vuproc.spec.virtio import Feature
from vuproc.testing.bell import Bell, BellKind
from vuproc.testing.block import Block
from vuproc.testing.frontend import FrontEnd
from vuproc.testing.guest import Guest
from vuproc.testing.job import Job
from vuproc.testing.memory import Ram, RamRegion
from vuproc.testing.serve import Served

MIB = 1 << 20
EVERYTHING = ~0


class ByteByByte(FrontEnd):
    """Sends its messages a byte at a time, each with a system call of its own."""

    def send(self, data: bytes, fds: Sequence[Fd] = ()) -> None:
        super().send(data[:1], fds)
        for at in range(1, len(data)):
            super().send(data[at : at + 1])


@pytest.mark.proves("SET_MEM_TABLE", front_end="built-in")
@pytest.mark.parametrize("padding", [32, 64, 1000])
def test_memory_table_padded_past_its_regions(disk: Served, padding: int) -> None:
    """User-Mode Linux always sends room for two regions: 72 bytes."""
    with disk.guest(queues=2) as guest:
        guest.front_end.set_memory(guest.ram.regions, padding=padding)
        works(guest)


@pytest.mark.parametrize("with_fd", [False, True])
def test_region_removed_with_and_without_a_descriptor(disk: Served, with_fd: bool) -> None:
    """libblkio and older front-ends attach one."""
    with disk.guest(queues=2) as guest, RamRegion(1 << 40, MIB) as region:
        before = processes.family(disk.pid)
        for _ in range(10):
            guest.front_end.add_region(region)
            guest.front_end.remove_region(region, with_fd=with_fd)
        works(guest)
        assert processes.family(disk.pid) == before


@pytest.mark.parametrize("call", BellKind)
@pytest.mark.parametrize("kick", BellKind)
def test_kick_and_call_of_any_kind(disk: Served, call: BellKind, kick: BellKind) -> None:
    with disk.guest(queues=2, call=call, kick=kick) as guest:
        works(guest)
        stats = guest.load(1, Job(count=300, depth=4, block_size=512, span=MIB))
        assert (stats.completed, stats.failed) == (300, 0)


def test_kick_without_a_descriptor_is_polled(disk: Served) -> None:
    with disk.guest(queues=2, kick=None) as guest:
        works(guest)
        stats = guest.load(0, Job(count=2000, depth=8, block_size=512, span=MIB))
        assert (stats.completed, stats.kicks) == (2000, 0)


def test_kick_descriptor_taken_away_and_given_back_while_the_ring_runs(disk: Served) -> None:
    with disk.guest(queues=1) as guest:
        queue = guest.queues[0]
        guest.front_end.request("SET_VRING_KICK", value=0 | VRING_NO_FD)
        token = queue.submit([Block.header(0)], [512, 1], kick=False)
        assert queue.wait(token).data[1] == b"\0"
        guest.kick_queue(queue)
        works(guest)


@pytest.mark.proves(
    "SET_VRING_NUM",
    "SET_VRING_BASE",
    "SET_VRING_ADDR",
    "SET_VRING_KICK",
    "SET_VRING_ENABLE",
    front_end="built-in",
)
def test_no_call_descriptor_at_all(disk: Served) -> None:
    """A driver that polls; CALL is never sent."""
    with disk.guest(start=False) as guest:
        guest.setup()
        queue = guest.make_queue(0)
        request = guest.front_end.request
        request("SET_VRING_NUM", index=0, num=queue.size)
        request("SET_VRING_BASE", index=0, num=0)
        request("SET_VRING_ADDR", index=0, desc=queue.desc, avail=queue.avail, used=queue.used)
        guest.kick_queue(queue)
        guest.enable_queue(0)
        stats = guest.load(0, Job(count=2000, depth=8, block_size=512, span=MIB, poll=True))
        assert stats.completed == 2000


@pytest.mark.proves(
    "ADD_MEM_REG", "REM_MEM_REG", "PROTOCOL_F_CONFIGURE_MEM_SLOTS", front_end="built-in"
)
def test_memory_added_and_removed_while_queues_run(disk: Served) -> None:
    """libblkio adds a region when it meets a new buffer, whatever the queues are doing."""
    with disk.guest(queues=2) as guest:
        failures: list[BaseException] = []
        results = []

        def load(queue: int) -> None:
            try:
                job = Job(count=30_000, depth=16, block_size=512, span=MIB)
                results.append(guest.load(queue, job))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=load, args=(queue,)) for queue in (0, 1)]
        for thread in threads:
            thread.start()
        rounds = 0
        while any(thread.is_alive() for thread in threads):
            with RamRegion(1 << 40, MIB) as region:
                guest.front_end.add_region(region)
                guest.front_end.remove_region(region)
            rounds += 1
        for thread in threads:
            thread.join()
        assert not failures
        assert [(stats.completed, stats.failed) for stats in results] == [(30_000, 0)] * 2
        assert rounds > 1


def test_data_in_memory_that_was_added_later(disk: Served) -> None:
    with disk.guest(queues=2, memory=Ram([RamRegion(MIB, 64 << 10)])) as guest:
        guest.add_memory(RamRegion(1 << 32, MIB))
        block = Block(guest)
        content = bytes(range(256)) * 512
        for queue in (0, 1):
            block.write(100, content, queue=queue)
            assert block.read(100, len(content), queue=queue) == content


@pytest.mark.proves("GET_CONFIG", "PROTOCOL_F_CONFIG", front_end="built-in")
def test_config_space_in_every_size(disk: Served) -> None:
    with disk.guest() as guest:
        whole = guest.front_end.get_config(0, 256)
        assert CONFIG.unpack(whole)["capacity"] * SECTOR == 16 * MIB
        for size in range(1, 257):
            assert guest.front_end.get_config(0, size) == whole[:size]
        for offset in range(64):
            assert guest.front_end.get_config(offset, 1) == whole[offset : offset + 1]


def test_messages_a_byte_at_a_time(disk: Served) -> None:
    with disk.guest(start=False) as guest:
        guest.front_end.close()
        guest.front_end = ByteByByte(disk.socket)
        guest.setup()
        for index in range(2):
            guest.start_queue(index)
        works(guest)
        assert len(guest.front_end.get_config(0, 60)) == 60


def test_many_messages_in_one_write(disk: Served) -> None:
    with disk.connect() as front_end:
        front_end.send(b"".join(bytes((1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0)) for _ in range(500)))
        values = {front_end.receive().payload for _ in range(500)}
        assert len(values) == 1


def test_no_acknowledgements_negotiated(disk: Served) -> None:
    """Then GET_FEATURES is the barrier: everything before it has happened when it is answered."""
    with disk.guest(
        queues=2, protocol_features=ProtocolFeature.MQ | ProtocolFeature.CONFIG
    ) as guest:
        guest.front_end.request("GET_FEATURES")
        works(guest)


def test_front_end_without_protocol_features(disk: Served) -> None:
    """All rings are enabled from SET_FEATURES on, and SET_VRING_ENABLE never comes."""
    with disk.guest(start=False) as guest:
        offered = guest.front_end.request("GET_FEATURES")["value"]
        guest.front_end.request("SET_OWNER")
        guest.front_end.set_features(offered & ~(Feature.PROTOCOL_FEATURES | Feature.RING_PACKED))
        guest.front_end.set_memory(guest.ram.regions)
        for index in range(2):
            queue = guest.make_queue(index)
            guest.configure_queue(queue)
            guest.kick_queue(queue)
        works(guest)
        assert guest.stop_queue(0) == guest.queues[0].ring.position


def test_call_descriptors_for_all_queues_twice_before_the_features(disk: Served) -> None:
    """QEMU and DPDK; most of the queues are then never used."""
    with disk.guest(start=False) as guest:
        before = _eventfds(disk)
        for _ in range(2):
            for index in range(4):
                with_call = Bell()
                guest.front_end.request("SET_VRING_CALL", [with_call.theirs], value=index)
                with_call.close()
        guest.setup()
        guest.front_end.set_features(guest.front_end.features)
        guest.start_queue(0)
        works(guest)
        # Four call descriptors, and the kick and error descriptors of what is set up. Nothing else
        # is counted: what the connection itself takes may have come before or after.
        assert _eventfds(disk) <= before + 6


@pytest.mark.proves("SET_VRING_ERR", front_end="built-in")
def test_error_descriptor_is_kept_over_ring_restarts(disk: Served) -> None:
    """QEMU sends it once, when it realizes the device."""
    with disk.guest(queues=2) as guest:
        first = guest.queues[0].err_bell
        guest.stop_queue(0)
        queue = guest.queues[0]
        request = guest.front_end.request
        base = queue.ring.position
        request("SET_VRING_NUM", index=0, num=queue.size)
        request("SET_VRING_BASE", index=0, num=base)
        request("SET_VRING_ADDR", index=0, desc=queue.desc, avail=queue.avail, used=queue.used)
        request("SET_VRING_CALL", [queue.call_bell.theirs], value=0)
        guest.kick_queue(queue)
        works(guest)
        queue.split.offer_head(0xFFFF)
        queue.ring.publish()
        queue.kick()
        assert first.wait(BROKEN_WITHIN_S)


def test_qemu_pauses_and_resumes_a_guest(disk: Served) -> None:
    """Status 0 first, then the bases; on resume all again from there, with the same features."""
    with disk.guest(queues=2) as guest:
        works(guest)
        for _ in range(3):
            guest.set_status(0)
            for index in range(2):
                guest.enable_queue(index, False)
            bases = [guest.stop_queue(index) for index in range(2)]
            assert bases == [guest.queues[index].ring.position for index in range(2)]
            guest.front_end.set_features(guest.front_end.features)
            guest.set_status(0xB)
            guest.front_end.set_memory(guest.ram.regions)
            for index, base in enumerate(bases):
                _resume(guest, index, base)
            guest.set_status(0xF)
            works(guest)


def test_cloud_hypervisor_enables_last_and_opens_its_channel_then(disk: Served) -> None:
    with disk.guest(start=False) as guest:
        guest.setup()
        queues = [guest.make_queue(index) for index in range(4)]
        for queue in queues:
            guest.front_end.request("SET_VRING_NUM", index=queue.index, num=queue.size)
        for queue in queues:
            guest.configure_queue(queue)
            guest.kick_queue(queue)
        for queue in queues:
            guest.enable_queue(queue.index)
        guest.front_end.open_channel()
        works(guest)
        for queue in queues:
            guest.enable_queue(queue.index, False)
            guest.stop_queue(queue.index)


@pytest.mark.proves(
    "SET_PROTOCOL_FEATURES", "SET_OWNER", "GET_FEATURES", "SET_FEATURES", front_end="built-in"
)
def test_protocol_features_set_without_asking(disk: Served) -> None:
    """Cloud Hypervisor, after a migration, knows what it had."""
    with disk.guest(start=False) as guest:
        guest.front_end.set_protocol_features(
            ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIG | ProtocolFeature.MQ
        )
        guest.front_end.request("SET_OWNER")
        guest.front_end.set_features(guest.front_end.request("GET_FEATURES")["value"])
        guest.front_end.set_memory(guest.ram.regions)
        guest.start_queue(0)
        works(guest)


def test_dpdk_takes_few_features_and_polls(disk: Served) -> None:
    with disk.guest(
        queues=2,
        without=Feature.EVENT_IDX | Feature.INDIRECT_DESC,
        protocol_features=ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.STATUS,
    ) as guest:
        for queue in (0, 1):
            stats = guest.load(
                queue,
                Job(count=5000, depth=32, block_size=512, span=MIB, poll=True, indirect=False),
            )
            assert (stats.completed, stats.failed) == (5000, 0)


def test_qemu_user_addresses_that_equal_guest_addresses(disk: Served) -> None:
    with disk.guest(queues=2, memory=Ram([RamRegion(MIB, MIB, user_addr=MIB)])) as guest:
        works(guest)


def test_user_mode_linux_memory_begins_in_the_middle_of_its_file(disk: Served) -> None:
    region = RamRegion(0xC4F000, 8 * MIB, user_addr=0x60000000, mmap_offset=0xC4F000)
    with disk.guest(queues=1, memory=Ram([region]), call=BellKind.SOCKET) as guest:
        guest.front_end.open_channel()
        works(guest)


def test_content_is_there_for_the_next_front_end(disk: Served) -> None:
    """The VMM may vanish; the back-end and its listener stay."""
    content = bytes(range(256)) * 16
    for _ in range(3):
        with disk.guest(queues=2) as guest:
            Block(guest).write(64, content)
        with disk.guest(queues=2) as guest:
            assert Block(guest).read(64, len(content), queue=1) == content


def test_ring_restarted_with_another_size(disk: Served) -> None:
    """Firmware uses a small ring, the kernel after it a large one."""
    with disk.guest(queues=1, queue_size=16) as guest:
        works(guest)
        for size in (256, 2, 64):
            guest.stop_queue(0)
            guest.start_queue(0, size=size)
            assert Block(guest).request(4, indirect=True).status == 0
    serves_newcomer(disk)


def _resume(guest: Guest, index: int, base: int) -> None:
    """Tell of a ring that the driver never touched, to go on at `base`."""
    queue = guest.queues[index]
    queue.base = base
    fields: dict[str, Any] = {"desc": queue.desc, "avail": queue.avail, "used": queue.used}
    guest.front_end.request("SET_VRING_NUM", index=index, num=queue.size)
    guest.front_end.request("SET_VRING_BASE", index=index, num=base)
    guest.front_end.request("SET_VRING_ADDR", index=index, **fields)
    guest.front_end.request("SET_VRING_CALL", [queue.call_bell.theirs], value=index)
    guest.kick_queue(queue)
    guest.enable_queue(index)


def _eventfds(disk: Served) -> int:
    return processes.files_of(disk.pid)["anon_inode:[eventfd]"]
