"""Behind an IOMMU: which messages are legal, what workers are told, and what is answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from tests.vhost_user.dialogue import (
    FEATURES,
    GUEST,
    OFFER,
    PROTOCOL_FEATURES,
    RAM,
    USER,
    Dialogue,
    Fields,
    Outcome,
    P,
    eventfd,
    memory,
)
from vuproc.spec.iotlb import Access, IotlbType
from vuproc.spec.virtio import Feature
from vuproc.vhost_user.effects import (
    AddRegion,
    EffectFailed,
    InvalidateIotlb,
    SetMemory,
    StartRing,
    UpdateIotlb,
)
from vuproc.vhost_user.replay import replay

TRANSLATED = FEATURES & ~Feature.LOG_ALL | Feature.ACCESS_PLATFORM
OFFERED = replace(OFFER, features=FEATURES | Feature.ACCESS_PLATFORM)
END = 1 << 64
FAR = 0x1234_5678_0000
"""An I/O virtual address, which is nobody's otherwise."""


@pytest.fixture
def behind() -> Iterator[Dialogue]:
    with Dialogue(OFFERED) as dialogue:
        assert dialogue.tell("SET_FEATURES", value=TRANSLATED).ok
        assert dialogue.remember().ok
        yield dialogue


def say(dialogue: Dialogue, kind: int = IotlbType.UPDATE, **changes: Any) -> Outcome:
    """IOTLB_MSG, by default of a page that there is."""
    fields: Fields = {"iova": FAR, "size": 4096, "user_addr": USER, "perm": 3, "type": kind}
    return dialogue.tell("IOTLB_MSG", **{**fields, **changes})


def test_an_update_goes_to_workers_and_is_answered(behind: Dialogue) -> None:
    outcome = say(behind)
    assert outcome.effects == (UpdateIotlb(FAR, 4096, USER, Access.READ | Access.WRITE),)
    assert outcome.fields == {"value": 0}


@pytest.mark.parametrize("need_reply", [False, True])
def test_each_is_answered_whether_it_asks_or_not(behind: Dialogue, need_reply: bool) -> None:
    fields: Fields = {"iova": FAR, "size": 4096, "user_addr": USER, "perm": 3, "type": 2}
    assert behind.tell("IOTLB_MSG", need_reply=need_reply, **fields).fields == {"value": 0}
    fields["size"] = 0
    assert behind.tell("IOTLB_MSG", need_reply=need_reply, **fields).fields == {"value": 1}


@pytest.mark.parametrize(
    ("first", "size", "last"),
    [
        (FAR, 4096, FAR + 4095),
        (0, 0, END - 1),  # a mask of all ones, and one more
        (FAR, END - 1, END - 1),
        (END - 4096, 4096, END - 1),
        (0, END - 1, END - 2),
    ],
)
def test_an_invalidation_of_any_range(behind: Dialogue, first: int, size: int, last: int) -> None:
    outcome = say(behind, IotlbType.INVALIDATE, iova=first, size=size, user_addr=0, perm=0)
    assert outcome.effects == (InvalidateIotlb(first, last),)
    assert outcome.fields == {"value": 0}


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 0},
        {"iova": END - 4096, "size": 4097},
        {"user_addr": END - 4096, "size": 8192},
        {"perm": 4},
        {"user_addr": USER + RAM},
        {"user_addr": USER + RAM - 4096, "size": 4097},
        {"user_addr": USER - 1},
        {"type": IotlbType.MISS},
        {"type": IotlbType.ACCESS_FAIL},
        {"type": 0},
        {"type": 200},
    ],
)
def test_what_is_refused_changes_nothing(behind: Dialogue, changes: dict[str, int]) -> None:
    before = behind.state
    outcome = say(behind, **changes)
    assert outcome.failed and not outcome.effects and outcome.fields == {"value": 1}
    assert behind.state is before


def test_an_update_of_no_access_needs_no_memory(behind: Dialogue) -> None:
    assert say(behind, perm=0, user_addr=0).effects == (UpdateIotlb(FAR, 4096, 0, 0),)


def test_an_update_over_two_regions(behind: Dialogue) -> None:
    region: Fields = {"guest_addr": GUEST + (1 << 40), "size": RAM, "user_addr": USER + RAM}
    assert behind.tell("ADD_MEM_REG", [memory()], **region, mmap_offset=0).ok
    assert say(behind, user_addr=USER + RAM - 4096, size=8192).ok


