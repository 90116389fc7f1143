"""libblkio, a virtio-blk driver in a library, on a served disk."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable

import pytest

from tests.guest.disk import Disk
from vuproc.testing.vms import Blkio

KIB = 1024
MIB = 1024 * KIB
BLOCK = 4 * KIB
DEPTH = 32


def test_the_disk_has_the_size_of_its_image(disk: Callable[..., Disk]) -> None:
    served = disk(queues=2, size=48 * MIB)
    with Blkio(served.socket, queues=2) as blkio:
        assert blkio.capacity == 48 * MIB
        assert blkio.number("max-queues") == 2


def test_two_queues_write_at_once_and_each_reads_what_the_other_wrote(
    disk: Callable[..., Disk],
) -> None:
    served = disk(queues=2)
    half = 4 * MIB
    data = os.urandom(2 * half)
    with Blkio(served.socket, queues=2) as blkio:
        memory = blkio.allocate(2 * len(data))
        memory.view(0, len(data))[:] = data
        for start in range(0, half, DEPTH * BLOCK):
            for number, queue in enumerate(blkio.queues):
                for at in range(
                    start + number * half, start + number * half + DEPTH * BLOCK, BLOCK
                ):
                    queue.write(at, memory, at, BLOCK, at + 1)
                queue.submit()
            for queue in blkio.queues:
                assert set(queue.wait(DEPTH).values()) == {0}
        for number, queue in enumerate(blkio.queues):
            queue.flush()
            assert queue.wait() == {0: 0}
            other = (1 - number) * half
            queue.read(other, memory, len(data) + other, half)
        for queue in blkio.queues:
            assert queue.wait() == {0: 0}
        assert hashlib.sha256(memory.view(len(data))).digest() == hashlib.sha256(data).digest()
        blkio.free(memory)
    assert served.image.read_bytes()[: len(data)] == data


@pytest.mark.parametrize("operation", ["write_zeroes", "discard"])
def test_a_range_given_up_reads_as_zeros(disk: Callable[..., Disk], operation: str) -> None:
    served = disk(queues=1)
    with Blkio(served.socket) as blkio:
        memory = blkio.allocate(MIB)
        memory.view()[:] = b"x" * MIB
        (queue,) = blkio.queues
        queue.write(0, memory, 0, MIB)
        assert queue.wait() == {0: 0}
        getattr(queue, operation)(64 * KIB, 128 * KIB)
        assert queue.wait() == {0: 0}
    contents = served.image.read_bytes()
    assert contents[: 64 * KIB] == b"x" * (64 * KIB)
    assert contents[64 * KIB : 192 * KIB] == bytes(128 * KIB)
    assert contents[192 * KIB : MIB] == b"x" * (832 * KIB)


def test_a_read_past_the_end_fails_and_the_next_one_works(disk: Callable[..., Disk]) -> None:
    served = disk(queues=1, size=MIB)
    with Blkio(served.socket) as blkio:
        memory = blkio.allocate(64 * KIB)
        (queue,) = blkio.queues
        queue.read(MIB, memory, 0, BLOCK)
        assert queue.wait() == {0: -errno.EIO}
        queue.read(MIB - BLOCK, memory, 0, BLOCK)
        assert queue.wait() == {0: 0}


def test_twenty_connections_one_after_the_other(disk: Callable[..., Disk]) -> None:
    served = disk(queues=2)
    for number in range(20):
        with Blkio(served.socket, queues=2) as blkio:
            memory = blkio.allocate(64 * KIB)
            if number:
                blkio.queues[0].read((number - 1) * BLOCK, memory, 0, BLOCK)
                assert blkio.queues[0].wait() == {0: 0}
                assert memory.view(0, BLOCK) == bytes([number - 1]) * BLOCK
            memory.view(0, BLOCK)[:] = bytes([number]) * BLOCK
            blkio.queues[1].write(number * BLOCK, memory, 0, BLOCK)
            assert blkio.queues[1].wait() == {0: 0}


def test_memory_comes_and_goes_while_the_other_queue_is_busy(disk: Callable[..., Disk]) -> None:
    served = disk(queues=2)
    with Blkio(served.socket, queues=2) as blkio:
        memory = blkio.allocate(DEPTH * BLOCK)
        memory.view()[:] = b"b" * (DEPTH * BLOCK)
        busy, other = blkio.queues
        for number in range(16):
            for at in range(0, DEPTH * BLOCK, BLOCK):
                busy.write(at, memory, at, BLOCK, at)
            # The requests are on their way when the region is added, used and removed.
            busy.submit()
            extra = blkio.allocate(64 * KIB)
            extra.view()[:] = bytes([number]) * (64 * KIB)
            other.write(MIB + number * 64 * KIB, extra, 0, 64 * KIB)
            assert other.wait() == {0: 0}
            blkio.free(extra)
            assert set(busy.wait(DEPTH).values()) == {0}
    contents = served.image.read_bytes()
    assert contents[: DEPTH * BLOCK] == b"b" * (DEPTH * BLOCK)
    for number in range(16):
        start = MIB + number * 64 * KIB
        assert contents[start : start + 64 * KIB] == bytes([number]) * (64 * KIB)
