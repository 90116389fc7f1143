"""NET_SET_MTU and SEND_RARP: what a network device may be asked for beside its requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.devices.network import LARGEST, Asked, Plain
from vuproc.spec.vhost_user import ProtocolFeature
from vuproc.testing.errors import Refused
from vuproc.testing.guest import Guest
from vuproc.testing.serve import Served, serve

BOTH = ProtocolFeature.MTU | ProtocolFeature.RARP

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def served() -> Iterator[Served]:
    with serve(Asked) as served:
        yield served


def set_mtu(guest: Guest, mtu: int) -> None:
    guest.front_end.request("NET_SET_MTU", value=mtu)


def test_they_are_offered_by_what_the_class_overrides(served: Served) -> None:
    with served.connect() as front_end:
        assert front_end.request("GET_PROTOCOL_FEATURES")["value"] & BOTH == BOTH
    with serve(Plain) as plain, plain.connect() as front_end:
        assert front_end.request("GET_PROTOCOL_FEATURES")["value"] & BOTH == 0


@pytest.mark.proves("NET_SET_MTU", "PROTOCOL_F_MTU", front_end="built-in")
def test_every_worker_hears_of_the_mtu_and_so_does_its_successor(served: Served) -> None:
    with served.guest(queues=2) as guest:
        set_mtu(guest, 1400)
        for queue in (0, 1):
            served.wait_for_line(f"queue {queue} has MTU 1400")
        after = len(served.lines)
        served.kill_worker(1)
        served.wait_for_line("queue 1 has MTU 1400", after=after)
    after = len(served.lines)
    served.wait_for_line("queue 0 has MTU 0")
    with served.guest(queues=2) as guest:
        set_mtu(guest, 1500)
        served.wait_for_line("queue 0 has MTU 1500", after=after)


def test_it_may_come_before_the_features_as_from_qemu(served: Served) -> None:
    with served.connect() as front_end:
        front_end.set_protocol_features(BOTH | ProtocolFeature.REPLY_ACK)
        front_end.request("NET_SET_MTU", value=1400)
    served.wait_for_line("queue 0 has MTU 1400")


def test_an_mtu_that_the_device_refuses_leaves_every_worker_with_the_last(served: Served) -> None:
    with served.guest(queues=2) as guest:
        set_mtu(guest, 1400)
        with pytest.raises(Refused):
            set_mtu(guest, LARGEST + 1)
        served.wait_for_line(f"ValueError: {LARGEST + 1} bytes are too many")
        after = len(served.lines)
        served.kill_worker(1)
        served.wait_for_line("queue 1 has MTU 1400", after=after)


def test_a49_an_mtu_that_none_may_have_is_refused(served: Served) -> None:
    with served.guest(queues=1) as guest:
        for mtu in (0, 67, 65536, 1 << 63):
            with pytest.raises(Refused):
                set_mtu(guest, mtu)


def test_an_mtu_needs_the_protocol_feature(served: Served) -> None:
    with served.connect() as front_end:
        front_end.set_protocol_features(ProtocolFeature.REPLY_ACK)
        with pytest.raises(Refused):
            front_end.request("NET_SET_MTU", value=1400)


@pytest.mark.proves("SEND_RARP", "PROTOCOL_F_RARP", front_end="built-in")
def test_a_guest_that_has_come_is_announced_by_the_worker_of_queue_0(served: Served) -> None:
    with served.guest(queues=2) as guest:
        mac = bytes.fromhex("525400123456")
        guest.front_end.request("SEND_RARP", value=int.from_bytes(mac, "little"))
        line = served.wait_for_line("announces")
        assert "queue 0 announces 52:54:00:12:34:56" in line
