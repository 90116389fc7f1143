"""Catalogue rows A13 to A17: file descriptors that came too many, too few, or where none belong."""

from __future__ import annotations

import array
import resource
import socket
from typing import Any

import pytest

from tests.conformance import processes
from tests.conformance.checks import (
    Rejects,
    attached,
    closed,
    serves_newcomer,
    spare_fd,
    works,
)
from vuproc.errors import ProtocolError
from vuproc.spec.vhost_user import (
    FDS_MAX,
    FLAG_NEED_REPLY,
    FRONT_END,
    U64,
    VERSION,
    VRING_NO_FD,
    VRING_STATE,
)
from vuproc.testing.bell import Bell
from vuproc.testing.errors import Refused
from vuproc.testing.serve import Served
from vuproc.vhost_user.wire import encode

NUM = FRONT_END.named("SET_VRING_NUM").number


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("SET_VRING_NUM", {"index": 3, "num": 128}),
        ("SET_OWNER", {}),
        ("SET_VRING_ENABLE", {"index": 0, "num": 1}),
        ("SET_STATUS", {"value": 15}),
    ],
)
def test_a13_descriptors_on_a_message_that_takes_none(
    rejects: Rejects, name: str, fields: dict[str, Any]
) -> None:
    rejects(name, fds=lambda: [spare_fd() for _ in range(7)], **fields)


def test_a13_a_hundred_messages_with_seven_descriptors_each(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        before = processes.files_of(disk.pid)
        for _ in range(100):
            with attached([spare_fd() for _ in range(7)]) as fds, pytest.raises(Refused):
                guest.front_end.request("SET_VRING_NUM", fds, index=3, num=128)
        assert processes.files_of(disk.pid) == before
        works(guest)


def test_a14_as_many_descriptors_as_the_kernel_passes(rejects: Rejects) -> None:
    rejects("SET_VRING_NUM", fds=lambda: [spare_fd() for _ in range(FDS_MAX)], index=3, num=128)


def test_a14_as_many_descriptors_as_the_kernel_passes_for_one_that_belongs(
    rejects: Rejects,
) -> None:
    rejects("SET_VRING_CALL", fds=lambda: [spare_fd() for _ in range(FDS_MAX)], value=0)


def test_a15_descriptors_with_header_and_with_payload(disk: Served) -> None:
    """The surplus is found wherever in the message it is attached."""
    whole = encode(NUM, VRING_STATE.pack(index=3, num=128), flags=VERSION | FLAG_NEED_REPLY)
    with disk.guest(queues=2) as guest:
        before = processes.files_of(disk.pid)
        with attached([spare_fd() for _ in range(4)]) as fds:
            guest.front_end.send(whole[:12], fds[:2])
            guest.front_end.send(whole[12:], fds[2:])
            reply = guest.front_end.receive()
        assert U64.unpack(reply.payload)["value"] != 0
        assert processes.files_of(disk.pid) == before
        works(guest)


def test_a15_descriptor_that_comes_with_the_payload_only_is_taken(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        queue = guest.queues[0]
        bell = Bell()
        queue.call_bell.close()
        queue.call_bell = bell
        number = FRONT_END.named("SET_VRING_CALL").number
        whole = encode(number, U64.pack(value=0), flags=VERSION | FLAG_NEED_REPLY)
        guest.front_end.send(whole[:12])
        guest.front_end.send(whole[12:], [bell.theirs])
        assert U64.unpack(guest.front_end.receive().payload)["value"] == 0
        works(guest)


def test_a15_two_blocks_of_descriptors_in_one_call(disk: Served) -> None:
    """The kernel joins the blocks or refuses them; either way nothing is lost or kept."""
    whole = encode(NUM, VRING_STATE.pack(index=3, num=128), flags=VERSION | FLAG_NEED_REPLY)
    with disk.guest(queues=2) as guest:
        before = processes.files_of(disk.pid)
        with attached([spare_fd() for _ in range(4)]) as fds:
            blocks = [
                (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [a.fileno(), b.fileno()]))
                for a, b in (fds[:2], fds[2:])
            ]
            assert guest.front_end.socket.sendmsg([whole], blocks) == len(whole)
            reply = guest.front_end.receive()
        assert U64.unpack(reply.payload)["value"] != 0
        assert processes.files_of(disk.pid) == before
        works(guest)


@pytest.mark.parametrize("name", ["SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"])
def test_a16_no_descriptor_and_no_word_of_it(rejects: Rejects, name: str) -> None:
    rejects(name, value=1)


def test_a16_fewer_descriptors_than_regions(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        region = guest.ram.regions[0]
        half = region.size // 2
        items = [
            {**region.fields, "size": half},
            {
                **region.fields,
                "guest_addr": region.guest_addr + half,
                "user_addr": region.user_addr + half,
                "size": half,
                "mmap_offset": half,
            },
        ]
        with pytest.raises(Refused):
            guest.front_end.request("SET_MEM_TABLE", [region.fd], items=items)
        works(guest)
    serves_newcomer(disk)


@pytest.mark.parametrize("name", ["SET_BACKEND_REQ_FD", "ADD_MEM_REG"])
def test_a16_message_that_needs_a_descriptor_has_none(rejects: Rejects, name: str) -> None:
    payload = FRONT_END.named(name).payload
    rejects(
        name,
        payload=payload.encode(guest_addr=1 << 40, size=4096, user_addr=1 << 40)
        if payload.heads
        else b"",
    )


@pytest.mark.parametrize("name", ["SET_VRING_CALL", "SET_VRING_ERR"])
def test_a17_descriptor_although_the_message_says_there_is_none(disk: Served, name: str) -> None:
    with disk.guest(queues=2) as guest:
        before = processes.files_of(disk.pid)
        for _ in range(10):
            with attached([spare_fd()]) as fds:
                guest.front_end.request(name, fds, value=1 | VRING_NO_FD)
        assert sum(processes.files_of(disk.pid).values()) == sum(before.values()) - 1
        works(guest, 0)
    serves_newcomer(disk)


def test_a17_kick_descriptor_although_the_message_says_there_is_none(disk: Served) -> None:
    with disk.guest(queues=1, kick=None) as guest:
        before = processes.files_of(disk.pid)
        bell = Bell(rings=False)
        guest.front_end.request("SET_VRING_KICK", [bell.theirs], value=0 | VRING_NO_FD)
        bell.close()
        assert processes.files_of(disk.pid) == before
        works(guest)


def test_a14_truncated_descriptors_end_the_connection(disk: Served) -> None:
    """Out of descriptor numbers, the kernel drops what does not fit and says so."""
    with disk.connect() as front_end:
        front_end.request("GET_FEATURES")
        limits = resource.prlimit(disk.pid, resource.RLIMIT_NOFILE)
        used = sum(processes.files_of(disk.pid).values())
        resource.prlimit(disk.pid, resource.RLIMIT_NOFILE, (used + 4, limits[1]))
        try:
            with attached([spare_fd() for _ in range(64)]) as fds:
                try:
                    front_end.send(encode(NUM, VRING_STATE.pack(index=0, num=128)), fds)
                except ProtocolError:
                    pass
            closed(front_end)
        finally:
            resource.prlimit(disk.pid, resource.RLIMIT_NOFILE, limits)
    serves_newcomer(disk)
