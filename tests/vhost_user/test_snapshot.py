"""A session goes on in another process: the state as bytes, the descriptors by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.handover.earlier import whole_session
from tests.vhost_user.dialogue import (
    FEATURES,
    OFFER,
    RAM,
    Dialogue,
    copied,
    eventfd,
    kinds,
    memory,
    stream,
)
from vuproc.errors import RestoreError
from vuproc.fd import Fd
from vuproc.spec.inflight import split_record_bytes
from vuproc.spec.vhost_user import ProtocolFeature
from vuproc.spec.virtio import Feature, Status
from vuproc.vhost_user.earlier_snapshot import VERSION as EARLIER
from vuproc.vhost_user.earlier_snapshot import restore_earlier
from vuproc.vhost_user.effects import Bells, Inflight, LogArea, Region, Xen
from vuproc.vhost_user.inflight_region import InflightRegion
from vuproc.vhost_user.replay import replay
from vuproc.vhost_user.session import Session
from vuproc.vhost_user.snapshot import HEAD, MEMORY, VERSION, Part, changed_rings
from vuproc.vhost_user.state import State
from vuproc.vhost_user.vring import Addresses, Vring


def give_inflight(dialogue: Dialogue) -> None:
    size = 4 * split_record_bytes(256)
    fields = {"mmap_size": size, "num_queues": 4, "queue_size": 256}
    dialogue.tell("SET_INFLIGHT_FD", [memory(size)], **_any(fields))


def begin(dialogue: Dialogue, index: int) -> None:
    """Each step of a ring's start that is allowed now: the memory table may not cover the ring."""
    dialogue.tell("SET_VRING_NUM", index=index, num=128)
    dialogue.tell("SET_VRING_BASE", index=index, num=index)
    dialogue.address(index)
    dialogue.tell("SET_VRING_CALL", [eventfd()], value=index)
    dialogue.tell("SET_VRING_KICK", [eventfd()], value=index)


def _any(fields: dict[str, Any]) -> dict[str, Any]:
    return fields


Act = Callable[[Dialogue, int], object]

