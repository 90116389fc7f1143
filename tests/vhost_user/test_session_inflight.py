"""The front-end's in-flight region: who makes it, what is refused, which rings use it and when."""

from __future__ import annotations

import os
from typing import Any

import pytest
from msgspec.structs import replace

from tests.vhost_user.dialogue import (
    FEATURES,
    OFFER,
    PROTOCOL_FEATURES,
    Dialogue,
    Outcome,
    eventfd,
    kinds,
    memory,
    stream,
)
from vuproc.fd import Fd
from vuproc.spec.inflight import split_record_bytes
from vuproc.spec.vhost_user import FRONT_END, ProtocolFeature
from vuproc.vhost_user.effects import (
    Effect,
    EffectFailed,
    Inflight,
    MakeInflight,
    StartRing,
    StopRing,
)
from vuproc.vhost_user.replay import replay
from vuproc.vhost_user.session import Session
from vuproc.vhost_user.wire import Message

STRIDE = split_record_bytes(128)


def give(dialogue: Dialogue, file: Fd | None = None, **changes: Any) -> Outcome:
    """SET_INFLIGHT_FD for two queues of 128; `changes` to its fields."""
    fields: dict[str, Any] = {
        "mmap_size": 2 * STRIDE,
        "mmap_offset": 0,
        "num_queues": 2,
        "queue_size": 128,
    }
    fd = memory(2 * STRIDE) if file is None else file
    return dialogue.tell("SET_INFLIGHT_FD", [fd], **{**fields, **changes})


def is_closed(fd: Fd) -> bool:
    """As the property, of which mypy believes that it never changes."""
    return fd.closed


def record_of(outcome: Outcome) -> Inflight | None:
    (start,) = outcome.effects
    assert isinstance(start, StartRing)
    return start.setup.inflight


# ---- GET_INFLIGHT_FD -----------------------------------------------------------------------------


def test_a_region_is_made_and_described_and_not_kept() -> None:
    with Dialogue() as dialogue:
        before = dialogue.state.fds()
        outcome = dialogue.tell("GET_INFLIGHT_FD", num_queues=2, queue_size=128)
        assert outcome.effects == (MakeInflight(2, STRIDE),)
        assert outcome.fields == {
            "mmap_size": 2 * 2112,
            "mmap_offset": 0,
            "num_queues": 2,
            "queue_size": 128,
        }
        assert outcome.reply_sizes == (2 * 2112,)
        assert dialogue.state.fds() == before


def test_a34_two_hundred_regions_leave_nothing_behind() -> None:
    with Dialogue() as dialogue:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(200):
            assert dialogue.tell("GET_INFLIGHT_FD", num_queues=4, queue_size=256).ok
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("num_queues", "queue_size"),
    [(65535, 65535), (5, 256), (4, 257), (0, 256), (4, 0), (0, 0), (65535, 1), (1, 65535)],
)
def test_a33_a_region_beyond_the_device_is_not_made(num_queues: int, queue_size: int) -> None:
    with Dialogue() as dialogue:
        outcome = dialogue.tell("GET_INFLIGHT_FD", num_queues=num_queues, queue_size=queue_size)
        assert outcome.effects == ()
        assert outcome.refused
        # "No region": the size is 0 and no descriptor comes.
        assert outcome.fields is not None
        assert outcome.fields["mmap_size"] == 0
        assert outcome.reply_sizes == ()


def test_a_region_that_cannot_be_made_is_answered_as_none() -> None:
    with Dialogue() as dialogue:
        dialogue.result = lambda effect: EffectFailed("no memory")
        outcome = dialogue.tell("GET_INFLIGHT_FD", num_queues=1, queue_size=128)
        assert outcome.refused == "no memory"
        assert outcome.fields is not None
        assert outcome.fields["mmap_size"] == 0


