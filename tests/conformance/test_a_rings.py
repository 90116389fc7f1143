"""Catalogue rows A18 to A28: ring indices, sizes, and messages in every order."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.conformance import processes
from tests.conformance.checks import AT_ONCE_S, Rejects, serves_newcomer, works
from vuproc.spec.vhost_user import FRONT_END, VRING_STATE, ProtocolFeature
from vuproc.testing.bell import Bell
from vuproc.testing.block import Block
from vuproc.testing.errors import Refused
from vuproc.testing.guest import Guest
from vuproc.testing.job import Job
from vuproc.testing.queue import DriverQueue
from vuproc.testing.serve import Served
from vuproc.vhost_user.wire import encode

QUEUES = 4  # of the device
OUT_OF_RANGE = [QUEUES, 255, 256, 0x10000, 0x10001, 0x7FFFFFFF, 0xFFFFFFFF]


@pytest.mark.parametrize("index", OUT_OF_RANGE)
@pytest.mark.parametrize("name", ["SET_VRING_NUM", "SET_VRING_BASE", "SET_VRING_ENABLE"])
def test_a18_a19_ring_index_out_of_range(disk: Served, name: str, index: int) -> None:
    """65536 and 65537 are 0 and 1 to a program that looks at 16 bits."""
    with disk.guest(queues=2) as guest:
        with pytest.raises(Refused):
            guest.front_end.request(name, index=index, num=1)
        works(guest)


@pytest.mark.parametrize("index", [QUEUES, 0x10000, 0xFFFFFFFF])
def test_a18_a19_ring_address_index_out_of_range(rejects: Rejects, index: int) -> None:
    address = 0x100000 + 0x7F00_0000_0000
    rejects("SET_VRING_ADDR", index=index, desc=address, avail=address, used=address)


@pytest.mark.parametrize("index", [QUEUES, 0x10000, 0xFFFFFFFF])
def test_a18_base_of_a_ring_that_is_not_there_closes(disk: Served, index: int) -> None:
    """The answer to GET_VRING_BASE has no form that says "no"."""
    with disk.guest(queues=2) as guest:
        guest.front_end.send(
            encode(FRONT_END.named("GET_VRING_BASE").number, VRING_STATE.pack(index=index))
        )
        assert guest.front_end.closed_by_peer()
    serves_newcomer(disk)


@pytest.mark.parametrize("name", ["SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"])
@pytest.mark.parametrize("value", [QUEUES, 255, 1 << 9, 1 << 32, 1 << 63])
def test_a18_a19_descriptor_for_a_ring_that_is_not_there(
    disk: Served, name: str, value: int
) -> None:
    with disk.guest(queues=2) as guest:
        bell = Bell()
        with pytest.raises(Refused):
            guest.front_end.request(name, [bell.theirs], value=value)
        bell.close()
        works(guest)


@pytest.mark.parametrize("num", [0, 3, 100, 255, 512, 32768, 65536, 1 << 20, 0x10000001])
def test_a20_a21_a22_ring_size_that_is_not_possible(disk: Served, num: int) -> None:
    """0, no power of two, more than the device's 256, more than any ring may have."""
    with disk.guest(queues=2) as guest:
        with pytest.raises(Refused):
            guest.front_end.request("SET_VRING_NUM", index=3, num=num)
        works(guest)


@pytest.mark.parametrize("num", [2, 256])
def test_a22_smallest_and_largest_ring_work(disk: Served, num: int) -> None:
    with disk.guest(queue_size=num) as guest:
        token = guest.submit(0, [Block.header(0)], [512, 1], indirect=True)
        assert guest.wait(token).data[1] == b"\0"


def test_a23_size_changed_while_the_ring_runs(rejects: Rejects) -> None:
    rejects("SET_VRING_NUM", index=0, num=64)


def test_a23_base_changed_while_the_ring_runs(rejects: Rejects) -> None:
    rejects("SET_VRING_BASE", index=0, num=7)


