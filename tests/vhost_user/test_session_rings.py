"""Rings: set-up in any order, start, stop, replacement of descriptors, and what is refused."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from tests.vhost_user.dialogue import (
    FEATURES,
    OFFER,
    RAM,
    USER,
    Dialogue,
    Outcome,
    eventfd,
    kinds,
    memory,
)
from vuproc.fd import Fd
from vuproc.spec.vhost_user import VRING_ADDR_F_LOG, VRING_NO_FD
from vuproc.vhost_user.effects import (
    Effect,
    EffectFailed,
    EnableRing,
    LogUsedRing,
    SetCall,
    SetErr,
    SetKick,
    StartRing,
    StopRing,
)

RING_MESSAGES: dict[str, Callable[[Dialogue], Outcome]] = {
    "NUM": lambda dialogue: dialogue.tell("SET_VRING_NUM", index=1, num=128),
    "BASE": lambda dialogue: dialogue.tell("SET_VRING_BASE", index=1, num=7),
    "ADDR": lambda dialogue: dialogue.address(1),
    "KICK": lambda dialogue: dialogue.tell("SET_VRING_KICK", [eventfd()], value=1),
    "CALL": lambda dialogue: dialogue.tell("SET_VRING_CALL", [eventfd()], value=1),
}
NEEDED = {"NUM", "BASE", "ADDR", "KICK"}


# ---- start ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", sorted(RING_MESSAGES))
def test_a26_all_orders_of_num_base_addr_kick_call_start_the_ring_once(last: str) -> None:
    for order in itertools.permutations(RING_MESSAGES):
        if order[-1] != last:
            continue
        with Dialogue() as dialogue:
            dialogue.remember()
            starts = []
            seen: set[str] = set()
            for name in order:
                outcome = RING_MESSAGES[name](dialogue)
                assert outcome.ok
                seen.add(name)
                started = [e for e in outcome.effects if isinstance(e, StartRing)]
                assert bool(started) == (seen >= NEEDED and name in NEEDED)
                starts += started
            (start,) = starts
            setup, ring = start.setup, dialogue.state.rings[1]
            assert (setup.index, setup.size, setup.base) == (1, 128, 7)
            assert (setup.desc, setup.avail, setup.used) == (
                USER + 0x10000,
                USER + 0x14000,
                USER + 0x18000,
            )
            assert setup.kick is ring.kick is not None
            # A call descriptor that comes after the start is handed on by itself.
            assert setup.call is (None if last == "CALL" else ring.call)
            assert dialogue.session.running() == (1,)


def test_a26_enable_may_stand_anywhere_among_them() -> None:
    for order in itertools.permutations(["NUM", "BASE", "ADDR", "KICK", "ENABLE"]):
        with Dialogue() as dialogue:
            dialogue.remember()
            effects: list[Effect] = []
            for name in order:
                if name == "ENABLE":
                    outcome = dialogue.tell("SET_VRING_ENABLE", index=1, num=1)
                elif name == "BASE":
                    outcome = dialogue.tell("SET_VRING_BASE", index=1, num=0)
                else:
                    outcome = RING_MESSAGES[name](dialogue)
                assert outcome.ok, (order, outcome)
                effects.extend(outcome.effects)
            assert kinds(effects).count("StartRing") == 1
            assert dialogue.state.rings[1].enabled


def test_a25_addresses_before_memory_wait_for_it() -> None:
    with Dialogue() as dialogue:
        assert dialogue.start(1).effects == ()
        assert dialogue.session.running() == ()
        outcome = dialogue.remember()
        assert kinds(outcome.effects) == ["SetMemory", "StartRing"]
        assert dialogue.session.running() == (1,)


def test_a25_memory_that_does_not_cover_a_waiting_ring_leaves_it_waiting() -> None:
    with Dialogue() as dialogue:
        dialogue.start(1)
        assert kinds(dialogue.remember(size=0x10000).effects) == ["SetMemory"]
        assert dialogue.session.running() == ()
        region = dialogue.region(1)
        outcome = dialogue.tell("ADD_MEM_REG", [memory(0x10000)], **region)
        assert kinds(outcome.effects) == ["AddRegion", "StartRing"]


def test_a_ring_that_never_starts_may_be_enabled_and_asked_for_its_base() -> None:
    with Dialogue() as dialogue:
        assert dialogue.tell("SET_VRING_ENABLE", index=3, num=1).effects == ()
        assert dialogue.tell("SET_VRING_ENABLE", index=3, num=0).effects == ()
        assert dialogue.tell("GET_VRING_BASE", index=3, num=0).fields == {"index": 3, "num": 0}


def test_a_ring_enabled_explicitly_needs_no_base() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        for name in ("NUM", "ADDR", "KICK"):
            assert RING_MESSAGES[name](dialogue).effects == ()
        (start,) = dialogue.tell("SET_VRING_ENABLE", index=1, num=1).effects
        assert isinstance(start, StartRing)
        assert start.setup.base == 0
        # The base that comes late is the one in use: nothing to do, and nothing wrong.
        assert dialogue.tell("SET_VRING_BASE", index=1, num=0).ok
        assert dialogue.tell("SET_VRING_BASE", index=1, num=0).failed


def test_a_ring_without_kick_descriptor_is_started_for_polling() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        for name in ("NUM", "BASE", "ADDR"):
            RING_MESSAGES[name](dialogue)
        (start,) = dialogue.tell("SET_VRING_KICK", value=1 | VRING_NO_FD).effects
        assert isinstance(start, StartRing)
        assert start.setup.kick is None
        assert dialogue.session.running() == (1,)


def test_the_enabled_state_is_kept_while_a_ring_is_stopped() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.tell("SET_VRING_ENABLE", index=1, num=1)
        (start,) = dialogue.start(1).effects
        assert isinstance(start, StartRing)
        assert start.setup.enabled
        dialogue.tell("GET_VRING_BASE", index=1, num=0)
        assert dialogue.state.rings[1].enabled
        dialogue.tell("SET_VRING_ENABLE", index=1, num=0)
        (start,) = dialogue.start(1).effects
        assert isinstance(start, StartRing)
        assert not start.setup.enabled


def test_the_error_descriptor_survives_a_restart_as_qemu_sends_it_once() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        err = eventfd()
        assert dialogue.tell("SET_VRING_ERR", [err], value=0).effects == ()
        dialogue.start(0)
        dialogue.tell("GET_VRING_BASE", index=0, num=0)
        (start,) = dialogue.start(0).effects
        assert isinstance(start, StartRing)
        assert start.setup.err is err


# ---- enable --------------------------------------------------------------------------------------


def test_enable_reaches_the_worker_of_a_started_ring_once_a_change() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        on = dialogue.tell("SET_VRING_ENABLE", index=0, num=1)
        assert on.effects == (EnableRing(0, True),)
        assert dialogue.tell("SET_VRING_ENABLE", index=0, num=1).effects == ()
        off = dialogue.tell("SET_VRING_ENABLE", index=0, num=0)
        assert off.effects == (EnableRing(0, False),)


def test_enable_is_accepted_before_set_features_as_qemu_net_sends_it() -> None:
    with Dialogue() as dialogue:
        assert dialogue.state.features is None
        for index in range(4):
            assert dialogue.tell("SET_VRING_ENABLE", index=index, num=1).ok
        dialogue.tell("SET_FEATURES", value=FEATURES)
        assert all(ring.enabled for ring in dialogue.state.rings)


@pytest.mark.parametrize("num", [2, 0xFFFFFFFF])
def test_enable_is_zero_or_one(num: int) -> None:
    with Dialogue() as dialogue:
        assert dialogue.tell("SET_VRING_ENABLE", index=0, num=num).failed


# ---- stop ----------------------------------------------------------------------------------------


def test_get_vring_base_stops_the_ring_and_answers_where_it_stood() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        kick, call = dialogue.state.rings[0].kick, dialogue.state.rings[0].call
        assert kick and call
        dialogue.positions = {0: 65535}
        outcome = dialogue.tell("GET_VRING_BASE", index=0, num=0)
        assert outcome.effects == (StopRing(0),)
        assert outcome.fields == {"index": 0, "num": 65535}
        assert kick.closed
        assert call.closed


def test_a28_get_vring_base_on_a_stopped_ring_answers_the_same_again() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        dialogue.positions = {0: 1234}
        for effects in ((StopRing(0),), (), ()):
            outcome = dialogue.tell("GET_VRING_BASE", index=0, num=0)
            assert outcome.effects == effects
            assert outcome.fields == {"index": 0, "num": 1234}


def test_a_stopped_ring_resumes_at_its_base_by_a_new_kick() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        dialogue.positions = {0: 99}
        dialogue.tell("GET_VRING_BASE", index=0, num=0)
        (start,) = dialogue.tell("SET_VRING_KICK", [eventfd()], value=0).effects
        assert isinstance(start, StartRing)
        assert start.setup.base == 99


def test_a_stopped_ring_starts_at_a_base_that_is_set_anew() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        dialogue.positions = {0: 99}
        dialogue.tell("GET_VRING_BASE", index=0, num=0)
        (start,) = dialogue.start(0, base=3, size=64).effects
        assert isinstance(start, StartRing)
        assert (start.setup.base, start.setup.size) == (3, 64)


def test_a29_a_stop_that_fails_is_not_answered_as_if_it_had_worked() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        dialogue.result = lambda effect: EffectFailed("the worker is stuck")
        outcome = dialogue.tell("GET_VRING_BASE", index=0, num=0)
        assert outcome.closed == "GET_VRING_BASE: the worker is stuck"
        assert dialogue.state.rings[0].started


@pytest.mark.parametrize("value", [None, -1, 65536, b"", "7"])
def test_a_stop_that_gives_no_ring_index_counts_as_failed(value: object) -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        dialogue.result = lambda effect: value
        assert dialogue.tell("GET_VRING_BASE", index=0, num=0).closed
        assert dialogue.state.rings[0].started


# ---- what is refused -----------------------------------------------------------------------------

INDEXED: dict[str, Callable[[Dialogue, int], Outcome]] = {
    "NUM": lambda dialogue, index: dialogue.tell("SET_VRING_NUM", index=index, num=128),
    "ADDR": lambda dialogue, index: dialogue.address(index, at=USER),
    "BASE": lambda dialogue, index: dialogue.tell("SET_VRING_BASE", index=index, num=0),
    "ENABLE": lambda dialogue, index: dialogue.tell("SET_VRING_ENABLE", index=index, num=1),
    "GET_BASE": lambda dialogue, index: dialogue.tell("GET_VRING_BASE", index=index, num=0),
}


@pytest.mark.parametrize("name", sorted(INDEXED))
def test_a18_a19_vring_index_out_of_range_is_refused(name: str) -> None:
    for index in (4, 255, 256, 0x10000, 0xFFFFFFFF):
        with Dialogue() as dialogue:
            dialogue.remember()
            before = dialogue.state
            outcome = INDEXED[name](dialogue, index)
            assert f"vring {index} is out of range" in str(outcome.refused or outcome.closed)
            assert outcome.effects == ()
            assert dialogue.state is before


@pytest.mark.parametrize("name", ["SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"])
def test_a18_a19_vring_index_of_a_descriptor_out_of_range_is_refused(name: str) -> None:
    for value in (4, 255, 255 | VRING_NO_FD, 1 << 9, 1 << 32, 0xFFFFFFFFFFFFFFFF):
        with Dialogue() as dialogue:
            fd = eventfd()
            assert dialogue.tell(name, [fd], value=value).failed
            assert fd.closed


@pytest.mark.parametrize("num", [0, 3, 100, 129, 0xFFFF])
def test_a20_a21_ring_sizes_that_are_no_power_of_two_are_refused(num: int) -> None:
    with Dialogue() as dialogue:
        assert dialogue.tell("SET_VRING_NUM", index=0, num=num).failed


@pytest.mark.parametrize("num", [512, 32768, 65536, 1 << 20, 1 << 31])
def test_a22_ring_sizes_above_the_offered_one_are_refused(num: int) -> None:
    with Dialogue() as dialogue:
        assert dialogue.tell("SET_VRING_NUM", index=0, num=num).failed


def test_a22_no_ring_has_more_than_32768_descriptors_whatever_is_offered() -> None:
    with Dialogue(replace(OFFER, queue_size=1 << 20)) as dialogue:
        assert dialogue.tell("SET_VRING_NUM", index=0, num=32768).ok
        assert dialogue.tell("SET_VRING_NUM", index=0, num=65536).failed


def test_a23_num_base_and_addresses_of_a_running_ring_cannot_change() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        before = dialogue.state
        assert dialogue.tell("SET_VRING_NUM", index=0, num=64).failed
        assert dialogue.tell("SET_VRING_NUM", index=0, num=128).failed
        assert dialogue.tell("SET_VRING_BASE", index=0, num=7).failed
        assert dialogue.tell("SET_VRING_BASE", index=0, num=0).failed
        assert dialogue.address(0, desc=USER + 0x100).failed
        assert dialogue.state is before
        assert dialogue.session.running() == (0,)


def test_logging_of_a_running_ring_may_change_without_stopping_it() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        outcome = dialogue.address(0, flags=VRING_ADDR_F_LOG, log=0x1234)
        assert outcome.ok
        assert outcome.effects == (LogUsedRing(0, 0x1234),)
        assert dialogue.address(0, flags=VRING_ADDR_F_LOG, log=0x1234).effects == ()
        addresses = dialogue.state.rings[0].addresses
        assert addresses is not None
        assert (addresses.flags, addresses.log) == (1, 0x1234)
        assert dialogue.address(0, flags=0, log=0x1234).effects == (LogUsedRing(0, None),)
        assert dialogue.address(0, flags=0, log=0x5678).effects == ()


def test_unknown_address_flags_are_refused() -> None:
    with Dialogue() as dialogue:
        assert dialogue.address(0, flags=2).failed


def test_a24_a_ring_size_repeated_costs_nothing() -> None:
    with Dialogue() as dialogue:
        for _ in range(1000):
            assert dialogue.tell("SET_VRING_NUM", index=0, num=128).effects == ()
        assert dialogue.state.rings[0].size == 128


@pytest.mark.parametrize("base", [65536, 0x80008000, 0xFFFFFFFF])
def test_a_base_beyond_16_bits_is_refused_not_cut(base: int) -> None:
    with Dialogue() as dialogue:
        assert dialogue.tell("SET_VRING_BASE", index=0, num=base).failed


@pytest.mark.parametrize(
    ("area", "offset"), [("desc", 8), ("desc", 1), ("avail", 1), ("used", 2), ("used", 1)]
)
def test_b21_misaligned_areas_are_refused(area: str, offset: int) -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        assert dialogue.address(0, **{area: USER + offset}).failed


@pytest.mark.parametrize(
    ("area", "length"), [("desc", 128 * 16), ("avail", 6 + 128 * 2), ("used", 6 + 128 * 8)]
)
def test_b22_each_area_lies_wholly_inside_memory_event_words_included(
    area: str, length: int
) -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.tell("SET_VRING_NUM", index=0, num=128)
        align = {"desc": 16, "avail": 2, "used": 4}[area]
        fits = (USER + RAM - length) // align * align
        assert dialogue.address(0, **{area: fits}).ok
        assert dialogue.address(0, **{area: fits + align}).failed
        assert dialogue.address(0, **{area: 0xFFFFFFFFFFFFFFF0}).failed
        assert dialogue.address(0, **{area: 0}).failed


@pytest.mark.parametrize("last", ["NUM", "ADDR", "KICK", "BASE"])
def test_b22_the_message_that_completes_an_uncovered_ring_is_refused(last: str) -> None:
    messages: dict[str, Callable[[Dialogue], Outcome]] = {
        **RING_MESSAGES,
        # One descriptor would fit at the end of memory, 128 do not.
        "ADDR": lambda dialogue: dialogue.address(1, desc=USER + RAM - 16),
    }
    with Dialogue() as dialogue:
        dialogue.remember()
        for name in ("ADDR", "NUM", "BASE", "KICK"):
            if name != last:
                assert messages[name](dialogue).ok
        assert messages[last](dialogue).failed
        assert dialogue.session.running() == ()


def test_a_stale_address_does_not_keep_a_new_ring_size_out() -> None:
    """A firmware's ring at the end of memory stops; the kernel's larger one is set up elsewhere."""
    with Dialogue() as dialogue:
        dialogue.remember()
        for outcome in (
            dialogue.tell("SET_VRING_NUM", index=0, num=8),
            dialogue.tell("SET_VRING_BASE", index=0, num=0),
            dialogue.address(0, at=USER, desc=USER + RAM - 128),
            dialogue.tell("SET_VRING_KICK", [eventfd()], value=0),
            dialogue.tell("GET_VRING_BASE", index=0, num=0),
        ):
            assert outcome.ok
        assert kinds(dialogue.start(0, size=256).effects) == ["StartRing"]


def test_a_ring_over_two_adjacent_regions_is_refused() -> None:
    with Dialogue() as dialogue:
        for number in range(2):
            fields = dialogue.region(number)
            assert dialogue.tell("ADD_MEM_REG", [memory(0x10000)], **fields).ok
        dialogue.tell("SET_VRING_NUM", index=0, num=128)
        assert dialogue.address(0, at=USER, desc=USER + 0x10000 - 0x400).failed


# ---- kick, call and error descriptors ------------------------------------------------------------


def test_a27_descriptors_of_a_running_ring_are_replaced_and_the_old_ones_closed() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        for name, effect in (
            ("SET_VRING_KICK", SetKick),
            ("SET_VRING_CALL", SetCall),
            ("SET_VRING_ERR", SetErr),
        ):
            previous = None
            for _ in range(100):
                fd = eventfd()
                assert dialogue.tell(name, [fd], value=0).effects == (effect(0, fd),)
                assert not fd.closed
                assert previous is None or previous.closed
                previous = fd
            assert dialogue.tell(name, value=VRING_NO_FD).effects == (effect(0, None),)
            assert previous is not None
            assert previous.closed


def test_a27_an_old_descriptor_stays_open_until_the_worker_has_switched() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        old = dialogue.state.rings[0].call
        assert old is not None
        seen = []
        dialogue.result = lambda effect: seen.append(old.closed)
        dialogue.tell("SET_VRING_CALL", [eventfd()], value=0)
        assert seen == [False]
        assert old.closed


def test_call_descriptors_come_for_every_queue_before_anything_else() -> None:
    with Dialogue(protocol=0) as dialogue:
        for _ in range(2):
            for index in range(4):
                fds = [eventfd()]
                assert dialogue.tell("SET_VRING_CALL", fds, value=index, need_reply=False).ok


@pytest.mark.parametrize("name", ["SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"])
def test_a16_no_descriptor_without_the_bit_that_says_so_is_refused(name: str) -> None:
    with Dialogue() as dialogue:
        assert dialogue.tell(name, value=0).failed


@pytest.mark.parametrize("name", ["SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"])
def test_a17_a_descriptor_beside_the_bit_that_says_none_is_closed(name: str) -> None:
    with Dialogue() as dialogue:
        fd = eventfd()
        assert dialogue.tell(name, [fd], value=VRING_NO_FD).ok
        assert fd.closed
        assert {fd for _, fd in dialogue.state.rings[0].roles()} == {None}


@pytest.mark.parametrize("name", ["SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"])
def test_f4_descriptors_that_cannot_signal_are_refused(name: str) -> None:
    with Dialogue() as dialogue:
        for fd in (
            memory(),
            Fd(os.open("/dev/zero", os.O_RDWR)),
            Fd(os.open("/dev/null", os.O_RDWR)),
            Fd(os.open("/", os.O_RDONLY)),
            Fd(os.open("/dev/null", os.O_PATH)),
        ):
            assert dialogue.tell(name, [fd], value=0).failed
            assert fd.closed


@pytest.mark.parametrize("name", ["SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"])
def test_f4_eventfds_pipes_and_sockets_are_taken(name: str) -> None:
    reader, writer = os.pipe()
    one, other = socket.socketpair()
    with Dialogue() as dialogue:
        for number in (os.eventfd(0), reader, writer, one.detach(), other.detach()):
            assert dialogue.tell(name, [Fd(number)], value=0).ok


# ---- failing workers -----------------------------------------------------------------------------


def test_a_ring_that_the_worker_cannot_start_stays_stopped_and_its_kick_is_closed() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        for name in ("NUM", "BASE", "ADDR", "CALL"):
            RING_MESSAGES[name](dialogue)
        before = dialogue.state
        dialogue.result = lambda effect: EffectFailed("no memory")
        fd = eventfd()
        outcome = dialogue.tell("SET_VRING_KICK", [fd], value=1)
        assert outcome.failed
        assert outcome.refused == "no memory"
        assert fd.closed
        assert dialogue.state is before
        dialogue.result = dialogue.perform
        assert kinds(RING_MESSAGES["KICK"](dialogue).effects) == ["StartRing"]