ACTS: dict[str, Act] = {
    "features": lambda d, i: d.tell("SET_FEATURES", value=FEATURES),
    "log": lambda d, i: d.tell("SET_FEATURES", value=FEATURES & ~Feature.LOG_ALL),
    "owner": lambda d, i: d.tell("SET_OWNER"),
    "disown": lambda d, i: d.tell("RESET_OWNER"),
    "channel": lambda d, i: d.tell("SET_BACKEND_REQ_FD", [stream()]),
    "memory": lambda d, i: d.remember(),
    "add": lambda d, i: d.tell(
        "ADD_MEM_REG", [memory(0x10000)], **_any(d.region(RAM // 0x10000 + i))
    ),
    "remove": lambda d, i: d.tell("REM_MEM_REG", **_any(d.region(RAM // 0x10000 + i))),
    "inflight": lambda d, i: give_inflight(d),
    "start": begin,
    "stop": lambda d, i: d.tell("GET_VRING_BASE", index=i, num=0),
    "call": lambda d, i: d.tell("SET_VRING_CALL", [eventfd()], value=i),
    "err": lambda d, i: d.tell("SET_VRING_ERR", [eventfd()], value=i),
    "poll": lambda d, i: d.tell("SET_VRING_KICK", value=i | 1 << 8),
    "enable": lambda d, i: d.tell("SET_VRING_ENABLE", index=i, num=1),
    "break": lambda d, i: d.session.ring_broken(i, "loop in a chain"),
    "revive": lambda d, i: d.session.ring_revived(i),
    "status": lambda d, i: d.tell("SET_STATUS", value=0xF),
    "reset": lambda d, i: d.tell("RESET_DEVICE"),
}

STORIES = st.lists(st.tuples(st.sampled_from(sorted(ACTS)), st.integers(0, 3)), max_size=30)


@settings(deadline=None, max_examples=60)
@given(STORIES)
def test_a_thawed_session_is_where_the_frozen_one_was(story: list[tuple[str, int]]) -> None:
    with Dialogue() as dialogue:
        for name, index in story:
            ACTS[name](dialogue, index)
            parts = dialogue.session.snapshot()
            assert fds_in(parts) == dialogue.state.fds()
        parts = dialogue.session.snapshot()
        thawed = Session.restore(OFFER, parts)
        assert thawed.state == dialogue.state
        assert list(replay(thawed.state)) == list(replay(dialogue.session.state))
        assert thawed.snapshot() == parts


@settings(deadline=None, max_examples=60)
@given(STORIES, st.lists(st.booleans(), min_size=30, max_size=30))
def test_the_parts_that_have_changed_are_enough(
    story: list[tuple[str, int]], written: list[bool]
) -> None:
    """Whatever was written in between, and whether anything was, the parts as they were written
    last are the state.
    """
    with Dialogue() as dialogue:
        known: State | None = None
        parts: dict[int, Part] = {}
        for (name, index), write in zip([*story, ("status", 0)], [*written, True], strict=False):
            ACTS[name](dialogue, index)
            if write:
                parts.update(dialogue.session.snapshot(known))
                known = dialogue.state
        parts.update(dialogue.session.snapshot(known))
        assert parts == dialogue.session.snapshot()
        assert Session.restore(OFFER, parts).state == dialogue.state


RINGS = st.lists(st.builds(Vring, index=st.just(0), base=st.integers(0, 3)), max_size=40)


@given(RINGS, st.data())
def test_the_rings_that_have_changed_are_found(before: list[Vring], data: st.DataObject) -> None:
    after = list(before)
    for at in data.draw(st.sets(st.integers(0, max(0, len(before) - 1)))) if before else ():
        after[at] = replace(before[at], base=data.draw(st.integers(0, 3)))
    differ = [at for at, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
    assert changed_rings(tuple(before), tuple(after)) == differ
    assert changed_rings((), tuple(after)) == list(range(len(after)))


def test_a_message_about_a_ring_is_one_part_however_many_there_are() -> None:
    with a_busy_dialogue() as dialogue:
        before = dialogue.state
        dialogue.tell("SET_VRING_CALL", [eventfd()], value=0)
        assert list(dialogue.session.snapshot(before)) == [0]
        before = dialogue.state
        dialogue.tell("SET_STATUS", value=0xF)
        dialogue.tell("GET_FEATURES")
        assert list(dialogue.session.snapshot(before)) == [HEAD]
        before = dialogue.state
        dialogue.tell("ADD_MEM_REG", [memory(0x10000)], **_any(dialogue.region(64)))
        assert list(dialogue.session.snapshot(before)) == [MEMORY]


def a_busy_dialogue() -> Dialogue:
    dialogue = Dialogue()
    for name, index in (
        *(("owner", 0), ("features", 0), ("channel", 0), ("memory", 0), ("inflight", 0)),
        *(("start", 0), ("enable", 0), ("start", 1), ("err", 1), ("break", 1)),
    ):
        ACTS[name](dialogue, index)
    return dialogue


def fds_in(parts: Mapping[int, Part]) -> set[Fd]:
    return {fd for part in parts.values() for fd in part.fds}


def test_another_process_goes_on_with_the_conversation() -> None:
    with a_busy_dialogue() as first:
        store = copied(first.session.snapshot())
    with Dialogue(protocol=0) as second:
        second.session = Session.restore(OFFER, store)
        assert second.state.rings[1].broken == "loop in a chain"
        assert kinds(list(replay(second.session.state))) == [
            *("SetFeatures", "SetMemory", "StartRing", "StartRing")
        ]
        old = second.state.rings[0].kick
        assert second.tell("SET_VRING_KICK", [eventfd()], value=0).ok
        assert old is not None
        assert old.closed
        second.positions = {0: 7}
        stopped = second.tell("GET_VRING_BASE", index=0, num=0)
        assert stopped.fields == {"index": 0, "num": 7}
    assert all(fd.closed for fd in fds_in(store))


def test_a_descriptor_of_several_parts_is_closed_when_the_last_has_no_use_for_it() -> None:
    with a_busy_dialogue() as dialogue:
        region = dialogue.state.inflight
        assert region is not None
        ring = dialogue.state.rings[0].inflight
        assert ring is not None and ring.fd is region.fd
        parts = dialogue.session.snapshot()
        assert region.fd in parts[HEAD].fds and region.fd in parts[0].fds
        give_inflight(dialogue)
        assert not region.fd.closed
        for index in (0, 1):
            assert not region.fd.closed
            dialogue.tell("GET_VRING_BASE", index=index, num=0)
        assert region.fd.closed


@pytest.mark.parametrize("number", [HEAD, MEMORY, 0, 3])
def test_a_missing_part_is_named_and_nothing_is_taken(number: int) -> None:
    with a_busy_dialogue() as dialogue:
        parts = dialogue.session.snapshot()
        del parts[number]
        if number == 3:
            parts[4] = Part(b"")
        with pytest.raises(RestoreError, match=f"part {number} is missing"):
            Session.restore(OFFER, parts)
        assert not any(fd.closed for fd in fds_in(parts))


def test_a_descriptor_of_another_kind_is_an_error() -> None:
    with a_busy_dialogue() as dialogue, memory() as wrong:
        parts = dialogue.session.snapshot()
        kick = dialogue.state.rings[0].kick
        fds = tuple(wrong if fd is kick else fd for fd in parts[0].fds)
        with pytest.raises(RestoreError, match="descriptor of kick-0 is of kind file"):
            Session.restore(OFFER, {**parts, 0: Part(parts[0].data, fds)})


def test_a_descriptor_too_few_or_too_many_is_an_error() -> None:
    with a_busy_dialogue() as dialogue, eventfd() as more:
        parts = dialogue.session.snapshot()
        data, fds = parts[0].data, parts[0].fds
        for wrong, reason in ((fds[:-1], "is no descriptor"), ((*fds, more), "are used")):
            with pytest.raises(RestoreError, match=reason):
                Session.restore(OFFER, {**parts, 0: Part(data, wrong)})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_queues": 2}, "4 rings, the device has 2"),
        ({"features": FEATURES & ~Feature.EVENT_IDX}, "features 0x20000000 are not"),
        ({"protocol_features": int(ProtocolFeature.MQ)}, "protocol features 0x"),
        ({"queue_size": 64}, "a ring of 128 descriptors"),
        ({"max_regions": 0}, "1 memory regions"),
    ],
)
def test_e10_a_device_that_offers_less_than_before_is_an_error(
    changes: dict[str, Any], reason: str
) -> None:
    with a_busy_dialogue() as dialogue:
        parts = dialogue.session.snapshot()
        with pytest.raises(RestoreError, match=reason):
            Session.restore(replace(OFFER, **changes), parts)


def test_a_device_that_offers_more_is_none() -> None:
    with a_busy_dialogue() as dialogue:
        more = replace(OFFER, queue_size=1024, features=FEATURES | Feature.IN_ORDER)
        assert Session.restore(more, dialogue.session.snapshot()).state == dialogue.state


def test_e7_another_version_is_an_error() -> None:
    with a_busy_dialogue() as dialogue:
        parts = dialogue.session.snapshot()
        content = msgspec.msgpack.decode(parts[HEAD].data)
        assert content["version"] == VERSION
        later = msgspec.msgpack.encode({**content, "version": VERSION + 1})
        with pytest.raises(RestoreError, match=f"of version {VERSION + 1}, not {VERSION}"):
            Session.restore(OFFER, {**parts, HEAD: Part(later, parts[HEAD].fds)})


@pytest.mark.parametrize(
    ("number", "changes", "reason"),
    [
        # Python's words for it up to msgspec 0.22, its own ("Invalid UTF-8") from 0.23 on.
        (0, {"broken": "\xff"}, "damaged: .*(?i:utf-8)"),
        (MEMORY, {"surplus": [[[]]]}, "damaged"),
        (0, {"kick": [0]}, "damaged: .*no descriptor of this part"),
        (0, {"kick": 99}, "no descriptor of this part"),
        (0, {"kick": True}, "no descriptor of this part"),
        (0, {"index": 1}, "the rings are not in their order"),
    ],
)
def test_each_way_to_be_damaged_is_the_same_error(
    number: int, changes: dict[str, Any], reason: str
) -> None:
    with a_busy_dialogue() as dialogue:
        parts = dialogue.session.snapshot()
        content = msgspec.msgpack.decode(parts[number].data)
        damaged = msgspec.msgpack.encode({**content, **changes})
        # What an encoder refuses to make: text that is not UTF-8, and a deep nest.
        damaged = damaged.replace("\xff".encode(), b"\xff\xff")
        damaged = damaged.replace(b"\x91\x91\x90", b"\x91" * 100_000 + b"\x90")
        with pytest.raises(RestoreError, match=reason):
            Session.restore(OFFER, {**parts, number: Part(damaged, parts[number].fds)})
        assert not any(fd.closed for fd in fds_in(parts))


@given(st.data())
@settings(deadline=None, max_examples=100)
def test_damaged_bytes_are_an_error_or_another_state_and_nothing_else(data: st.DataObject) -> None:
    with a_busy_dialogue() as dialogue:
        parts = dialogue.session.snapshot()
        number = data.draw(st.sampled_from(sorted(parts)))
        damaged = bytearray(parts[number].data)
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, len(damaged)))
        try:
            wrong = Part(bytes(damaged[:cut]), parts[number].fds)
            Session.restore(OFFER, {**parts, number: wrong})
        except RestoreError:
            pass
        assert not any(fd.closed for fd in fds_in(parts))


# ---- a snapshot in one piece, as programs before wrote it ----------------------------------------


@settings(deadline=None, max_examples=40)
@given(STORIES)
def test_a_session_goes_on_from_a_snapshot_in_one_piece(story: list[tuple[str, int]]) -> None:
    with Dialogue() as dialogue:
        for name, index in story:
            ACTS[name](dialogue, index)
        state = restore_earlier(OFFER, *whole_session(dialogue.state))
        assert state == dialogue.state
        assert Session(OFFER, state).snapshot() == dialogue.session.snapshot()


def test_a_snapshot_in_one_piece_of_another_version_or_device_is_an_error() -> None:
    with a_busy_dialogue() as dialogue, memory() as more:
        data, fds = whole_session(dialogue.state)
        with pytest.raises(RestoreError, match="4 rings, the device has 2"):
            restore_earlier(replace(OFFER, num_queues=2), data, fds)
        with pytest.raises(RestoreError, match="of version 4, not 5"):
            restore_earlier(OFFER, *whole_session(dialogue.state, 4))
        with pytest.raises(RestoreError, match="not all used"):
            restore_earlier(OFFER, data, {**fds, "more": more})
        name, _ = fds.popitem()
        with pytest.raises(RestoreError, match=f"'{name}' is no descriptor of this session"):
            restore_earlier(OFFER, data, fds)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_a_damaged_one_is_an_error_or_another_state(data: st.DataObject) -> None:
    with a_busy_dialogue() as dialogue:
        whole, fds = whole_session(dialogue.state)
        damaged = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        try:
            restore_earlier(OFFER, bytes(damaged), fds)
        except RestoreError:
            pass
        assert not any(fd.closed for fd in fds.values())


def test_the_structures_are_those_of_the_version() -> None:
    """Whoever changes one of them raises VERSION, and then this; and says in `earlier_snapshot`
    what becomes of a session of before.
    """
    shapes = {
        kind.__name__: kind.__struct_fields__
        for kind in (State, Vring, Addresses, Region, Xen, Inflight, InflightRegion, Bells, LogArea)
    }
    assert (EARLIER, VERSION) == (5, 6)
    assert {name: " ".join(fields) for name, fields in shapes.items()} == {
        "State": "rings owned features protocol_features status regions inflight backend_channel"
        " mtu log log_call transferring display postcopy staged",
        "Vring": "index size addresses base base_known kicked kick call err enabled started broken"
        " inflight bells polled muted",
        "Addresses": "desc used avail flags log",
        "Region": "guest_addr size user_addr mmap_offset fd xen",
        "Xen": "kind domain",
        "Inflight": "fd offset queue_size",
        "InflightRegion": "fd offset num_queues queue_size",
        "Bells": "kick call",
        "LogArea": "fd offset size",
    }


def test_the_largest_session_stays_small() -> None:
    with Dialogue(replace(OFFER, num_queues=256)) as dialogue:
        shared = memory(0x10000)
        for number in range(509):
            dialogue.tell("ADD_MEM_REG", [shared.dup()], **_any(dialogue.region(number)))
        shared.close()
        bells = [eventfd() for _ in range(2)]
        for index in range(100):
            for name, bell in zip(("SET_VRING_CALL", "SET_VRING_ERR"), bells, strict=True):
                dialogue.tell(name, [bell.dup()], value=index)
        parts = dialogue.session.snapshot()
        assert len(fds_in(parts)) == 709
        assert sum(len(part.data) for part in parts.values()) < 200_000
        for bell in bells:
            bell.close()


# ---- rings that are served again -----------------------------------------------------------------


def test_a_revived_ring_runs_and_needs_reset_goes_with_the_last() -> None:
    with a_busy_dialogue() as dialogue:
        dialogue.session.ring_broken(0, "bad")
        assert dialogue.session.ring_revived(1) is True
        assert dialogue.session.running() == (1,)
        assert dialogue.state.status & Status.NEEDS_RESET
        assert dialogue.session.ring_revived(0) is True
        assert dialogue.session.running() == (0, 1)
        assert not dialogue.state.status & Status.NEEDS_RESET


@pytest.mark.parametrize("index", [-1, 0, 2, 4, 1000])
def test_a_ring_that_is_not_broken_is_not_revived(index: int) -> None:
    with a_busy_dialogue() as dialogue:
        before = dialogue.state
        assert dialogue.session.ring_revived(index) is False
        assert dialogue.state is before


def test_a_ring_revived_during_a_step_stays_so() -> None:
    with a_busy_dialogue() as dialogue:

        def perform(effect: object) -> None:
            dialogue.session.ring_revived(1)

        dialogue.result = perform
        assert dialogue.tell("ADD_MEM_REG", [memory(0x10000)], **_any(dialogue.region(64))).ok
        assert dialogue.session.running() == (0, 1)
        assert not dialogue.state.status & Status.NEEDS_RESET


def test_thawing_leaves_no_descriptor_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with a_busy_dialogue() as dialogue:
        session = Session.restore(OFFER, copied(dialogue.session.snapshot()))
        session.release()
    assert len(os.listdir("/proc/self/fd")) == before