def test_a23_addresses_changed_while_the_ring_runs(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        queue = guest.queues[0]
        fields: dict[str, Any] = {"desc": queue.desc, "avail": queue.avail, "used": queue.used}
        with pytest.raises(Refused):
            guest.front_end.request("SET_VRING_ADDR", index=0, **_moved(fields, 4096))
        works(guest)
        # Its logging may change.
        guest.front_end.request("SET_VRING_ADDR", index=0, flags=1, log=queue.used, **fields)
        works(guest)


def test_a24_size_set_again_and_again(disk: Served) -> None:
    one = encode(FRONT_END.named("SET_VRING_NUM").number, VRING_STATE.pack(index=3, num=128))
    with disk.guest(queues=2) as guest:
        guest.front_end.send(one * 1000)
        guest.status()
        before = processes.resident(disk.pid)
        for _ in range(5):
            guest.front_end.send(one * 1000)
        guest.status()
        assert processes.resident(disk.pid) - before < 1 << 20
        works(guest)


def test_a25_addresses_before_the_memory_table(disk: Served) -> None:
    with disk.guest(start=False) as guest:
        guest.front_end.negotiate()
        for index in range(2):
            guest.configure_queue(guest.make_queue(index))
        guest.front_end.set_memory(guest.ram.regions)
        for queue in guest.queues.values():
            guest.kick_queue(queue)
            guest.enable_queue(queue.index)
        works(guest)


def test_a25_ring_configured_and_kicked_before_the_memory_table(disk: Served) -> None:
    with disk.guest(start=False) as guest:
        guest.front_end.negotiate()
        for index in range(2):
            guest.start_queue(index)
        guest.front_end.set_memory(guest.ram.regions)
        works(guest)


def test_a26_all_orders_of_a_ring_s_messages(disk: Served) -> None:
    for order in itertools.permutations(range(5)):
        with disk.guest(start=False, memory=1 << 20) as guest:
            guest.setup()
            queue = guest.make_queue(0)
            steps = _steps(guest, queue)
            for step in order:
                steps[step]()
            guest.enable_queue(0)
            works(guest)


@pytest.mark.parametrize("early", range(5))
def test_a26_enable_before_the_rest(disk: Served, early: int) -> None:
    with disk.guest(start=False) as guest:
        guest.setup()
        queue = guest.make_queue(0)
        for position, step in enumerate(_steps(guest, queue)):
            if position == early:
                guest.enable_queue(0)
            step()
        works(guest)


def test_a26_enable_before_features_and_memory(disk: Served) -> None:
    """As QEMU's network front-end has it."""
    with disk.guest(start=False) as guest:
        guest.front_end.set_protocol_features(ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK)
        guest.enable_queue(0)
        guest.front_end.set_features(guest.front_end.request("GET_FEATURES")["value"])
        guest.front_end.set_memory(guest.ram.regions)
        queue = guest.make_queue(0)
        guest.configure_queue(queue)
        guest.kick_queue(queue)
        works(guest)


def test_a26_ring_that_is_enabled_and_never_set_up_disturbs_nobody(disk: Served) -> None:
    with disk.guest(queues=1) as guest:
        for index in range(1, QUEUES):
            guest.enable_queue(index)
        works(guest)
        assert [guest.stop_queue(index) for index in range(1, QUEUES)] == [0, 0, 0]
        works(guest)


def test_a27_kick_descriptor_replaced_a_hundred_times(disk: Served) -> None:
    with disk.guest(queues=1) as guest:
        queue = guest.queues[0]
        before = processes.family(disk.pid)
        for _ in range(100):
            old = queue.kick_bell
            assert old is not None
            # The kick goes to the old descriptor in the moment in which it is replaced.
            token = queue.submit([Block.header(0)], [512, 1], kick=True)
            queue.kick_bell = Bell(rings=False)
            guest.kick_queue(queue)
            old.close()
            assert queue.wait(token).data[1] == b"\0"
        assert processes.family(disk.pid) == before
        works(guest)


@pytest.mark.proves("SET_VRING_CALL", front_end="built-in")
def test_a27_call_descriptor_replaced_while_requests_complete(disk: Served) -> None:
    """The new descriptor is signalled at once: what went to the old one is not lost."""
    with disk.guest(queues=1) as guest:
        queue = guest.queues[0]
        before = processes.family(disk.pid)
        for _ in range(100):
            queue.ring.arm()
            token = queue.submit([Block.header(0)], [512, 1])
            old, queue.call_bell = queue.call_bell, Bell()
            guest.front_end.request("SET_VRING_CALL", [queue.call_bell.theirs], value=0)
            old.close()
            assert queue.call_bell.wait(AT_ONCE_S), "neither descriptor was rung"
            assert queue.wait(token).data[1] == b"\0"
        assert processes.family(disk.pid) == before
        works(guest)


def test_a27_call_descriptor_replaced_under_load(disk: Served) -> None:
    with disk.guest(queues=1) as guest:
        queue = guest.queues[0]
        generator, arena = queue.loader(
            Job(count=50_000, depth=16, block_size=512, span=1 << 20, poll=True)
        )
        load = threading.Thread(target=generator.run)
        load.start()
        while load.is_alive():
            bell = Bell()
            guest.front_end.request("SET_VRING_CALL", [bell.theirs], value=0)
            bell.close()
        load.join()
        assert generator.completed == 50_000
        arena.free()
        guest.front_end.request("SET_VRING_CALL", [queue.call_bell.theirs], value=0)
        works(guest)


def test_a28_base_of_a_stopped_ring_is_told_again(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        works(guest, 0)
        base = guest.stop_queue(0)
        assert base == guest.queues[0].ring.position == 2
        assert guest.stop_queue(0) == base
        works(guest, 1)


@pytest.mark.proves("GET_VRING_BASE", front_end="built-in")
def test_a28_ring_goes_on_where_it_stopped(disk: Served) -> None:
    with disk.guest(queues=1) as guest:
        works(guest)
        guest.stop_queue(0)
        queue = guest.start_queue(0, base=2)
        works(guest)
        assert queue.ring.position == 4


@pytest.mark.parametrize("base", [0x10000, 0x80008000, 0xFFFFFFFF])
def test_a28_base_that_is_no_split_ring_s(rejects: Rejects, base: int) -> None:
    rejects("SET_VRING_BASE", index=3, num=base)


def _steps(guest: Guest, queue: DriverQueue) -> list[Callable[[], Any]]:
    request, index = guest.front_end.request, queue.index
    kick = queue.kick_bell
    assert kick is not None
    return [
        lambda: request("SET_VRING_NUM", index=index, num=queue.size),
        lambda: request("SET_VRING_BASE", index=index, num=queue.base),
        lambda: request(
            "SET_VRING_ADDR", index=index, desc=queue.desc, avail=queue.avail, used=queue.used
        ),
        lambda: request("SET_VRING_KICK", [kick.theirs], value=index),
        lambda: request("SET_VRING_CALL", [queue.call_bell.theirs], value=index),
    ]


def _moved(fields: dict[str, int], by: int) -> dict[str, Any]:
    return {name: address + by for name, address in fields.items()}
