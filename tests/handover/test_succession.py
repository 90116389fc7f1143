"""A master that dies at any step of a session: its successor goes on, and nobody can tell."""

from __future__ import annotations

import array
import fcntl
import functools
import itertools
import os
import random
import select
import termios
import time
from collections.abc import Sequence

import pytest

from tests.handover.stage import BOUND_S, BURST, QUEUES, Outcome, Shared, play
from vuproc.errors import Disconnected
from vuproc.fd import Fd
from vuproc.handover import checkpoint
from vuproc.spec.vhost_user import FRONT_END
from vuproc.spec.virtio import Status
from vuproc.testing.frontend import FrontEnd
from vuproc.testing.memory import Ram
from vuproc.vhost_user.wire import encode

EVERY_STEP = bool(os.environ.get("VUPROC_EVERY_STEP"))
"""The long form: a death at each step. Otherwise at one of each kind."""
SEED = 7
FIRST_BASE = 40
PIPELINED = {"GET_CONFIG": 200, "GET_INFLIGHT_FD": 400}
"""Messages whose answers do not fit into a socket."""
AT_ONCE = 200
"""Messages that fit."""


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
    the state file does not speak yet.
    """
    return label.startswith("after take SET_") or label in (
        "before store connection",
        "before store a descriptor",
        "after store a descriptor",
        "before write Applying with fds",
        "before store inside write Applying with fds",
        "after store inside write Applying with fds",
    )


def test_nobody_dies() -> None:
    outcome = play(life_of_a_disk)
    assert outcome == Outcome(1, outcome.steps, "", False, [])


def chosen(steps: list[str]) -> list[int]:
    if EVERY_STEP:
        return list(range(1, len(steps) + 1))
    last_of_its_kind = {label: number for number, label in enumerate(steps, 1)}
    return sorted(last_of_its_kind.values())


@pytest.mark.timeout(1200 if EVERY_STEP else 240)
def test_a_master_dies_at_any_step() -> None:
    for step in chosen(play(life_of_a_disk).steps):
        outcome = play(life_of_a_disk, [step])
        assert outcome.masters == 2
        assert outcome.stored == [], outcome
        assert may_be_lost(outcome.label) or not outcome.lost, outcome


@pytest.mark.timeout(1200 if EVERY_STEP else 120)
def test_e6_a_program_before_dies_at_any_step() -> None:
    """Its state file is of version 1: the successor goes on from it."""
    steps = chosen(play(life_of_a_disk).steps)
    for step in steps if EVERY_STEP else steps[:: len(steps) // 16]:
        outcome = play(life_of_a_disk, [step], earlier=True)
        assert outcome.masters == 2
        assert outcome.stored == [], outcome
        assert may_be_lost(outcome.label) or not outcome.lost, outcome


@pytest.mark.timeout(1200 if EVERY_STEP else 120)
def test_e6_its_successor_dies_too_before_it_has_written_its_own() -> None:
    steps = play(life_of_a_disk).steps
    # Both rings run, and the front-end has asked for something.
    quiet = steps.index("before take GET_CONFIG") + 1
    for step in range(1, 60) if EVERY_STEP else range(1, 24, 3):
        outcome = play(life_of_a_disk, [quiet, step], earlier=True)
        assert outcome.masters == 3
        assert not outcome.lost and outcome.stored == [], (step, outcome)


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
    known = {
        "session.connection",
        "session.journal",
        "session.outbox-read",
        "session.outbox-write",
    }
    assert known < set(names) and len(names) > len(known) + 5


def asks_and_does_not_listen(name: str, front_end: FrontEnd, shared: Shared) -> None:
    """The same question over and over, and no answer is read before the last is asked."""
    front_end.negotiate()
    row = FRONT_END.named(name)
    for number in range(PIPELINED[name]):
        if number == AT_ONCE:
            await_queued(front_end, number * len(encode(0, row.reply_payload.encode())))
        front_end.send(encode(row.number, row.payload.encode(**question(name, number))))
    shared.await_waiting()
    for number in range(PIPELINED[name]):
        answer = front_end.receive(name)
        assert (answer.name, len(answer.fds)) == (name, row.reply_fds[1])
        fields = row.reply_payload.decode(answer.payload)
        assert question(name, number).items() <= fields.items()
        answer.close()


def await_queued(front_end: FrontEnd, size: int) -> None:
    """Until so many bytes of answers wait to be read."""
    deadline = time.monotonic() + BOUND_S
    count = array.array("i", [0])
    while count[0] < size:
        assert time.monotonic() < deadline
        time.sleep(0.001)
        fcntl.ioctl(front_end.socket, termios.FIONREAD, count)


def question(name: str, number: int) -> dict[str, int]:
    if name == "GET_CONFIG":
        return {"offset": number % 16, "size": 1, "data": b"\0"}  # type: ignore[dict-item]
    return {"num_queues": 1 + number % QUEUES, "queue_size": 8}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["GET_CONFIG", "GET_INFLIGHT_FD"])
def test_a12_a_master_dies_while_its_answer_waits_for_room(name: str) -> None:
    """The successor sends it, or the rest of it, once; with its descriptor if it has one."""
    script = functools.partial(asks_and_does_not_listen, name)
    steps = play(script).steps
    # What is noted when the socket has taken nothing; a master then waits.
    full = "after write Applying" if name == "GET_INFLIGHT_FD" else "after send"
    again = "before write Replying" if name == "GET_INFLIGHT_FD" else "before send"
    waits = [n for n, pair in enumerate(itertools.pairwise(steps), 1) if pair == (full, again)]
    waits = [n for n in waits if steps[n - 3 : n - 1] != ["before put", "after put"]]
    assert waits
    for step in {waits[0], waits[0] + 1, waits[-1]}:
        outcome = play(script, [step])
        assert outcome.masters == 2 and not outcome.lost and outcome.stored == [], outcome


def asks_and_never_listens(front_end: FrontEnd, shared: Shared) -> None:
    front_end.negotiate()
    for _ in range(AT_ONCE):
        front_end.send(encode(FRONT_END.named("GET_FEATURES").number))
    poller = select.poll()
    poller.register(front_end.socket, select.POLLRDHUP)
    assert poller.poll(BOUND_S * 1000), "the connection does not end"
    raise Disconnected


def test_a12_an_answer_that_is_not_taken_in_time_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "SEND_DEADLINE", 0.1)
    with pytest.raises(AssertionError, match="master ended with 0, front-end with 4"):
        play(asks_and_never_listens)