def test_a_worker_that_fails_is_a_failure(behind: Dialogue) -> None:
    behind.result = lambda effect: EffectFailed("gone")
    assert say(behind).fields == {"value": 1}


def test_it_is_not_for_a_driver_without_the_feature() -> None:
    with Dialogue(OFFERED) as dialogue:
        assert dialogue.tell("SET_FEATURES", value=TRANSLATED & ~Feature.ACCESS_PLATFORM).ok
        dialogue.remember()
        assert say(dialogue).failed
        assert say(dialogue, IotlbType.INVALIDATE).failed


def test_the_feature_needs_somebody_to_ask() -> None:
    protocol = PROTOCOL_FEATURES & ~P.BACKEND_REQ
    with Dialogue(OFFERED, protocol=protocol) as dialogue:
        assert dialogue.tell("SET_FEATURES", value=TRANSLATED).failed
        assert dialogue.tell("SET_FEATURES", value=TRANSLATED & ~Feature.ACCESS_PLATFORM).ok


def test_rings_may_lie_anywhere(behind: Dialogue) -> None:
    """Where that is, their workers ask."""
    assert behind.tell("SET_VRING_NUM", index=0, num=128).ok
    assert behind.tell("SET_VRING_BASE", index=0, num=0).ok
    assert behind.address(0, FAR).ok
    (started,) = behind.tell("SET_VRING_KICK", [eventfd()], value=0).effects
    assert isinstance(started, StartRing) and started.setup.desc == FAR
    assert behind.address(1, FAR + 1).failed, "aligned they are even so"


def test_rings_of_others_lie_in_memory_as_ever() -> None:
    with Dialogue(OFFERED) as dialogue:
        assert dialogue.tell("SET_FEATURES", value=TRANSLATED & ~Feature.ACCESS_PLATFORM).ok
        dialogue.remember()
        assert dialogue.address(0, FAR).failed


def test_a_fresh_worker_is_told_of_no_translation(behind: Dialogue) -> None:
    """It asks by itself: the session keeps none."""
    assert behind.start(0).ok
    before = behind.state
    assert say(behind).ok
    assert behind.state == before
    assert not [effect for effect in replay(behind.state) if isinstance(effect, UpdateIotlb)]


# ---- guest addresses instead of the front-end's own ----------------------------------------------


@pytest.fixture
def guest_addresses() -> Iterator[Dialogue]:
    protocol = PROTOCOL_FEATURES | P.GPA_ADDRESSES
    with Dialogue(replace(OFFERED, protocol_features=protocol), protocol=protocol) as dialogue:
        yield dialogue


@pytest.mark.parametrize("user_addr", [0, GUEST, USER])
def test_regions_and_rings_by_guest_address(guest_addresses: Dialogue, user_addr: int) -> None:
    dialogue = guest_addresses
    assert dialogue.tell("SET_FEATURES", value=FEATURES & ~Feature.LOG_ALL).ok
    item = {"guest_addr": GUEST, "size": RAM, "user_addr": user_addr, "mmap_offset": 0}
    (told,) = dialogue.tell("SET_MEM_TABLE", [memory()], items=[item]).effects
    assert isinstance(told, SetMemory) and told.regions[0].user_addr == GUEST
    assert dialogue.address(0, GUEST).ok and dialogue.address(1, USER).failed
    more: Fields = {**item, "guest_addr": GUEST + RAM}
    (added,) = dialogue.tell("ADD_MEM_REG", [memory()], **more).effects
    assert isinstance(added, AddRegion) and added.region.user_addr == GUEST + RAM
    assert dialogue.tell("REM_MEM_REG", **more).ok


def test_translations_by_guest_address(guest_addresses: Dialogue) -> None:
    assert guest_addresses.tell("SET_FEATURES", value=TRANSLATED).ok
    item = {"guest_addr": GUEST, "size": RAM, "user_addr": 0, "mmap_offset": 0}
    assert guest_addresses.tell("SET_MEM_TABLE", [memory()], items=[item]).ok
    assert say(guest_addresses, user_addr=GUEST).ok
    assert say(guest_addresses, user_addr=USER).failed