@pytest.mark.parametrize("bad", [None, 5, ("x", 1), "file", "negative"])
def test_a_result_that_is_no_region_is_a_failure_and_is_closed(bad: Any) -> None:
    with Dialogue() as dialogue:
        fd = memory(64)
        result = {"file": fd, "negative": (fd, -1)}.get(bad, bad) if isinstance(bad, str) else bad
        dialogue.result = lambda effect: result
        outcome = dialogue.tell("GET_INFLIGHT_FD", num_queues=1, queue_size=128)
        assert "MakeInflight gave" in str(outcome.refused)
        assert outcome.reply_sizes == ()
        assert fd.closed == (bad == "negative")
        fd.close()


def test_the_reply_descriptors_are_the_steps_until_they_are_closed() -> None:
    session = Session(OFFER)
    row = FRONT_END.named("SET_PROTOCOL_FEATURES")
    value = int(ProtocolFeature.INFLIGHT_SHMFD)
    session.handle(Message(row.number, payload=row.payload.encode(value=value))).finish([])
    row = FRONT_END.named("GET_INFLIGHT_FD")
    payload = row.payload.encode(num_queues=1, queue_size=4)
    step = session.handle(Message(row.number, payload=payload))
    assert not step.reply_fds
    fd = memory(128)
    assert step.finish([(fd, 128)]) is not None
    assert list(step.reply_fds) == [fd]
    session.release()
    assert not is_closed(fd)
    for _ in range(2):
        step.close_reply_fds()
        assert is_closed(fd)
        assert list(step.reply_fds) == []


# ---- SET_INFLIGHT_FD -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mmap_size": 2 * STRIDE - 64}, "take"),
        ({"mmap_size": 2 * STRIDE + 64}, "ends at"),
        ({"mmap_size": 0}, "take"),
        ({"mmap_size": (1 << 64) - 1}, "ends at"),
        ({"mmap_offset": 64}, "ends at"),
        ({"mmap_offset": 1}, "multiple of 64"),
        ({"mmap_offset": (1 << 64) - 64}, "ends at"),
        ({"num_queues": 0}, "of 0 queues"),
        ({"num_queues": 5, "mmap_size": 5 * STRIDE}, "of 5 queues"),
        ({"num_queues": 4, "mmap_size": 4 * STRIDE}, "ends at"),
        ({"queue_size": 0}, "queue size 0"),
        ({"queue_size": 32769}, "queue size 32769"),
        ({"queue_size": 256}, "take"),
    ],
)
def test_a35_a_region_that_is_not_what_it_claims_is_refused(
    changes: dict[str, Any], reason: str
) -> None:
    with Dialogue() as dialogue:
        before = dialogue.state
        outcome = give(dialogue, **changes)
        assert outcome.failed
        assert reason in str(outcome.refused)
        assert dialogue.state is before


@pytest.mark.parametrize("kind", ["eventfd", "socket", "directory", "read-only", "path"])
def test_a_region_must_be_a_file_for_reading_and_writing(kind: str) -> None:
    if kind == "eventfd":
        fd = eventfd()
    elif kind == "socket":
        fd = stream()
    elif kind == "directory":
        fd = Fd(os.open("/", os.O_RDONLY | os.O_DIRECTORY))
    else:
        flags = os.O_RDONLY if kind == "read-only" else os.O_PATH
        with memory(2 * STRIDE) as file:
            fd = Fd(os.open(f"/proc/self/fd/{file.fileno()}", flags))
    with Dialogue() as dialogue:
        assert give(dialogue, fd).failed
        assert fd.closed


def test_messages_need_the_feature() -> None:
    with Dialogue(protocol=int(ProtocolFeature.REPLY_ACK)) as dialogue:
        assert "INFLIGHT_SHMFD" in str(give(dialogue).refused)
        outcome = dialogue.tell("GET_INFLIGHT_FD", num_queues=1, queue_size=1)
        assert "INFLIGHT_SHMFD" in str(outcome.refused)


