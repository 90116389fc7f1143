"""Config space, status and resets."""

from __future__ import annotations

import pytest

from tests.vhost_user.dialogue import CONFIG, FEATURES, Dialogue, eventfd, kinds
from vuproc.spec.vhost_user import CONFIG_HEADER, FRONT_END
from vuproc.spec.virtio import Status
from vuproc.vhost_user.effects import EffectFailed, ReadConfig, ResetDevice, StopRing, WriteConfig

# ---- GET_CONFIG ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 57, 60, 61, 256, 4084])
def test_get_config_of_any_size_is_answered_at_that_size_padded_with_zeros(size: int) -> None:
    with Dialogue() as dialogue:
        outcome = dialogue.tell("GET_CONFIG", offset=0, size=size, data=bytes(size))
        assert outcome.payload is not None
        assert len(outcome.payload) == 12 + size
        assert outcome.fields is not None
        assert outcome.fields["data"] == CONFIG[:size].ljust(size, b"\0")


def test_get_config_of_every_size_as_user_mode_linux_asks() -> None:
    with Dialogue() as dialogue:
        for size in range(1, 61):
            outcome = dialogue.tell("GET_CONFIG", offset=0, size=size, data=bytes(size))
            assert outcome.fields is not None
            assert outcome.fields["data"] == CONFIG[:size]


def test_get_config_repeats_offset_size_and_flags() -> None:
    with Dialogue() as dialogue:
        outcome = dialogue.tell("GET_CONFIG", offset=8, flags=1, size=4, data=bytes(4))
        assert outcome.payload == CONFIG_HEADER.pack(offset=8, size=4, flags=1) + CONFIG[8:12]
        assert outcome.effects == (ReadConfig(8, 4),)


@pytest.mark.parametrize("offset", [60, 61, 4095])
def test_get_config_past_the_end_is_zeros_and_asks_nobody(offset: int) -> None:
    with Dialogue() as dialogue:
        outcome = dialogue.tell("GET_CONFIG", offset=offset, size=1, data=bytes(1))
        assert outcome.effects == ()
        assert outcome.fields is not None
        assert outcome.fields["data"] == b"\0"


@pytest.mark.parametrize(("offset", "size"), [(4096, 1), (0xFFFFFFFF, 4), (4000, 97)])
def test_a31_absurd_config_ranges_get_the_empty_reply(offset: int, size: int) -> None:
    with Dialogue() as dialogue:
        outcome = dialogue.tell(
            "GET_CONFIG", offset=offset, size=size, data=bytes(size), need_reply=False
        )
        assert outcome.payload == b""
        assert outcome.effects == ()


@pytest.mark.parametrize("claimed", [0, 3, 5, 0xFFFFFFFF])
def test_a31_a_config_size_that_does_not_match_the_message_gets_the_empty_reply(
    claimed: int,
) -> None:
    with Dialogue() as dialogue:
        payload = CONFIG_HEADER.pack(size=claimed) + bytes(4)
        assert dialogue.tell("GET_CONFIG", payload=payload).payload == b""


def test_a_device_that_cannot_read_its_config_gets_the_empty_reply() -> None:
    with Dialogue() as dialogue:
        results: list[object] = [EffectFailed("no answer"), None, 7]
        for result in results:
            dialogue.result = lambda effect, result=result: result  # type: ignore[misc]
            outcome = dialogue.tell("GET_CONFIG", offset=0, size=4, data=bytes(4))
            assert outcome.payload == b""
            assert outcome.failed


def test_config_bytes_that_the_device_does_not_give_are_zero() -> None:
    with Dialogue() as dialogue:
        dialogue.result = lambda effect: b"ab"
        outcome = dialogue.tell("GET_CONFIG", offset=0, size=4, data=bytes(4))
        assert outcome.fields is not None
        assert outcome.fields["data"] == b"ab\0\0"


# ---- SET_CONFIG ----------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, 1, 2, 3])
def test_set_config_writes_with_its_flags(flags: int) -> None:
    with Dialogue() as dialogue:
        outcome = dialogue.tell("SET_CONFIG", offset=32, flags=flags, data=b"\1")
        assert outcome.effects == (WriteConfig(32, b"\1", flags),)
        assert outcome.ok


def test_a_write_that_the_device_refuses_is_refused() -> None:
    with Dialogue() as dialogue:
        dialogue.result = lambda effect: EffectFailed("the field is read-only")
        outcome = dialogue.tell("SET_CONFIG", offset=0, data=b"\1")
        assert outcome.failed
        assert outcome.refused == "the field is read-only"


@pytest.mark.parametrize(
    ("offset", "size"), [(60, 1), (59, 2), (0, 61), (0xFFFFFFFF, 1), (0xFFFFFFFF, 4084)]
)
def test_a31_writes_past_the_config_space_are_refused(offset: int, size: int) -> None:
    with Dialogue() as dialogue:
        assert dialogue.tell("SET_CONFIG", offset=offset, data=bytes(size)).failed


def test_unknown_config_flags_are_refused() -> None:
    with Dialogue() as dialogue:
        assert dialogue.tell("SET_CONFIG", offset=0, flags=4, data=b"\1").failed


def test_a_write_of_nothing_changes_nothing() -> None:
    with Dialogue() as dialogue:
        outcome = dialogue.tell("SET_CONFIG", offset=60, data=b"")
        assert outcome.ok
        assert outcome.effects == ()


