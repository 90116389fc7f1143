"""Catalogue rows A10 to A12, A31 and A42: features, configuration space and resets."""

from __future__ import annotations

import pytest

from tests.conformance.checks import Rejects, closed, serves_newcomer, works
from vuproc.spec.blk import BlkFeature
from vuproc.spec.vhost_user import (
    CONFIG_HEADER,
    FRONT_END,
    PAYLOAD_MAX,
    U64,
    ProtocolFeature,
)
from vuproc.spec.virtio import Feature
from vuproc.testing.errors import Refused
from vuproc.testing.guest import DRIVER_READY, Guest
from vuproc.testing.serve import Served
from vuproc.vhost_user.wire import encode


@pytest.mark.parametrize("extra", [Feature.IN_ORDER, Feature.ACCESS_PLATFORM, 1 << 63, 1 << 3])
def test_a10_features_that_were_not_offered(rejects: Rejects, extra: int) -> None:
    rejects("SET_FEATURES", value=Feature.VERSION_1 | extra)


@pytest.mark.parametrize("extra", [ProtocolFeature.PAGEFAULT, ProtocolFeature.XEN_MMAP, 1 << 63])
def test_a10_protocol_features_that_were_not_offered(disk: Served, extra: int) -> None:
    with disk.connect() as front_end:
        front_end.request("GET_PROTOCOL_FEATURES")
        front_end.send(
            encode(FRONT_END.named("SET_PROTOCOL_FEATURES").number, U64.pack(value=int(extra) | 1))
        )
        closed(front_end)
    serves_newcomer(disk)


def test_a11_other_features_while_rings_run(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        features = guest.front_end.features
        with pytest.raises(Refused):
            guest.front_end.set_features(features & ~Feature.EVENT_IDX)
        works(guest)
        guest.front_end.set_features(features)
        works(guest)


def test_a11_features_may_change_between_two_runs_of_the_rings(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        for index in guest.queues:
            guest.stop_queue(index)
        guest.front_end.set_features(guest.front_end.features & ~Feature.EVENT_IDX)
        for index in range(2):
            guest.start_queue(index)
        works(guest)


def test_a12_in_band_notifications_without_what_they_need(disk: Served) -> None:
    with disk.connect() as front_end:
        front_end.set_protocol_features(
            ProtocolFeature.INBAND_NOTIFICATIONS | ProtocolFeature.REPLY_ACK
        )
        closed(front_end)
    serves_newcomer(disk)


def test_a31_config_is_padded_past_its_end(disk: Served) -> None:
    with disk.guest() as guest:
        whole = guest.front_end.get_config(0, 1024)
        assert len(whole) == 1024
        assert not any(whole[256:])
        for offset, size in ((0, 1), (0, 60), (8, 57), (60, 200), (1000, 24), (2000, 8)):
            assert (
                guest.front_end.get_config(offset, size)
                == whole.ljust(4096, b"\0")[offset : offset + size]
            )
        works(guest)


@pytest.mark.parametrize(
    ("offset", "size"),
    [(PAYLOAD_MAX, 1), (0xFFFFFFFF, 1), (0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFF000, 4000)],
)
def test_a31_absurd_config_range_is_answered_with_the_error_form(
    disk: Served, offset: int, size: int
) -> None:
    with disk.guest() as guest:
        claimed = CONFIG_HEADER.pack(offset=offset, size=size, flags=0)
        answer = guest.front_end.request("GET_CONFIG", payload=claimed + bytes(min(size, 4000)))
        assert answer == {}
        works(guest)


@pytest.mark.parametrize("offset", [250, 4000, 0xFFFFFFFF])
def test_a31_config_write_past_the_end(rejects: Rejects, offset: int) -> None:
    rejects("SET_CONFIG", offset=offset, flags=0, data=bytes(16))


def test_a31_config_write_to_a_field_that_is_read_only(rejects: Rejects) -> None:
    rejects("SET_CONFIG", offset=0, flags=0, data=b"\xff" * 8)


def test_a31_write_cache_can_be_switched_by_the_driver(disk: Served) -> None:
    with disk.guest() as guest:
        assert guest.front_end.features & BlkFeature.CONFIG_WCE
        assert guest.front_end.get_config(32, 1) == b"\1"
        guest.front_end.set_config(32, b"\0")
        assert guest.front_end.get_config(32, 1) == b"\0"
        works(guest)
        guest.reset()
        assert guest.front_end.get_config(32, 1) == b"\1"


@pytest.mark.proves("RESET_OWNER", front_end="built-in")
def test_a42_reset_owner_stops_the_rings_and_keeps_the_connection(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        guest.front_end.request("RESET_OWNER")
        _ignores_kicks(guest)
        for index in range(2):
            guest.start_queue(index)
        works(guest)


@pytest.mark.proves(
    "RESET_DEVICE",
    "SET_STATUS",
    "GET_STATUS",
    "PROTOCOL_F_RESET_DEVICE",
    "PROTOCOL_F_STATUS",
    front_end="built-in",
)
@pytest.mark.parametrize("how", ["RESET_DEVICE", "SET_STATUS"])
def test_a42_device_reset_stops_the_rings_and_keeps_the_connection(disk: Served, how: str) -> None:
    with disk.guest(queues=2) as guest:
        if how == "RESET_DEVICE":
            guest.front_end.request(how)
        else:
            guest.set_status(0)
        assert guest.status() == 0
        _ignores_kicks(guest)
        guest.front_end.set_features(guest.front_end.features)
        for index in range(2):
            guest.start_queue(index)
        guest.set_status(DRIVER_READY)
        works(guest)


def test_a42_a_hundred_resets_in_a_row(disk: Served) -> None:
    with disk.guest(queues=2, memory=64 << 20) as guest:
        for _ in range(100):
            guest.reset()
        works(guest)


def _ignores_kicks(guest: Guest) -> None:
    """Nothing is processed although it is offered and kicked."""
    for queue in guest.queues.values():
        before = queue.split.used_index
        queue.submit([bytes(16)], [1], kick=True)
        # The answer to a question proves nothing about a worker, so ask one that reaches it.
        guest.front_end.set_memory(guest.ram.regions)
        assert queue.split.used_index == before