def test_a_region_may_begin_inside_its_file_and_be_of_larger_queues() -> None:
    with Dialogue() as dialogue:
        size = split_record_bytes(1024)
        changes = {"mmap_size": size, "mmap_offset": 4096 + 64, "num_queues": 1, "queue_size": 1024}
        assert give(dialogue, memory(4096 + 64 + size), **changes).ok
        dialogue.remember()
        record = record_of(dialogue.start(0))
        assert record is not None
        assert (record.offset, record.queue_size) == (4096 + 64, 1024)


# ---- rings ---------------------------------------------------------------------------------------


def test_each_ring_starts_with_its_own_record_whatever_came_first() -> None:
    with Dialogue() as dialogue:
        dialogue.tell("SET_FEATURES", value=FEATURES)
        assert give(dialogue).effects == ()  # QEMU: before the memory table
        dialogue.remember()
        for index in (0, 1):
            record = record_of(dialogue.start(index))
            assert record is not None
            assert record.fd is dialogue.state.inflight.fd  # type: ignore[union-attr]
            assert (record.offset, record.queue_size) == (index * STRIDE, 128)
        # The region has no record for it: the back-end keeps its own.
        assert record_of(dialogue.start(2)) is None


def test_a_region_that_comes_after_the_table_and_the_size_counts_too() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        assert dialogue.tell("SET_VRING_NUM", index=0, num=128).ok
        assert give(dialogue).ok  # Cloud Hypervisor: before the addresses
        assert record_of(dialogue.start(0)) is not None


def test_replay_names_the_record() -> None:
    with Dialogue() as dialogue:
        give(dialogue)
        dialogue.remember()
        record = record_of(dialogue.start(1))
        (*_, start) = list(replay(dialogue.session.state))
        assert isinstance(start, StartRing)
        assert start.setup.inflight == record


def test_a_ring_larger_than_its_record_does_not_start() -> None:
    with Dialogue() as dialogue:
        give(dialogue)
        dialogue.remember()
        outcome = dialogue.start(0, size=256)
        assert outcome.failed
        assert "256 is above 128" in str(outcome.refused)
        assert dialogue.tell("SET_VRING_NUM", index=0, num=64).ok
        assert record_of(dialogue.tell("SET_VRING_KICK", [eventfd()], value=0)) is not None


def test_a_smaller_region_may_come_before_the_smaller_size() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0, size=256)
        dialogue.tell("GET_VRING_BASE", index=0, num=0)
        assert give(dialogue).ok
        assert record_of(dialogue.start(0, size=128)) is not None


def test_a_region_with_room_starts_the_ring_that_waited_for_it() -> None:
    with Dialogue() as dialogue:
        give(dialogue)
        assert dialogue.start(0, size=256).ok  # no memory yet
        assert kinds(dialogue.remember().effects) == ["SetMemory"]
        size = split_record_bytes(256)
        outcome = give(dialogue, memory(size), mmap_size=size, num_queues=1, queue_size=256)
        assert record_of(outcome) is not None


def test_a_running_ring_keeps_its_record_until_it_stops() -> None:
    with Dialogue() as dialogue:
        old, new = memory(2 * STRIDE), memory(2 * STRIDE)
        give(dialogue, old)
        dialogue.remember()
        dialogue.start(0)
        assert give(dialogue, new).effects == ()
        assert not is_closed(old)
        (*_, start) = list(replay(dialogue.session.state))
        assert isinstance(start, StartRing)
        assert start.setup.inflight is not None
        assert start.setup.inflight.fd is old
        dialogue.tell("GET_VRING_BASE", index=0, num=0)
        assert is_closed(old)
        record = record_of(dialogue.start(0))
        assert record is not None
        assert record.fd is new


def test_a_reset_of_the_device_forgets_the_region() -> None:
    with Dialogue() as dialogue:
        file = memory(2 * STRIDE)
        give(dialogue, file)
        dialogue.remember()
        dialogue.start(0)
        assert dialogue.tell("RESET_DEVICE").ok
        assert file.closed
        assert record_of(dialogue.start(0)) is None