# ---- status --------------------------------------------------------------------------------------


def test_the_status_is_what_the_front_end_set() -> None:
    with Dialogue() as dialogue:
        for status in (0x1, 0x3, 0xB, 0xF, 0x8F):
            assert dialogue.tell("SET_STATUS", value=status).effects == ()
            assert dialogue.tell("GET_STATUS").fields == {"value": status}


@pytest.mark.parametrize("status", [0x100, 1 << 63])
def test_a_status_beyond_a_byte_is_refused(status: int) -> None:
    with Dialogue() as dialogue:
        assert dialogue.tell("SET_STATUS", value=status).failed


def test_status_zero_stops_every_ring_and_resets_the_device() -> None:
    with Dialogue() as dialogue:
        dialogue.tell("SET_FEATURES", value=FEATURES)
        dialogue.remember()
        dialogue.start(0)
        dialogue.start(2)
        dialogue.tell("SET_STATUS", value=0xF)
        outcome = dialogue.tell("SET_STATUS", value=0)
        assert outcome.effects == (StopRing(0), StopRing(2), ResetDevice())
        assert dialogue.session.running() == ()
        assert dialogue.state.features is None
        assert dialogue.tell("GET_STATUS").fields == {"value": 0}
        assert len(dialogue.state.regions) == 1


def test_the_bases_outlive_status_zero_for_qemu_asks_for_them_after_it() -> None:
    """QEMU 7.2 pauses a guest by SET_STATUS 0, ENABLE 0, GET_VRING_BASE, and resumes from there."""
    with Dialogue() as dialogue:
        dialogue.tell("SET_FEATURES", value=FEATURES)
        dialogue.remember()
        dialogue.start(0)
        dialogue.positions = {0: 4711}
        assert dialogue.tell("SET_STATUS", value=0).ok
        assert dialogue.tell("SET_VRING_ENABLE", index=0, num=0).ok
        outcome = dialogue.tell("GET_VRING_BASE", index=0, num=0)
        assert outcome.fields == {"index": 0, "num": 4711}
        assert outcome.effects == ()


def test_a_ring_stopped_by_status_zero_waits_for_a_new_kick() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        dialogue.tell("SET_STATUS", value=0)
        assert dialogue.tell("SET_VRING_ENABLE", index=0, num=1).effects == ()
        assert dialogue.tell("SET_VRING_NUM", index=0, num=64).effects == ()
        kick = dialogue.tell("SET_VRING_KICK", [eventfd()], value=0)
        assert kinds(kick.effects) == ["StartRing"]


# ---- RESET_DEVICE --------------------------------------------------------------------------------


def test_a42_reset_device_keeps_owner_protocol_features_and_memory_only() -> None:
    with Dialogue() as dialogue:
        dialogue.tell("SET_OWNER")
        dialogue.tell("SET_FEATURES", value=FEATURES)
        dialogue.remember()
        dialogue.tell("SET_STATUS", value=0xF)
        err = eventfd()
        dialogue.tell("SET_VRING_ERR", [err], value=1)
        dialogue.tell("SET_VRING_ENABLE", index=1, num=1)
        dialogue.start(1, base=9)
        dialogue.positions = {1: 77}
        before = dialogue.state
        outcome = dialogue.tell("RESET_DEVICE")
        assert outcome.effects == (StopRing(1), ResetDevice())
        state = dialogue.state
        assert state.owned
        assert state.protocol_features == before.protocol_features
        assert state.regions == before.regions
        assert (state.features, state.status) == (None, 0)
        ring = state.rings[1]
        assert (ring.size, ring.base, ring.kick, ring.enabled) == (0, 0, None, False)
        # QEMU sends this one only when the device is made.
        assert ring.err is err
        assert dialogue.tell("GET_VRING_BASE", index=1, num=0).fields == {"index": 1, "num": 0}


def test_a42_a_device_is_set_up_and_reset_again_and_again() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        for turn in range(50):
            dialogue.tell("SET_FEATURES", value=FEATURES)
            assert kinds(dialogue.start(0).effects) == ["StartRing"]
            name, fields = [("RESET_DEVICE", {}), ("SET_STATUS", {"value": 0})][turn % 2]
            row = FRONT_END.named(name)
            assert dialogue.deliver(row.number, row.payload.encode(**fields)).ok
            assert dialogue.session.running() == ()


def test_a_reset_whose_stop_fails_is_refused_as_a_whole() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        before = dialogue.state
        dialogue.result = lambda effect: EffectFailed("stuck")
        assert dialogue.tell("RESET_DEVICE").failed
        assert dialogue.state is before


def test_needs_reset_goes_away_by_a_reset_only() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        dialogue.tell("SET_STATUS", value=0xF)
        dialogue.session.ring_broken(0, "bad chain")
        needs_reset = int(Status.NEEDS_RESET)
        assert dialogue.tell("GET_STATUS").fields == {"value": 0xF | needs_reset}
        dialogue.tell("SET_STATUS", value=0x8F)
        assert dialogue.tell("GET_STATUS").fields == {"value": 0x8F | needs_reset}
        dialogue.tell("SET_STATUS", value=0)
        assert dialogue.tell("GET_STATUS").fields == {"value": 0}
