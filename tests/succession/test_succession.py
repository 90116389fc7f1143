"""A master that dies at any step of a session: its successor goes on, and nobody can tell."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Sequence

import pytest

from tests.succession.stage import BURST, QUEUES, Outcome, Shared, play
from vuproc.fd import Fd
from vuproc.spec.virtio import Status
from vuproc.testing.frontend import FrontEnd
from vuproc.testing.memory import Ram

EVERY_STEP = bool(os.environ.get("VUPROC_EVERY_STEP"))
"""The long form: a death at each step. Otherwise at one of each kind."""
SEED = 7
FIRST_BASE = 40


def life_of_a_disk(front_end: FrontEnd, shared: Shared) -> None:
    """Everything that a front-end says to a disk, and what it must hear."""
    ram = Ram(1 << 16)
    bells = [Fd(os.eventfd(0)) for _ in range(3)]
    front_end.negotiate()
    front_end.open_channel()
    front_end.set_status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
    assert front_end.get_status() == Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
    front_end.set_memory(ram.regions)
    for index in range(QUEUES):
        start(front_end, ram, bells, index, base=FIRST_BASE)
    front_end.set_config(4, b"wxyz")
    assert front_end.get_config(4, 8) == b"wxyz\0\0\0\0"
    # The same descriptors again, and without an answer to wait for.
    front_end.request("SET_VRING_CALL", [bells[1]], need_reply=False, value=0)
    front_end.request("SET_VRING_ERR", [bells[2]], need_reply=False, value=1)
    first = stop(front_end, shared, 0, begun_at=FIRST_BASE)
    start(front_end, ram, bells, 0, base=first)
    stop(front_end, shared, 1, begun_at=FIRST_BASE)
    second = stop(front_end, shared, 0, begun_at=first)
    assert second >= first + BURST
    front_end.set_status(0)
    ram.close()


def start(front_end: FrontEnd, ram: Ram, bells: Sequence[Fd], index: int, *, base: int) -> None:
    place = ram.regions[0].user_addr + 8192 * index
    front_end.request("SET_VRING_NUM", index=index, num=8)
    front_end.request("SET_VRING_BASE", index=index, num=base)
    front_end.request(
        "SET_VRING_ADDR", index=index, desc=place, avail=place + 1024, used=place + 2048
    )
    for name, bell in zip(("ERR", "CALL", "KICK"), bells, strict=True):
        front_end.request(f"SET_VRING_{name}", [bell], value=index)
    front_end.request("SET_VRING_ENABLE", index=index, num=1)


def stop(front_end: FrontEnd, shared: Shared, index: int, *, begun_at: int) -> int:
    """Stop a ring: what it says of where it is, is what was done."""
    base = int(front_end.request("GET_VRING_BASE", index=index)["num"])
    assert base == shared.ring(index, Shared.POSITION) >= begun_at + BURST
    # Nothing is left out but what was before the first base, and nothing is done twice.
    assert shared.ring(index, Shared.SKIPPED) == FIRST_BASE
    assert base == FIRST_BASE + shared.ring(index, Shared.DONE)
    return base


def may_be_lost(label: str) -> bool:
    """The windows: a connection that nobody knows of yet; descriptors that were taken, and of which
    the journal does not speak yet.
    """
    return label.startswith("after take SET_") or label in (
        "before store connection",
        "before store a descriptor",
        "after store a descriptor",
        "before write Applying with fds",
    )


def test_nobody_dies() -> None:
    outcome = play(life_of_a_disk)
    assert outcome == Outcome(1, outcome.steps, "", False, [])


def chosen(steps: list[str]) -> list[int]:
    if EVERY_STEP:
        return list(range(1, len(steps) + 1))
    last_of_its_kind = {label: number for number, label in enumerate(steps, 1)}
    return sorted(last_of_its_kind.values())


@pytest.mark.timeout(1200 if EVERY_STEP else 120)
def test_a_master_dies_at_any_step() -> None:
    for step in chosen(play(life_of_a_disk).steps):
        outcome = play(life_of_a_disk, [step])
        assert outcome.masters == 2
        assert outcome.stored == [], outcome
        assert may_be_lost(outcome.label) or not outcome.lost, outcome


@pytest.mark.timeout(1200 if EVERY_STEP else 120)
def test_successors_die_too() -> None:
    steps = len(play(life_of_a_disk).steps)
    chance = random.Random(None if EVERY_STEP else SEED)
    for _ in range(500 if EVERY_STEP else 20):
        dooms = [chance.randrange(1, steps), *chance.choices(range(1, 60), k=2)]
        outcome = play(life_of_a_disk, dooms)
        assert outcome.stored == [], (dooms, outcome)
        assert not outcome.lost or outcome.masters > 1, (dooms, outcome)


@pytest.mark.timeout(120)
def test_a_descriptor_that_was_not_kept_ends_the_session() -> None:
    """Whichever it is: nothing is resumed by half."""
    steps = play(life_of_a_disk).steps
    # Both rings run, and the front-end has asked for something.
    quiet = steps.index("before take GET_CONFIG") + 1
    names = []
    for loses in itertools.count():
        outcome = play(life_of_a_disk, [quiet], loses)
        if not outcome.lost_name:
            break
        assert outcome.lost and outcome.stored == [], outcome
        names.append(outcome.lost_name)
    assert not outcome.lost
    known = {"session.connection", "session.journal", "session.outbox-read", "session.outbox-write"}
    assert known < set(names) and len(names) > len(known) + 5