def test_status_0_keeps_the_region_as_it_keeps_the_bases() -> None:
    with Dialogue() as dialogue:
        give(dialogue)
        dialogue.remember()
        dialogue.start(0)
        assert dialogue.tell("SET_STATUS", value=0).ok
        assert record_of(dialogue.start(0)) is not None


def test_the_end_of_the_session_closes_the_region() -> None:
    file = memory(2 * STRIDE)
    with Dialogue() as dialogue:
        give(dialogue, file)
    assert file.closed


def test_a_device_of_huge_queues_offers_no_more_than_the_specification_allows() -> None:
    with Dialogue(replace(OFFER, queue_size=1 << 20)) as dialogue:
        outcome = dialogue.tell("GET_INFLIGHT_FD", num_queues=1, queue_size=32769)
        assert outcome.refused


# ---- what is left in flight ----------------------------------------------------------------------

MIGRATES = ProtocolFeature.GET_VRING_BASE_INFLIGHT
SKIPS = MIGRATES | ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN
LEAVES = replace(OFFER, protocol_features=int(PROTOCOL_FEATURES | SKIPS))


def leaving(protocol: int = PROTOCOL_FEATURES | SKIPS, *, region: bool = True) -> Dialogue:
    """A ring that runs, with a record of the front-end's or without."""
    dialogue = Dialogue(LEAVES, protocol=protocol)
    dialogue.tell("SET_FEATURES", value=FEATURES)
    dialogue.remember()
    assert not region or give(dialogue).ok
    assert dialogue.start(1).ok
    dialogue.positions[1] = 17
    return dialogue


def asked(dialogue: Dialogue, name: str, num: int = 0) -> tuple[Effect, ...]:
    outcome = dialogue.tell(name, index=1, num=num)
    assert outcome.fields == {"index": 1, "num": 17}
    assert not dialogue.state.rings[1].started and dialogue.state.rings[1].base == 17
    return outcome.effects


def test_a_ring_stops_with_what_is_in_flight() -> None:
    with leaving() as dialogue:
        assert asked(dialogue, "GET_VRING_BASE_SKIP_DRAIN") == (StopRing(1, drains=False),)
        # And is stopped then: the same answer, without another stop.
        assert asked(dialogue, "GET_VRING_BASE_SKIP_DRAIN") == ()


@pytest.mark.parametrize(
    ("features", "num", "drains"),
    [
        (SKIPS, 0, True),
        (SKIPS, 1, False),
        (SKIPS, 2, True),
        # There is no other way to say it.
        (MIGRATES, 0, False),
        (MIGRATES, 1, False),
        (0, 0, True),
        (0, 1, True),
    ],
)
def test_what_the_older_message_means(features: int, num: int, drains: bool) -> None:
    """It meant this by feature 20 alone in QEMU 11.1, and by a number in yc-libvhost-server."""
    with leaving(PROTOCOL_FEATURES | features) as dialogue:
        assert asked(dialogue, "GET_VRING_BASE", num) == (StopRing(1, drains=drains),)


def test_nothing_is_left_in_a_record_that_does_not_come_along() -> None:
    with leaving(region=False) as dialogue:
        assert asked(dialogue, "GET_VRING_BASE_SKIP_DRAIN") == (StopRing(1),)


@pytest.mark.parametrize("missing", [*SKIPS, ProtocolFeature.INFLIGHT_SHMFD])
def test_it_takes_all_of_its_features(missing: ProtocolFeature) -> None:
    with leaving((PROTOCOL_FEATURES | SKIPS) & ~missing, region=False) as dialogue:
        outcome = dialogue.tell("GET_VRING_BASE_SKIP_DRAIN", index=1, num=0)
        assert outcome.closed is not None and f"{missing.name} was not negotiated" in outcome.closed
