"""Memory of a Xen domain: which regions are taken, and what the workers are told of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from tests.vhost_user.dialogue import (
    GUEST,
    OFFER,
    PROTOCOL_FEATURES,
    USER,
    Dialogue,
    Outcome,
    P,
    eventfd,
    memory,
)
from vuproc.fd import Fd
from vuproc.spec.vhost_user import MEM_REGION, MEM_REGION_XEN, MEM_TABLE_HEADER, REGIONS
from vuproc.spec.vhost_user import XEN_GRANTED as GRANTED
from vuproc.vhost_user.effects import AddRegion, RemoveRegion, SetMemory, StartRing, Xen, XenKind
from vuproc.vhost_user.snapshot import restore

PROTOCOL = PROTOCOL_FEATURES | P.XEN_MMAP
OFFERED = replace(OFFER, protocol_features=int(PROTOCOL))
SIZE = 0x10000
FOREIGN, GRANT, NO_ADVANCE, NO_ADVANCE_8 = 0x1, 0x2, 0x8, 0x100


@pytest.fixture
def dialogue() -> Iterator[Dialogue]:
    with Dialogue(OFFERED, protocol=PROTOCOL) as made:
        yield made


def device() -> Fd:
    """What is open for reading and writing, and no file."""
    return Fd(os.open("/dev/null", os.O_RDWR))


def region(flags: int, **more: int) -> dict[str, Any]:
    address = GRANTED if flags & GRANT else GUEST
    return {
        "guest_addr": address,
        "size": SIZE,
        "user_addr": USER,
        "mmap_offset": 0,
        "xen_flags": flags,
        "domid": 1,
        **more,
    }


def table(dialogue: Dialogue, *items: dict[str, Any], fd: Fd | None = None) -> Outcome:
    fds = [device() if fd is None else fd for _ in items]
    return dialogue.tell("SET_MEM_TABLE", fds, items=list(items))


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        (FOREIGN, XenKind.FOREIGN),
        (GRANT, XenKind.GRANT),
        (GRANT | NO_ADVANCE, XenKind.ON_DEMAND),
        (GRANT | NO_ADVANCE_8, XenKind.ON_DEMAND),
    ],
)
def test_a_region_is_mapped_as_its_flags_say(dialogue: Dialogue, flags: int, kind: XenKind) -> None:
    outcome = table(dialogue, region(flags))
    assert outcome.ok, outcome
    (effect,) = outcome.effects
    assert isinstance(effect, SetMemory)
    assert [each.xen for each in effect.regions] == [Xen(kind, 1)]
    # And a successor of the master knows it.
    state = restore(OFFERED, dialogue.session.snapshot())
    assert state.regions == dialogue.state.regions


def test_an_ordinary_region_may_stand_beside_them(dialogue: Dialogue) -> None:
    outcome = table(dialogue, region(0), fd=memory())
    assert outcome.ok
    assert [each.xen for each in dialogue.state.regions] == [None]


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (region(FOREIGN | GRANT), "mean nothing together"),
        (region(NO_ADVANCE), "mean nothing together"),
        (region(FOREIGN | NO_ADVANCE), "mean nothing together"),
        (region(GRANT | NO_ADVANCE | NO_ADVANCE_8), "mean nothing together"),
        (region(0x10), "mean nothing together"),
        (region(1 << 31), "mean nothing together"),
        (region(FOREIGN, size=0), "size 0"),
        (region(FOREIGN, size=1 << 63, guest_addr=(1 << 63) + 1), "wraps around"),
        (region(FOREIGN, user_addr=(1 << 64) - 1), "wraps around"),
        (region(FOREIGN, mmap_offset=4096), "an offset"),
        (region(GRANT, mmap_offset=4096), "an offset"),
        (region(FOREIGN, domid=0x7FF0), "no number of a domain"),
        (region(FOREIGN, domid=1 << 16), "no number of a domain"),
        (region(GRANT, guest_addr=GUEST), "no address of a grant"),
        (region(GRANT, guest_addr=GRANTED | (1 << 44) - 4096, size=8192), "no number of 32 bits"),
    ],
)
def test_a57_a_region_that_makes_no_sense_is_refused(
    dialogue: Dialogue, item: dict[str, Any], reason: str
) -> None:
    outcome = table(dialogue, item)
    assert outcome.failed
    assert reason in (outcome.refused or "")
    single = dialogue.tell("ADD_MEM_REG", [device()], **item)
    assert single.failed
    assert reason in (single.refused or "")


def test_a57_a_descriptor_that_can_be_no_device_of_xens_is_refused(dialogue: Dialogue) -> None:
    assert "none of Xen's devices" in (table(dialogue, region(FOREIGN), fd=eventfd()).refused or "")
    with Fd(os.open("/dev/null", os.O_RDONLY)) as fd:
        outcome = table(dialogue, region(FOREIGN), fd=fd.dup())
    assert "not open for reading and writing" in (outcome.refused or "")


def test_a57_such_regions_want_the_feature() -> None:
    with Dialogue(OFFERED, protocol=PROTOCOL_FEATURES) as dialogue:
        outcome = table(dialogue, region(FOREIGN))
        assert "XEN_MMAP was not negotiated" in (outcome.refused or "")


def test_who_took_the_feature_may_send_ordinary_regions_all_the_same(dialogue: Dialogue) -> None:
    """As QEMU does, which takes the bit without knowing what it is."""
    assert dialogue.tell("SET_MEM_TABLE", [memory()], items=[dialogue.region(0)]).ok
    assert [each.xen for each in dialogue.state.regions] == [None]


@pytest.mark.parametrize("count", [1, 2, 4, 5, 8])
def test_the_length_tells_the_form_of_a_table(count: int) -> None:
    for item, layout in ((region(FOREIGN), MEM_REGION_XEN), (region(0), MEM_REGION)):
        values = {name: item[name] for name in layout.fields}
        body = REGIONS.encode(items=[values] * count)
        assert len(body) == MEM_TABLE_HEADER.size + count * layout.size
        assert REGIONS.decode(body)["items"] == [values] * count


def test_regions_come_and_go_singly(dialogue: Dialogue) -> None:
    item = region(GRANT | NO_ADVANCE)
    (added,) = dialogue.tell("ADD_MEM_REG", [device()], **item).effects
    assert isinstance(added, AddRegion)
    (removed,) = dialogue.tell("REM_MEM_REG", **item).effects
    assert isinstance(removed, RemoveRegion)
    assert removed.region == added.region


def test_what_is_mapped_on_demand_has_no_user_address(dialogue: Dialogue) -> None:
    """Front-ends send 0 for each of them, and a ring does not lie there."""
    items = [
        region(GRANT | NO_ADVANCE, user_addr=0, guest_addr=GRANTED + number * SIZE)
        for number in range(3)
    ]
    assert table(dialogue, *items).ok
    assert table(dialogue, region(GRANT), region(GRANT, guest_addr=GRANTED + SIZE)).failed


@pytest.mark.parametrize("base", [USER, GUEST], ids=["user", "guest"])
def test_a_ring_is_where_its_address_says_whichever_it_is(dialogue: Dialogue, base: int) -> None:
    assert table(dialogue, region(FOREIGN)).ok
    assert dialogue.tell("SET_VRING_NUM", index=0, num=128).ok
    assert dialogue.tell(
        "SET_VRING_ADDR", index=0, desc=base, avail=base + 0x1000, used=base + 0x2000
    ).ok
    assert dialogue.tell("SET_VRING_BASE", index=0, num=0).ok
    (start,) = dialogue.tell("SET_VRING_KICK", [eventfd()], value=0).effects
    assert isinstance(start, StartRing)
    setup = start.setup
    assert (setup.desc, setup.avail, setup.used) == (USER, USER + 0x1000, USER + 0x2000)
